# SPDX-License-Identifier: Apache-2.0
"""Wherever a signal comes, the process ends in time, in peace and with its status."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dt_jax.system import interruption
from dt_jax.system.interruption import GRACE, NUMBERS, PATIENCE, postponed

ROOT = Path(__file__).parents[2]
# In one call of C, which no handler of Python's interrupts: 40 s at least.
IN_C = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2 * 10**8)"
HEADER = """
import gc, hashlib, os, signal, sys, threading, time
from pathlib import Path
from dt_jax.system import interruption
from dt_jax.system.files import replacing, scratch
def send(number): os.kill(os.getpid(), number)
"""
# main.py with a small run, but as it calls a function for the first time, a signal
# comes. The function is named by its module and its name.
DISTURBED = """
import importlib.abc, os, runpy, sys
number, module, name = int(sys.argv.pop(1)), sys.argv.pop(1), sys.argv.pop(1)
def interrupt(*args):
    os.kill(os.getpid(), number)
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, found, path, target=None):
        if found == module and not name:
            interrupt()
sys.meta_path.insert(0, Finder())
if name:
    module = importlib.import_module(module)
    function = getattr(module, name)
    def interrupted(*args, **kwargs):
        interrupt()
        return function(*args, **kwargs)
    setattr(module, name, interrupted)
runpy.run_path("main.py", run_name="__main__")
"""


def run(*command):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done, time.monotonic() - began


@pytest.mark.parametrize("number", NUMBERS)
def test_watched_the_process_ends_at_once_and_scratch_files_with_it(tmp_path, number):
    done, seconds = run(
        f"""{HEADER}
interruption.watch()
file, folder = Path({str(tmp_path)!r}, "file"), Path({str(tmp_path)!r}, "folder")
file.write_text("before")
with replacing(file) as unfinished, scratch(folder):
    unfinished.write_text("half")
    folder.mkdir()
    (folder / "half").touch()
    send({number:d})
    time.sleep(30)
"""
    )
    assert (done.returncode, done.stderr) == (128 + number, "")
    assert seconds < 10
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_a_signal_is_not_lost_in_a_callback():
    done, _ = run(
        f"""{HEADER}
interruption.watch()
gc.callbacks.append(lambda *_: send(signal.SIGTERM))
gc.collect()
time.sleep(30)
"""
    )
    assert (done.returncode, done.stderr) == (143, "")


def test_a_main_thread_that_is_in_c_does_not_hold_the_end_up(tmp_path):
    done, seconds = run(
        f"""{HEADER}
interruption.watch()
with scratch(Path(sys.argv[1])):
    Path(sys.argv[1]).touch()
    threading.Timer(0.3, send, [15]).start()
    {IN_C}
""",
        tmp_path / "file",
    )
    assert done.returncode == 143
    assert PATIENCE < seconds < 10
    assert not (tmp_path / "file").exists()


POSTPONED = f"""{HEADER}
interruption.GRACE = float(sys.argv[1])
interruption.watch()
with interruption.postponed() as caught:
    send(signal.SIGINT)
    print(caught, flush=True)
    exec(sys.argv[2])
    print("saved", flush=True)
"""


@pytest.mark.parametrize(
    ("grace", "then", "out"),
    [
        (GRACE, "time.sleep(0.2)", "[2]\nsaved\n"),
        (GRACE, "send(signal.SIGTERM); time.sleep(30)", "[2]\n"),  # a second
        (0.5, IN_C, "[2]\n"),
    ],
)
def test_postponed_it_comes_after_the_block_or_in_time(grace, then, out):
    done, seconds = run(POSTPONED, grace, then)
    assert (done.returncode, done.stdout) == (130, out)
    assert "SIGINT: saving" in done.stderr
    assert "Traceback" not in done.stderr
    assert seconds < 10


def test_without_a_signal_all_is_as_before(monkeypatch):
    monkeypatch.setattr(interruption, "_watched", True)

    def now():
        handlers = [signal.getsignal(number) for number in NUMBERS]
        return handlers, threading.active_count(), len(os.listdir("/proc/self/fd"))

    before = now()
    for _ in range(3):
        with postponed() as caught:
            assert signal.getsignal(signal.SIGTERM) not in before[0]
        assert caught == []
    wait_until = time.monotonic() + 5
    while now() != before and time.monotonic() < wait_until:
        time.sleep(0.01)  # the thread closes its end of the pipe
    assert now() == before


def test_elsewhere_the_first_interrupt_is_noted_and_the_second_raises():
    def work(second):
        with postponed() as caught:
            assert signal.getsignal(signal.SIGTERM) is before[1]
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(list(caught))
            if second:
                os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end")

    reached, before = [], [signal.getsignal(number) for number in NUMBERS[::-1]]
    for second in (False, True):
        with pytest.raises(KeyboardInterrupt):
            work(second)
        assert signal.getsignal(signal.SIGINT) is before[0]
    assert reached == [[signal.SIGINT], "the end", [signal.SIGINT]]


def test_a_thread_may_train_too():
    def work():
        with postponed() as caught:
            found.append(caught)

    found = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[]]


def test_a_forked_worker_that_is_terminated_does_not_end_its_parent():
    done, _ = run(
        f"""{HEADER}
import warnings
warnings.simplefilter("ignore")  # from Python 3.12 on: to fork beside threads is risky
interruption.watch()
if not (pid := os.fork()):
    send(signal.SIGTERM)
    time.sleep(30)
_, status = os.waitpid(pid, 0)
time.sleep(0.2)
print(os.waitstatus_to_exitcode(status))
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "143\n", "")


@pytest.mark.parametrize(
    ("number", "module", "name", "leaves"),
    [
        (signal.SIGINT, "jax", "", set()),
        (signal.SIGTERM, "pyarrow", "", set()),
        # While it reads the first rows of the market.
        (signal.SIGINT, "dt_jax.data.writer", "_stream", set()),
        pytest.param(
            signal.SIGTERM,
            "dt_jax.commands.evaluate",
            "roll_out",
            {"run.json", "metrics.jsonl"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_wherever_the_command_is_interrupted_it_ends_in_peace(
    tmp_path, monkeypatch, number, module, name, leaves
):
    workdir = tmp_path / "run"
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    changes = {
        "model.hidden_size": 8,
        "model.n_layer": 1,
        "train.max_steps": 2,
        "eval.episodes": 1,
    }
    flags = (f"--config.{key}={value}" for key, value in changes.items())
    done, seconds = run(
        *(DISTURBED, int(number), module, name),
        *("--config=configs/base.py", f"--workdir={workdir}", *flags),
    )
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr
    assert seconds < 60
    found = {path.name for path in workdir.glob("*")} if workdir.exists() else set()
    assert found >= leaves
    assert bool(found) == bool(leaves)
    assert [*workdir.rglob("*.partial"), *workdir.rglob(".lock")] == []
    assert "index.html" not in {path.name for path in workdir.rglob("*")}

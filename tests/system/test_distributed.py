# SPDX-License-Identifier: Apache-2.0
"""Any number of devices and processes train alike, and what ends one ends all."""

import ast
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dt_jax.data.readers import load_trajectories
from dt_jax.data.segments import SegmentSampler
from dt_jax.system import distributed
from dt_jax.training.metrics import read_metrics
from tests.commands.test_train import arrays_of, make_dataset

ROOT = Path(__file__).parents[2]
UPDATES = 200
BATCH = 8
LIMIT = 300  # seconds: a hang fails the test
RECIPE = {
    "data.context_length": 4,
    "data.max_ep_len": 12,
    "data.return_scale": 10.0,
    "model.max_ep_len": 12,
    "model.hidden_size": 16,
    "model.n_layer": 1,
    "model.resid_pdrop": 0.0,
    "model.embd_pdrop": 0.0,
    "model.attn_pdrop": 0.0,
    "train.batch_size": BATCH,
    "train.max_steps": UPDATES,
    "train.logging_steps": 1,
    "train.save_steps": UPDATES,
    "distributed.initialization_timeout": 120,
    "distributed.heartbeat_timeout_seconds": LIMIT,
    "distributed.heartbeat_seconds": 1,
}
# main.py, but the segments that are gathered are noted, and at one call something else
# is done.
NOTING = """
import atexit, os, runpy, signal, sys
import numpy as np
from dt_jax.system import distributed
from dt_jax.data.segments import SegmentSampler
path, call, disturb = sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1)
gathered, calls = [], []
def gather(self, *draw, gather=SegmentSampler.gather):
    gathered.append(np.stack(draw))
    return gather(self, *draw)
def vote(self, caught, vote=distributed.AgreedStop.__call__):
    calls.append(1)
    if len(calls) == call:
        exec(disturb)
    return vote(self, caught)
SegmentSampler.gather, distributed.AgreedStop.__call__ = gather, vote
atexit.register(lambda: np.save(path, np.stack(gathered)))
runpy.run_path("main.py", run_name="__main__")
"""
KILL, TERMINATE = (f"os.kill(os.getpid(), {number})" for number in (9, 15))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset", seed=0)


@pytest.fixture(scope="module")
def environment():
    """Of each process."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_all(environment, commands, num_devices=1):
    """Every command in a process of its own, all of one run; their ends."""
    joined = {
        "JAX_NUM_CPU_DEVICES": str(num_devices),
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": str(int(num_devices == 1)),
    }
    if len(commands) > 1:
        joined["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free_port()}"
        joined["JAX_NUM_PROCESSES"] = str(len(commands))
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=environment | joined | {"JAX_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process, command in enumerate(commands)
    ]
    try:
        outputs = [process.communicate(timeout=LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def command(dataset, workdir, note, call=0, disturb="", **changes):
    settings = {"data.path": dataset} | RECIPE | changes
    flags = (f"--config.{key}={value}" for key, value in settings.items())
    flags = ("--config=configs/base.py", f"--workdir={workdir}", *flags)
    return "-c", NOTING, note, call, disturb, *flags


class Run:
    """A run of 200 updates: its records, its weights, what each process gathered."""

    def __init__(self, environment, dataset, folder, num_processes, num_devices):
        self.workdir = folder / "run"
        notes = [folder / f"{process}.npy" for process in range(num_processes)]
        commands = [command(dataset, self.workdir, note) for note in notes]
        for ended in run_all(environment, commands, num_devices):
            assert ended.returncode == 0, ended.stderr
        self.losses = [r["loss"] for r in read_metrics(self.workdir / "metrics.jsonl")]
        # The first is what the call was compiled for.
        self.gathered = [np.load(note)[1:] for note in notes]


@pytest.fixture(scope="module")
def runs(environment, dataset, tmp_path_factory):
    # Two and four devices: tests/training/test_train_step.py.
    shapes = [(1, 1), (1, 8), (2, 1)]
    folder = tmp_path_factory.mktemp
    return {s: Run(environment, dataset, folder("run"), *s) for s in shapes}


@pytest.mark.slow
def test_any_number_of_devices_and_processes_train_alike(runs):
    alone = runs[1, 1].losses
    assert len(alone) == UPDATES
    for shape, run in runs.items():
        np.testing.assert_allclose(run.losses, alone, rtol=1e-5, err_msg=str(shape))
    assert runs[1, 8].losses != alone  # else eight devices were one


@pytest.mark.slow
def test_all_consume_the_same_batches_and_each_process_its_own_rows(runs, dataset):
    sampler = SegmentSampler(
        load_trajectories(dataset),
        batch_size=BATCH,
        context_length=4,
        max_ep_len=12,
        return_scale=10.0,
        weighting="length",
        seed=0,
    )
    expected_Ux2xB = np.stack([np.stack(sampler.draw(u)) for u in range(UPDATES)])
    for (num_processes, num_devices), run in runs.items():
        share = BATCH // num_processes
        for process, gathered in enumerate(run.gathered):
            # Of a call: devices, then updates, then the device's own segments.
            parts = gathered.reshape(-1, 2, num_devices, 10, share // num_devices)
            found_Ux2xB = np.moveaxis(parts, 3, 1).reshape(UPDATES, 2, share)
            mine = slice(process * share, (process + 1) * share)
            np.testing.assert_array_equal(found_Ux2xB, expected_Ux2xB[..., mine])


@pytest.mark.slow
def test_killed_in_any_process_a_run_ends_like_one_that_was_not(
    environment, dataset, runs, tmp_path
):
    workdir = tmp_path / "disturbed"

    def run(*disturbances):
        note = tmp_path / "note.npy"
        often = {"train.save_steps": 40}
        commands = [
            command(dataset, workdir, note, *what, **often) for what in disturbances
        ]
        return run_all(environment, commands)

    first, second = run((), (9, KILL))
    assert (first.returncode, second.returncode) == (distributed.LOST, -signal.SIGKILL)
    told = [line for line in first.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert "process 0 has lost another one" in told[0]
    assert "Traceback" not in first.stderr

    first, second = run((8, KILL), ())
    assert first.returncode == -signal.SIGKILL
    # JAX may be faster to end it than we are: its coordinator is gone.
    assert second.returncode in (distributed.LOST, -signal.SIGABRT)
    assert "Traceback" not in second.stderr

    saved, _ = arrays_of(workdir)
    first, second = run((), ())
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert f"going on from update {saved}" in first.stdout
    assert 80 < saved < UPDATES  # the second run had gone on, too
    assert arrays_of(workdir) == arrays_of(runs[2, 1].workdir)
    losses = [r["loss"] for r in read_metrics(workdir / "metrics.jsonl")]
    assert losses == runs[2, 1].losses


@pytest.mark.slow
def test_a_sweep_stopped_in_any_process_goes_on_with_other_devices(
    environment, dataset, runs, tmp_path
):
    workdir = tmp_path / "swept"
    # The last two are what was run alone.
    settings = [{"seed": 1}, {"seed": 0}, {"seed": 0, "data.return_scale": 10.0}]
    names = ["seed=1", "seed=0", "seed=0,return_scale=10.0"]
    flags = f"--config.sweep={json.dumps(settings)}", "--config.sweep_at_once=2"

    def run(num_devices, *disturbance):
        commands = [
            (*command(dataset, workdir, tmp_path / "note.npy", *what), *flags)
            for what in ((), disturbance)
        ]
        return run_all(environment, commands, num_devices)

    # Each of four devices has both members, and a share of their batches.
    first, second = run(2, 5, TERMINATE)
    assert (first.returncode, second.returncode) == (143, 143), first.stderr
    stopped, _ = arrays_of(workdir, "checkpoints-0")
    assert 50 < stopped < 80  # within a few calls, and both at the same
    assert arrays_of(workdir / "members" / names[0])[0] == stopped
    # Each of two devices has one member; then each has the third, and half its batches.
    first, second = run(1)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert f"going on from update {stopped}" in first.stdout
    other, *known = (
        [r["loss"] for r in read_metrics(workdir / "members" / name / "metrics.jsonl")]
        for name in names
    )
    for losses in known:
        np.testing.assert_allclose(losses, runs[1, 1].losses, rtol=1e-5)
    assert len(other) == UPDATES
    assert not np.allclose(other, runs[1, 1].losses, rtol=0.01)


@pytest.mark.slow
def test_processes_given_different_values_are_all_refused(
    environment, dataset, tmp_path
):
    rates = (1e-4, 2e-4)
    commands = [
        command(dataset, tmp_path / "run", tmp_path / "note.npy") for _ in rates
    ]
    flag = "--config.optimizer.learning_rate"
    commands = [
        (*line, f"{flag}={rate}") for line, rate in zip(commands, rates, strict=True)
    ]
    told = "optimizer.learning_rate=0.0002 here, but 0.0001 in process 0"
    for ended in run_all(environment, commands):
        assert ended.returncode == 2
        (line,) = (x for x in ended.stderr.splitlines() if x.startswith("error: "))
        assert told in line
    assert not (tmp_path / "run").exists()


MEETING = """
import sys, time
from pathlib import Path
import jax
from dt_jax.system import distributed
limits = {"initialization_timeout": 120, "heartbeat_timeout_seconds": 60}
distributed.join(cluster="auto", **limits)
me, file = jax.process_index(), Path(sys.argv[1])
def make():
    if me == 0:
        file.touch()
    return file.exists()
def refuse(who):
    try:
        with distributed.raise_everywhere():
            if me in who:
                raise FileNotFoundError(f"no data for {me}")
    except (ValueError, OSError) as error:
        return str(error)
vote, caught = distributed.AgreedStop(), [15] * me
with distributed.heartbeat(1, lambda: 1234):
    time.sleep(1.5)
distributed.print_once("said")
found = {
    "share": distributed.broadcast(("large", me, "x" * 9 * (1 - me))),
    "in_turn": distributed.first_then_rest(make),
    "together": [refuse(()), refuse((1,)), refuse((0, 1))],
    "vote": [vote(caught) for _ in range(3)],
    "caught": caught,
    "alone": distributed.leave(),
}
print(found)
"""


def test_what_processes_tell_each_other(environment, tmp_path):
    ends = run_all(environment, 2 * [("-c", MEETING, tmp_path / "file")])
    outputs = [ended.stdout.splitlines() for ended in ends]
    assert ["said" in output for output in outputs] == [True, False]
    for me, ended in enumerate(ends):
        assert ended.returncode == 0, ended.stderr
        alive = rf"process {me} of 2 on .+: alive, update 1,234$"
        assert len(re.findall(alive, ended.stderr, re.MULTILINE)) == 1
        refused = "no data for 1" if me else "process 1: no data for 1"
        assert ast.literal_eval(outputs[me][-1]) == {
            "share": ("large", 0, "x" * 9),
            "in_turn": True,
            "together": [None, refused, f"no data for {me}"],
            "vote": [False, True, True],
            "caught": [15],
            "alone": me == 0,
        }


def test_a_process_left_alone_ends_in_time_and_in_one_line(environment):
    join = """
from dt_jax.system import distributed
distributed.join(cluster="auto", initialization_timeout=1, heartbeat_timeout_seconds=60)
"""
    environment |= {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
    }
    ended = subprocess.run(
        [sys.executable, "-c", join],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert ended.returncode == distributed.LOST
    assert ended.stderr.startswith(
        "error: distributed.initialization_timeout: after 1 s"
    )
    assert ended.stderr.count("\n") == 1


VARIABLES = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


@pytest.fixture
def join(monkeypatch):
    """`join` in this environment; the arguments that JAX gets, None if not asked.

    JAX answers as it does where it finds no cluster.
    """
    asked = []

    def initialize(address, **arguments):
        asked.append({"coordinator_address": address, **arguments})
        if address is None:
            raise ValueError("coordinator_address should be defined.")
        if arguments["num_processes"] is None:
            raise ValueError("Number of processes must be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)

    def run(cluster="auto", timeout=300, heartbeat=60, **environment):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        distributed.join(
            cluster=cluster,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=heartbeat,
        )
        return asked[-1] if asked else None

    return run


def test_without_a_cluster_a_process_is_alone(join):
    assert join(cluster="none", JAX_COORDINATOR_ADDRESS="a:1") is None
    assert join()["cluster_detection_method"] is None


def test_jax_gets_what_the_environment_and_the_config_say(join):
    given = dict(zip(VARIABLES, ("a:1", "4", "3"), strict=True))
    told = join(cluster="slurm", timeout=5, heartbeat=7, **given)
    assert told["initialization_timeout"] > 5  # ours is the first to end
    del told["initialization_timeout"]
    assert told == {
        "coordinator_address": "a:1",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "slurm",
        "heartbeat_timeout_seconds": 7,
    }


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES='two'"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "Number of processes .*cluster=none"),
        ({"cluster": "moon"}, "distributed.cluster=moon: .*cluster=none"),
        ({"timeout": 0}, "distributed.initialization_timeout=0: expected at least 1"),
        (
            {"heartbeat": 0},
            "distributed.heartbeat_timeout_seconds=0: expected at least 1",
        ),
    ],
)
def test_a_cluster_told_wrongly_is_refused(join, given, names):
    with pytest.raises(ValueError, match=names):
        join(**given)


def test_alone_nothing_is_waited_for(capfd):
    with (
        distributed.heartbeat(0, lambda: 0),
        distributed.abort_all(),
        distributed.exit_if_lost(),
    ):
        assert distributed.broadcast([1]) == [1]
    vote = distributed.AgreedStop()
    assert [vote([]), vote([15])] == [False, True]
    with pytest.raises(OSError, match="gone"), distributed.raise_everywhere():
        raise OSError("gone")
    assert distributed.leave()
    assert capfd.readouterr().err == ""

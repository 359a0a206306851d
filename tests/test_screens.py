# SPDX-License-Identifier: Apache-2.0
"""Every screen fits 80 columns, however long the names and large the numbers in it."""

import io
import os
import re
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from dt_jax.commands import collect, evaluate, export, report
from dt_jax.config import default_config
from dt_jax.reporting.data_report import describe_data
from dt_jax.reporting.evaluation import RANDOM, ActorResult, evaluation_report
from dt_jax.reporting.evaluation_tables import describe_evaluation
from dt_jax.reporting.run_summary import describe_complete, describe_run
from dt_jax.system import distributed
from dt_jax.system.progress import progress
from dt_jax.training import metrics
from dt_jax.training.checkpoint import Trained

LONG = Path("/home/somebody/markets/runs/base-learning_rate_0.0003")
NAME = "a_package.with_a_module:a_callable_whose_name_is_quite_long"
LEVELS = ("min", "10 %", "median", "90 %", "max")
QUANTILES = dict(zip(LEVELS, (-1.23456e-12, -9.87654e10, 1e-5, 1e9, 3e11), strict=True))
LAST = {"loss": 1.2e-7, "accuracy": 1.0}
SUMMARY = {
    "global_step": 1_234_567_890,
    "train_runtime": 9876543.2,
    "train_steps_per_second": 123456.78,
    "train_samples_per_second": 7901234.5,
    "train_loss": 1.2345e-07,
}
DATA = {
    "trajectories": 123_456_789,
    "steps": 123_456_789_012,
    "state_dim": 123_456,
    "act_dim": 12_345,
    "bytes": 10**15,
    "held_out_trajectories": 12_345_678,
    "kept": {
        **{"keep_best": 0.123456, "trajectories": 12_345_678},
        **{"steps": 12_345_678_901, "lowest_return": -1.2345e10},
    },
    "lengths": QUANTILES,
    "returns": QUANTILES,
    "explained_by_timestep": 0.1234,
    "relative_to": "timestep",
    "returns_to_go": QUANTILES,
    "action_range": [-1.2345e-10, 9.8765e10],
    "constant_features": list(range(100_000, 100_100)),
    "repeated_trajectories": 123_456_789,
    "trajectories_with_inner_dones": 123_456_789,
    "clipped_timesteps": 123_456_789_012,
    "about": {
        "format": "Minari",
        "source": NAME,
        "left_out": NAME,
        "observations": NAME,
    },
    "choices": [],
    "action_bounds": [[-1e10], [1e10]],
    "memory_plan": {
        name: {"device_bytes": 1.23e11, "host_bytes": 9.87e11}
        for name in ("host", "device")
    },
    "placement": "host (123,456.7 GB do not fit into 80 % of the 85.0 GB of a device)",
    "warnings": ["of some words " * 12 + NAME],
}


def evaluation(size):
    """A target, a baseline of a long name and random actions, with accounts."""

    def actor(name, target):
        info = {"assets": np.array([[1.0], [9e4], [1e3]]), "traded": np.ones((3, 1))}
        returns = size * np.array([-1.2345678, 9.87654321])
        return ActorResult(name, target, returns, np.array([100_000] * 2), info, 2)

    targets = [
        actor(f"target {size * part:,.6g}", size * part) for part in (-2, 3, 1e3)
    ]
    return evaluation_report(
        [*targets, actor(NAME, None), actor(RANDOM, None)],
        environment=NAME,
        step=1_234_567_890,
        first_seed=4_294_967_295,
        data_returns=dict.fromkeys((*LEVELS, "mean", "std"), size * 1.23456789),
        longest=12,
    )


def held_out(mse):
    return {"mse": mse, "references": {"mean": mse, "previous": mse}}


def collected():
    config = default_config()
    config.collect.update(actor=NAME, episodes=123_456_789)
    collect.collect(config, LONG)


def log():
    with progress(total=9_999_999, desc="training", unit=" updates") as bar:
        bar.set_postfix_str("loss 1.234e-07, lr 1.23e-07", refresh=False)
        bar.update(1_234_567)
        bar.refresh()
    with progress(desc="evaluating", unit=" steps") as bar:
        bar.set_postfix_str("100000 episodes go on", refresh=False)
        bar.update(100_000)
        bar.refresh()


def wait():
    with distributed.timed(f"reading {LONG}/{NAME}"):
        pass


TRAINED = Trained({}, {}, {"return_scale": 1.0}, 1_234_567)
NOWHERE = nullcontext(Path(os.devnull))
SCREENS = {
    "data": lambda: print(describe_data(DATA)),
    "evaluation": lambda: print(describe_evaluation(evaluation(1.0))),
    "large returns": lambda: print(describe_evaluation(evaluation(1.2e12))),
    "small returns": lambda: print(describe_evaluation(evaluation(1e-9))),
    "evaluate": lambda: evaluate.evaluate(default_config(), LONG),
    "the end": lambda: print(
        describe_run(
            LONG, SUMMARY, {"loss": 1.2e-7}, held_out(1.2e-7), data_path="", target=None
        )
    ),
    "the end, evaluated": lambda: print(
        describe_run(
            LONG, SUMMARY, {"loss": 1.2e-7}, None, data_path="x", target=-1.23456e12
        )
    ),
    "nothing to do": lambda: print(
        describe_complete(LONG, 1_234_567_890, environment=NAME)
    ),
    "stopped": lambda: distributed.print_once(
        "stopped at update 1,234,567,890 of 9,999,999,999, saved; the same command "
        "goes on from there"
    ),
    "collect": collected,
    "export": lambda: export.export(default_config(), LONG),
    "report": lambda: report.report(default_config(), LONG),
    "report of many": lambda: report.report(default_config(), LONG.parent),
    "log": log,
    "wait": wait,
}


@pytest.mark.parametrize("name", SCREENS)
def test_every_screen_fits_80_columns(monkeypatch, capsys, name):
    for where, what in (
        (collect, {"actor_of": None, "check_environment": None}),
        (collect, {"make_environments": None, "record_episodes": 123_456_789}),
        (evaluate, {"act": {"step": 1}, "write_run_page": [], "track": None}),
        (evaluate, {"evaluation_scalars": {}}),
        (export, {"load_trained": TRAINED, "model_card": "", "export_hf": None}),
        (export, {"read_json": {}, "read_metrics": [], "replacing": NOWHERE}),
        (report, {"write_run_page": LONG, "write_comparison": (LONG, LONG)}),
    ):
        for function, found in what.items():
            monkeypatch.setattr(where, function, lambda *_, _found=found, **__: _found)
    monkeypatch.setattr(report, "read_metrics", lambda path: path.parent == LONG)
    monkeypatch.setattr("sys.argv", ["main.py"])
    SCREENS[name]()
    told, errors = capsys.readouterr()
    lines = (told + errors).splitlines()
    assert lines
    assert [line for line in lines if len(line) > 80] == []


def test_a_record_in_a_log_is_one_line(tmp_path, capsys):
    writer = metrics.MetricWriter(tmp_path, step=0, total_steps=9480)
    record = {"step": 4, "loss": 0.0001234, "learning_rate": 1.23e-6}
    writer.write(record)
    writer.close()
    line = capsys.readouterr().err.splitlines()[0]
    shown = r"\d\d:\d\d:\d\d training: 4/9480, loss 0.0001234, lr 1.23e-06, .+ left"
    assert re.fullmatch(shown, line)
    assert len(line) <= 80


def test_help_fits_and_no_arguments_are_the_same(prompt):
    status, told, errors = prompt("--help")
    assert (status, errors) == (0, "")
    assert max(map(len, told.splitlines())) <= 80
    assert prompt() == prompt("-h") == (status, told, errors)
    assert "  --config.train.batch_size  (whole number, default 64)\n" in told
    assert "Examples:\n" in told


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_seconds_are_counted_on_a_terminal_while_something_is_waited_for(monkeypatch):
    threads = threading.active_count()
    monkeypatch.setattr(sys, "stdout", Terminal())
    shown = threading.Event()

    def show(text):
        shown.set()
        return io.StringIO.write(sys.stdout, text)

    monkeypatch.setattr(sys.stdout, "write", show)

    def interrupted():
        with distributed.timed("compiling"):
            assert shown.wait(10), "nothing is seen until the end"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    told = r"(\rcompiling: \d+ s)+\rcompiling: \d+\.\d s\n"
    assert re.fullmatch(told, sys.stdout.getvalue())
    assert threading.active_count() == threads


def test_in_a_log_a_wait_is_one_line(capsys):
    with distributed.timed("compiling"):
        assert capsys.readouterr().out == "compiling: "
    assert re.fullmatch(r"\d+\.\d s\n", capsys.readouterr().out)

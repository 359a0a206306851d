# SPDX-License-Identifier: Apache-2.0
"""Losses become records: no gap, no double, and every sink is told the same."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from dt_jax.training import metrics, trackers
from dt_jax.training.metrics import MetricWriter, RunningMetrics, read_metrics
from dt_jax.training.trackers import open_trackers


@pytest.fixture
def clock(monkeypatch):
    """Time stands still unless a test moves `clock.now`."""
    clock = SimpleNamespace(now=100.0)
    timer = SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr(metrics, "time", timer)
    return clock


def make_meter(saved=None, logging_steps=3, max_bad_updates=4):
    return RunningMetrics(
        logging_steps=logging_steps,
        total_steps=8,
        steps_per_epoch=4,
        batch_size=10,
        learning_rate=lambda step: step / 100,
        max_bad_updates=max_bad_updates,
        saved=saved,
    )


def feed(meter, clock, steps):
    """Updates with losses 1, 2, ... and norms ten times that, half a second each."""
    records = []
    for step in steps:
        clock.now += 0.5
        records += meter.update([float(step)], [10.0 * step])
    return records


def make_writer(folder, step=0):
    trackers = open_trackers(folder, hparams={}, wandb=False, first_step=step + 1)
    return MetricWriter(folder, step=step, total_steps=20, trackers=trackers)


def write(folder, steps, opened_at=0):
    writer = make_writer(folder, opened_at)
    for step in steps:
        record = {"step": step, "loss": step / 3}
        writer.write(record)
        writer.progress(record)
    writer.close()


def steps_in(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_windows_on_paper(clock):
    records = feed(make_meter(), clock, range(1, 9))
    assert records == [
        {
            "step": step,
            "epoch": step / 4,
            "loss": loss,  # the mean of the window, the rest of its last update
            "learning_rate": (step - 1) / 100,
            "grad_norm": 10 * step,
            "skipped_updates": 0,
            "steps_per_second": 2,
            "samples_per_second": 20,
            "train_runtime": step / 2,
        }
        for step, loss in ((3, (1 + 2 + 3) / 3), (6, (4 + 5 + 6) / 3), (8, (7 + 8) / 2))
    ]


@pytest.mark.parametrize(
    "calls",
    [[1] * 8, [2, 2, 2, 2], [2, 4, 2], [8]],
)
def test_windows_do_not_depend_on_the_calls(clock, calls):
    numbers = iter(range(1, 9))
    meter, records = make_meter(), []
    for size in calls:
        clock.now += size / 2
        losses = [float(next(numbers)) for _ in range(size)]
        records += meter.update(losses, [10 * loss for loss in losses])
    # A call that completes several windows cannot time each: they share its rate.
    assert records == feed(make_meter(), clock, range(1, 9))


@pytest.mark.parametrize("stop", range(9))
def test_a_window_goes_on_after_a_resume(clock, stop):
    first = make_meter()
    records = feed(first, clock, range(1, stop + 1))
    saved = json.loads(json.dumps(first.state()))
    clock.now += 1000.0  # the pause
    second = make_meter(saved)
    records += feed(second, clock, range(stop + 1, 9))
    summary = second.summary()
    # The rates are equal too: half a second an update.
    assert records == feed(make_meter(), clock, range(1, 9))
    assert summary == {
        "global_step": 8,
        "epoch": 2.0,
        "train_loss": 36 / 8,
        "skipped_updates": 0,
        "train_runtime": 4.0,
        "train_steps_per_second": 2.0,
        "train_samples_per_second": 20.0,
    }


NUMBERS = [1.0, math.nan, 3.0, math.inf, -math.inf, math.nan, 7.0, 8.0]


@pytest.mark.parametrize("calls", [[1] * 8, [2, 2, 2, 2], [8]])
def test_skipped_updates_are_counted_and_in_no_mean(calls):
    losses, meter, records = iter(NUMBERS), make_meter(), []
    for size in calls:
        call = [next(losses) for _ in range(size)]
        records += meter.update(call, [abs(loss) for loss in call])
        meter = make_meter(json.loads(json.dumps(meter.state())))
    found = [(r["loss"], r["grad_norm"], r["skipped_updates"]) for r in records]
    expected = [(2.0, 3.0, 1), (math.nan, math.nan, 3), (7.5, 8.0, 0)]
    np.testing.assert_array_equal(found, expected)
    assert meter.bad_in_a_row == 0
    summary = meter.summary()
    assert summary["train_loss"] == (1 + 3 + 7 + 8) / 4
    assert summary["skipped_updates"] == 4


def test_a_gradient_that_is_not_finite_is_skipped_too():
    (record,) = make_meter().update([1.0, 5.0, 3.0], [1.0, math.nan, 1.0])
    assert (record["loss"], record["skipped_updates"]) == (2.0, 1)


@pytest.mark.parametrize("calls", [[1] * 8, [2, 2, 2, 2], [4, 4], [8]])
def test_nothing_is_taken_in_after_too_many_bad_updates_in_a_row(calls):
    losses, meter, records = iter(NUMBERS), make_meter(max_bad_updates=3), []
    for size in calls:
        call = [next(losses) for _ in range(size)]
        records += meter.update(call, call)
        saved = json.loads(json.dumps(meter.state()))
        meter = make_meter(saved, max_bad_updates=3)
    assert [record["step"] for record in records] == [3, 6]
    assert (meter.step, meter.bad_in_a_row) == (6, 3)


def test_a_meter_saved_before_there_were_skipped_updates_goes_on():
    saved = {"step": 2, "loss_sum": 3.0, "runtime": 1.0}
    meter = make_meter(saved | {"window_sum": 3.0, "window_size": 2})
    (record,) = meter.update([6.0], [1.0])
    assert (record["loss"], record["skipped_updates"]) == (3.0, 0)


def test_between_records_the_window_so_far_is_shown(clock):
    meter = make_meter()
    assert math.isnan(meter.now()["loss"])
    feed(meter, clock, [1, 2])
    assert meter.now() == {"step": 2, "loss": (1 + 2) / 2, "learning_rate": 0.01}
    feed(meter, clock, [3])  # a record, and no window has begun
    assert meter.now() == {"step": 3, "loss": (1 + 2 + 3) / 3, "learning_rate": 0.02}


def test_a_log_gets_a_line_for_each_record_and_every_half_minute(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("tqdm.std.time", lambda: seconds)  # of tqdm alone
    seconds = 100.0
    writer = make_writer(tmp_path)
    writer.write({"step": 5, "loss": 0.5, "learning_rate": 1e-4})
    for step in range(6, 11):
        seconds += 10.0
        writer.progress({"step": step, "loss": 0.25, "learning_rate": 9e-5})
    writer.write({"step": 20, "loss": 0.125, "learning_rate": 0.0})
    writer.close()
    lines = capsys.readouterr().err.splitlines()
    around = re.compile(r"^\d\d:\d\d:\d\d training: |, [^,]+, [^,]+$")
    found = [around.sub("", line) for line in lines]
    assert found == [
        "5/20, loss 0.5, lr 0.0001",
        "8/20, loss 0.25, lr 9e-05",
        "20/20, loss 0.125, lr 0",
        "20/20, loss 0.125, lr 0",  # with the rate of the whole
    ]
    assert all(line.endswith(" left") and "/s, " in line for line in lines[1:])


def test_a_logging_interval_below_one_is_named():
    with pytest.raises(ValueError, match=r"^logging_steps=0: expected "):
        make_meter(logging_steps=0)


@pytest.mark.parametrize("step", [6, 8])
@pytest.mark.parametrize("tail", ["", '{"step": 9, "lo'])
def test_records_beyond_the_resumed_step_are_dropped(tmp_path, tail, step):
    write(tmp_path, [3, 6, 9])
    path = tmp_path / "metrics.jsonl"
    kept = path.read_text().splitlines(keepends=True)[:2]
    with path.open("a") as file:
        file.write(tail)
    write(tmp_path, [9, 12], opened_at=step)
    assert path.read_text().splitlines(keepends=True)[:2] == kept
    assert steps_in(tmp_path) == [3, 6, 9, 12]


def test_a_line_cut_short_is_left_out(tmp_path):
    write(tmp_path, [3, 6])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    second = whole.index("\n") + 1
    for size in range(second, len(whole) - 1):
        path.write_text(whole[:size])
        assert [record["step"] for record in read_metrics(path)] == [3]


def test_a_record_can_be_read_as_soon_as_it_is_written(tmp_path):
    writer = make_writer(tmp_path)
    writer.write({"step": 1, "loss": 0.1 + 0.2})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.1 + 0.2}]
    writer.close()


def test_what_is_not_finite_is_null_and_reads_as_nan(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    writer = make_writer(tmp_path)
    writer.write({"step": 1, "loss": math.nan, "grad_norm": math.inf, "epoch": 0.5})
    writer.close()
    make_writer(tmp_path, step=1).close()  # writes the records anew
    path = tmp_path / "metrics.jsonl"
    expected = {"step": 1, "loss": None, "grad_norm": None, "epoch": 0.5}
    assert json.loads(path.read_text(), parse_constant=refuse) == expected
    (record,) = read_metrics(path)
    assert math.isnan(record["loss"])
    assert math.isnan(record["grad_norm"])


@pytest.mark.parametrize("flush_seconds", [0, math.inf])
def test_a_full_disk_is_an_error_and_no_hang(
    tmp_path, monkeypatch, limit_files, flush_seconds
):
    monkeypatch.setattr(trackers, "FLUSH_SECONDS", flush_seconds)
    writer = make_writer(tmp_path)

    def fill():
        for step in range(1, 1000):
            writer.write({"step": step, "loss": step / 3, "epoch": step / 4})

    with limit_files(20_000):
        with pytest.raises(OSError, match="File too large"):
            fill()
        writer.close()
    assert len(steps_in(tmp_path)) > 100


def test_trackers_get_the_same_numbers_and_are_closed(tmp_path):
    written, closed = [], []
    tracker = SimpleNamespace(
        write=lambda *given: written.append(given), close=lambda: closed.append(True)
    )
    writer = MetricWriter(tmp_path, step=0, total_steps=6, trackers=[tracker])
    writer.write({"step": 3, "loss": 0.5, "steps_per_second": 2.0})
    writer.close()
    assert written == [(3, {"train/loss": 0.5, "performance/steps_per_second": 2.0})]
    assert closed == [True]


def test_an_accuracy_is_a_mean_over_the_window_and_resumes(clock):
    meter = make_meter(logging_steps=4)
    clock.now += 1
    assert list(meter.update([1.0, math.inf], [1.0, 1.0], [0.5, 0.1])) == []
    resumed = make_meter(meter.state(), logging_steps=4)
    clock.now += 1
    (record,) = resumed.update([1.0, 1.0], [1.0, 1.0], [0.75, 1.0])
    assert record["accuracy"] == 0.75  # a skipped update is in no mean

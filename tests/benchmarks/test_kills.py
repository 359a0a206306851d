# SPDX-License-Identifier: Apache-2.0
"""A sweep killed while it saves and evaluates ends, byte for byte, like one left alone.
(A run of its own, between updates: `tests/commands/test_train.py`.)"""

import pytest

from benchmarks.kills import (
    CHANGES,
    Kill,
    differences,
    draw_kills,
    finish,
    start_and_kill,
    without_times,
)


@pytest.mark.slow
def test_a_killed_sweep_ends_like_one_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    changes = CHANGES | {"train.max_steps": 30, "sweep": '{"seed": [0, 1]}'}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(whole, changes)
    kills = [
        start_and_kill(killed, changes, kill)
        for kill in (
            Kill("saving", 4, 0.005),  # a later checkpoint of the sweep
            Kill("checkpoints", 1, 0.01),  # those of its members
            Kill("report/held_out.json", 1, 0.2),
        )
    ]
    assert [kill["hit"] for kill in kills[1:]] == ["saving", "evaluation"]
    # The sweep's own last checkpoint may still be on its way while its members save.
    assert 0 < kills[1]["from_update"] <= kills[2]["from_update"]
    finish(killed, changes)
    assert differences(whole, killed) == []
    # What would have told of a difference:
    metrics = killed / "members" / "seed=1" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines[:-1], lines[-2], lines[-1]]))
    (killed / "summary.json.partial").touch()
    found = differences(whole, killed)
    assert found == ["members/seed=1/metrics.jsonl", "summary.json.partial"]


def test_what_a_clock_gives_alone_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 5, "samples_per_second": 1e+2, "train_runtime": 2.5}\n'
        '{"step": 6, "steps_per_second": 3.5, "samples_per_second": 7, "x": null}\n'
    )
    assert without_times(path) == '{"step": 5}\n{"step": 6, "x": null}\n'


def test_fifty_kills_are_drawn_by_the_seed():
    kills = draw_kills(0)
    assert len(kills) == 50
    assert kills == draw_kills(0)
    assert kills != draw_kills(1)
    assert len(draw_kills(0, of_sweep=True)) == 52

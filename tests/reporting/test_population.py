# SPDX-License-Identifier: Apache-2.0
"""What remains of a difference over the seeds: on paper, and on the page."""

import json

import numpy as np
import pytest

from dt_jax.config import default_config
from dt_jax.reporting.population import (
    describe_population,
    describe_sample,
    write_population,
)


def test_a_sample_on_paper():
    sample = [100, 1, 2, 3, 4, 5, 20, -7]
    found = describe_sample(sample)
    assert found["mean"] == 128 / 8
    assert found["iqm"] == (2 + 3 + 4 + 5) / 4  # without the two at each end
    assert found["std"] == pytest.approx(np.std(sample, ddof=1))
    assert found["error"] == pytest.approx(found["std"] / np.sqrt(8))
    low, high = found["interval"]
    assert -7 <= low < found["iqm"] < high <= 100
    assert describe_sample(sample) == found  # the same each time


def test_of_one_seed_there_is_no_interval():
    found = describe_sample([3.0])
    alone = {"error": None, "interval": None}
    assert found == {"mean": 3.0, "std": 0.0, "iqm": 3.0} | alone
    assert describe_sample([2.0, 2.0, 2.0])["interval"] == [2.0, 2.0]


def write_member(workdir, seed, rate, losses, ended=True, achieved=None):
    config = default_config()
    config.seed, config.optimizer.learning_rate = seed, rate
    name = f"seed={seed},learning_rate={rate}"
    folder = workdir / "members" / name
    (folder / "report").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    records = [
        {"step": 10 * (i + 1), "loss": loss, "validation_loss": loss + 0.5}
        for i, loss in enumerate(losses)
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
    if ended:
        (folder / "summary.json").write_text("{}")
        actors = [
            {"target": 1.0, "mean": -5.0, "returns": [-5.0]},
            {"target": 9.0, "mean": achieved, "returns": [achieved, achieved + 2]},
            {"target": None, "mean": 50.0, "returns": [50.0]},
        ]
        found = json.dumps({"actors": actors})
        (folder / "report" / "evaluation.json").write_text(found)
    return name


def test_large_numbers_are_written_out(tmp_path):
    names = [
        write_member(tmp_path, seed, 0.1, [1.0], achieved=achieved)
        for seed, achieved in enumerate((1e4, 1.2e4))
    ]
    text = describe_population(tmp_path, write_population(tmp_path, names))
    # The deviation of 10,000 and 12,000 is sqrt(2) * 1,000, its error 1,000.
    assert "11,000 ± 1,000  1,400  11,000  10,000 .. 12,000" in text


def test_settings_are_compared_over_their_seeds(tmp_path):
    names = [
        write_member(tmp_path, 0, 0.1, [3.0, 2.0], achieved=4.0),
        write_member(tmp_path, 1, 0.1, [3.0, 4.0], achieved=8.0),
        write_member(tmp_path, 0, 0.2, [5.0, 1.0], achieved=5.0),
        write_member(tmp_path, 1, 0.2, [9.0], ended=False),
    ]
    found = write_population(tmp_path, names)
    assert found == json.loads((tmp_path / "population.json").read_text())
    slow, fast = found["settings"]
    assert slow["setting"] == {"optimizer.learning_rate": 0.1}
    assert (slow["loss"]["mean"], slow["return"]["mean"]) == (3.0, 6.0)
    assert slow["return"]["std"] == pytest.approx(np.sqrt(8))
    assert (fast["seeds"], fast["stopped"]) == ([0, 1], 1)
    assert (fast["loss"]["mean"], fast["return"]["mean"]) == (1.0, 5.0)
    assert found["best"] == {
        "validation_loss": {"optimizer.learning_rate": 0.2},
        "return": {"optimizer.learning_rate": 0.1},
    }
    assert [member["stopped"] for member in found["members"]] == [False] * 3 + [True]
    text = describe_population(tmp_path, found)
    assert max(map(len, text.splitlines())) <= 80
    assert "learning_rate=0.1      2    3.5 ± 1  1.4  3.5     2.5 .. 4.5" in text
    assert f"{names[3]} has stopped at update 10" in " ".join(text.split())
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<svg") == 2  # the loss and the validation loss
    assert "best: learning_rate=0.1" in page
    assert "<td>4 ± 1</td>" in page  # of the episodes of a member

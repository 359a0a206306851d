# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: which keys differ, and a row each."""

import csv
import json

import pytest

from dt_jax.config import default_config
from dt_jax.reporting.comparison import (
    comparison_rows,
    read_runs,
    rows_csv,
    shared_and_changed,
)


def write_run(workdir, *, keys, losses, evaluation=None):
    """A workdir with a record every 20 updates, at 2, 4, 6, ... updates a second."""
    (workdir / "report").mkdir(parents=True)
    config = default_config()
    config.update_from_flattened_dict(keys)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    with (workdir / "metrics.jsonl").open("w") as file:
        for i, (loss, validation_loss) in enumerate(losses, 1):
            record = {"step": 20 * i, "loss": loss, "steps_per_second": 2.0 * i}
            record |= {"validation_loss": validation_loss} if validation_loss else {}
            print(json.dumps(record), file=file)
    if evaluation:
        path = workdir / "report" / "evaluation.json"
        path.write_text(json.dumps(evaluation))


def evaluation_of(step, **means):
    actors = [
        {"name": name, "target": None, "mean": mean, "returns": [mean - 1, mean + 1]}
        for name, mean in means.items()
    ]
    actors[-1]["target"] = 5.0
    return {"step": step, "spearman": 0.9, "actors": actors}


@pytest.fixture
def folder(tmp_path):
    """Three runs: b by another learning rate and longer, c in a folder of its own."""
    longer = {"train.max_steps": 60, "log.wandb": True}
    write_run(
        tmp_path / "a",
        keys={"train.max_steps": 60, "eval.targets": (5.0,)},
        losses=[(0.4, 0.5), (0.3, 0.35), (0.2, 0.45)],
        evaluation=evaluation_of(60, random=1.0, asked=4.5),
    )
    write_run(
        tmp_path / "b",
        keys=longer | {"optimizer.learning_rate": 3e-4},
        losses=[(0.4, None), (0.1, None)],
        evaluation=evaluation_of(60, asked=9.0),  # of a run that was longer then
    )
    write_run(tmp_path / "more" / "c", keys=longer, losses=[(0.4, None)])
    (tmp_path / "no run").mkdir()
    return tmp_path


def test_every_workdir_with_records_is_a_run(folder):
    (folder / "empty").mkdir()
    (folder / "empty" / "metrics.jsonl").touch()
    assert [run.name for run in read_runs(folder)] == ["a", "b", "more/c"]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expects the --workdir of a run, or"):
        read_runs(tmp_path)


def test_keys_are_shared_or_changed(folder):
    shared, changed = shared_and_changed(read_runs(folder))
    assert shared == {"train.max_steps": 60}
    assert changed == ["eval.targets", "optimizer.learning_rate"]


def test_rows(folder):
    a, b, c = comparison_rows(read_runs(folder))
    assert a == {
        "run": "a",
        "optimizer.learning_rate": 1e-4,
        "eval.targets": [5.0],
        "step": 60,
        "loss": 0.2,
        "validation_loss": 0.45,
        "lowest_validation_loss": 0.35,
        "return, random": 1.0,
        "± se, random": 1.0,  # of 0 and 2: sqrt(2) / sqrt(2)
        "return, asked": 4.5,
        "± se, asked": 1.0,
        "rank_correlation": 0.9,
        "of_targets": 1,
        "evaluation_step": 60,
        "steps_per_second": 4.0,
    }
    assert (b["step"], b["loss"], b["steps_per_second"]) == (40, 0.1, 3.0)
    assert b["validation_loss"] is None
    assert b["return, asked"] is None  # its evaluation is of an update that is gone
    assert c["run"] == "more/c"
    assert c.keys() == a.keys()


def test_what_no_run_has_is_no_column(folder):
    rows = comparison_rows(read_runs(folder / "more"))
    assert list(rows[0]) == ["run", "step", "loss", "steps_per_second"]


def test_a_run_of_an_older_version_has_had_the_defaults_of_newer_keys(folder):
    path = folder / "a" / "config.json"
    config = json.loads(path.read_text())
    del config["train"]["deterministic"]
    path.write_text(json.dumps(config))
    assert "train.deterministic" not in shared_and_changed(read_runs(folder))[1]


def test_the_csv_reads_back(folder):
    rows = comparison_rows(read_runs(folder))
    read = list(csv.DictReader(rows_csv(rows).splitlines()))
    assert [row["run"] for row in read] == ["a", "b", "more/c"]
    assert float(read[0]["return, asked"]) == 4.5
    assert read[2]["return, asked"] == ""
    assert list(read[0]) == list(rows[0])

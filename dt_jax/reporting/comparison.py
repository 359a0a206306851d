# SPDX-License-Identifier: Apache-2.0
"""Runs side by side, a row each, made of what lies in their workdirs.

In goes a folder of workdirs, out come the rows: the keys in which the runs differ, the
losses, what was achieved for each target, the speed.
"""

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from dt_jax.config import changed_keys, default_config, flatten
from dt_jax.reporting import plots
from dt_jax.reporting.evaluation import count_targets, standard_error
from dt_jax.reporting.evaluation_tables import Table
from dt_jax.reporting.html_page import Picture, picture_grid, table_html, write_page
from dt_jax.system.files import read_json, replacing
from dt_jax.training.metrics import read_metrics

# Of a process and its records, not of what is learned or how the model acts.
NOT_COMPARED = ("distributed.", "log.")


class Run(NamedTuple):
    """What a workdir says of its run.

    Attributes:
      name: the workdir, relative to the folder of all.
      changed: the keys that have not their default, and their values.
      records: those of metrics.jsonl, at least one.
      evaluation: the newest, as `evaluation_report` gives it, or {}.
    """

    name: str
    changed: dict
    records: list[dict]
    evaluation: dict


def read_runs(folder: str | os.PathLike) -> list[Run]:
    """The runs of all workdirs in the folder, at any depth, that have a record.

    Raises:
      FileNotFoundError: there is none.
    """
    folder = Path(folder)
    found = sorted(path.parent for path in folder.rglob("metrics.jsonl"))
    runs = [
        Run(
            str(workdir.relative_to(folder)),
            _changed(workdir / "config.json"),
            records,
            _evaluation(workdir / "report" / "evaluation.json", records[-1]["step"]),
        )
        for workdir in found
        if (records := read_metrics(workdir / "metrics.jsonl"))
    ]
    if not runs:
        raise FileNotFoundError(
            f"{folder}: no records of a run; --mode=report expects the --workdir of a "
            "run, or a folder of such"
        )
    return runs


def _changed(path):
    return changed_keys(read_json(path)) if path.is_file() else {}


def _evaluation(path, last_step):
    found = read_json(path) if path.is_file() else {}
    return found if found.get("step", math.inf) <= last_step else {}


def shared_and_changed(runs: Sequence[Run]) -> tuple[dict, list[str]]:
    """Keys that no run has by default: of all alike, and those in which they differ."""
    defaults = flatten(default_config().to_dict())
    names = {key for run in runs for key in run.changed}
    shared, changed = {}, []
    for key in sorted(key for key in names if not key.startswith(NOT_COMPARED)):
        values = [run.changed.get(key, defaults[key]) for run in runs]
        if any(value != values[0] for value in values):
            changed.append(key)
        else:
            shared[key] = values[0]
    return shared, changed


def comparison_rows(runs: Sequence[Run]) -> list[dict]:
    """A dict for each run, all with the same columns; None where a run has nothing.

    Losses are those of the last record and the lowest of all; returns are means over
    the episodes, in raw reward, with their standard errors, and `of_targets` are those
    of the rank correlation; `steps_per_second` is the median over the records.
    """
    _, changed = shared_and_changed(runs)
    defaults = flatten(default_config().to_dict())
    actors = _unique(actor["name"] for run in runs for actor in _actors(run))
    returns = [f"{what}, {name}" for name in actors for what in ("return", "± se")]
    rows = []
    for run in runs:
        last = run.records[-1]
        achieved = {}
        for actor in _actors(run):
            achieved[f"return, {actor['name']}"] = actor["mean"]
            achieved[f"± se, {actor['name']}"] = standard_error(actor["returns"])
        ranked = run.evaluation.get("spearman") is not None
        rows.append(
            {
                "run": run.name,
                "step": last["step"],
                "loss": last["loss"],
                "validation_loss": last.get("validation_loss"),
                "lowest_validation_loss": _lowest(run.records, "validation_loss"),
                **{name: achieved.get(name) for name in returns},
                "rank_correlation": run.evaluation.get("spearman"),
                "of_targets": count_targets(run.evaluation) if ranked else None,
                "evaluation_step": run.evaluation.get("step"),
                "steps_per_second": _median(run.records, "steps_per_second"),
                **{key: run.changed.get(key, defaults[key]) for key in changed},
            }
        )
    empty = [key for key in rows[0] if all(row[key] is None for row in rows)]
    return [{k: v for k, v in row.items() if k not in empty} for row in rows]


def rows_csv(rows: Sequence[dict]) -> str:
    """The rows as CSV with a header; a cell without a value is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_comparison(folder: str | os.PathLike) -> tuple[Path, Path]:
    """Write `report/index.html` and `report/runs.csv` of all runs in the folder.

    Raises:
      FileNotFoundError: there is none.
    """
    folder = Path(folder)
    runs, report = read_runs(folder), folder / "report"
    rows = comparison_rows(runs)
    shared, _ = shared_and_changed(runs)
    best = min(runs, key=lambda run: run.records[-1]["loss"])
    write_page(
        report / "index.html",
        title=folder.resolve().name,
        lead=f"{len(runs)} runs side by side, each by its last record.",
        figures={"runs": f"{len(runs):,}", "lowest loss at the end": best.name},
        warnings=[],
        sections={
            "Runs": table_html(
                Table(
                    tuple(k if "." in k else k.replace("_", " ") for k in rows[0]),
                    [tuple(map(_cell, row.values())) for row in rows],
                    [f"{key} = {_cell(value)} in all" for key, value in shared.items()],
                ),
                {run.name: f"../{run.name}/report/index.html" for run in runs},
            ),
            "Curves": picture_grid(list(_pictures(runs))),
        },
    )
    with replacing(report / "runs.csv") as unfinished:
        unfinished.write_text(rows_csv(rows), "utf-8")
    return report / "index.html", report / "runs.csv"


def _pictures(runs):
    records = {run.name: run.records for run in runs}
    yield Picture("loss", plots.draw_losses(records, "loss"), "The loss by update.")
    if any("validation_loss" in record for run in runs for record in run.records):
        figure = plots.draw_losses(records, "validation_loss")
        yield Picture("validation_loss", figure, "The loss on held-out data by update.")
    reports = {run.name: run.evaluation for run in runs if _targeted(run)}
    if reports:
        figure = plots.draw_achieved(reports)
        text = "What each run achieved for each target: mean ± standard error."
        yield Picture("achieved", figure, text)


def _targeted(run):
    return any(actor["target"] is not None for actor in _actors(run))


def _cell(value):
    if value is None:
        return "-"
    return f"{value:,.5g}" if isinstance(value, float) else str(value)


def _actors(run):
    return run.evaluation.get("actors", [])


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _finite(records, key):
    return [r[key] for r in records if math.isfinite(r.get(key, math.nan))]


def _lowest(records, key):
    return min(_finite(records, key), default=None)


def _median(records, key):
    found = _finite(records, key)
    return median(found) if found else None

# SPDX-License-Identifier: Apache-2.0
"""The page of a run and its pictures, made of the JSON files in its workdir.

Of a run that is finished or not, with an evaluation or without. Every figure says of
which update it is; what is of an update that the run no longer has is left out.
"""

import json
import math
import os
from collections.abc import Mapping
from html import escape
from itertools import chain
from pathlib import Path
from statistics import median
from typing import NamedTuple

from dt_jax.config import changed_keys
from dt_jax.reporting import plots
from dt_jax.reporting.evaluation import count_targets
from dt_jax.reporting.evaluation_tables import evaluation_tables
from dt_jax.reporting.html_page import (
    Picture,
    definition_list,
    details,
    link_list,
    picture_grid,
    table_html,
    write_page,
)
from dt_jax.reporting.style import light_colours, standalone
from dt_jax.system.files import read_json, replacing
from dt_jax.training.metrics import read_metrics

PAGE = "report/index.html"
EVALUATIONS = "report/evaluations"  # one for each update that was evaluated
FILES = {
    "../metrics.jsonl": "the records as numbers",
    "../config.json": "every key",
    "../data_report.json": "what is in the data",
    "../summary.json": "figures of the whole run",
    "evaluation.json": "the last evaluation",
    "held_out.json": "errors on held-out data",
    "../hf/README.md": "the exported model and its card",
}


class Run(NamedTuple):
    """What lies in a workdir, {} or [] for what does not.

    Attributes:
      name: of the workdir. evaluations: one an update, in their order.
    """

    name: str
    config: dict
    record: dict
    records: list[dict]
    data: dict
    held_out: dict
    evaluations: list[dict]

    @property
    def step(self) -> int:
        """The update of the last record, 0 when there is none."""
        return self.records[-1]["step"] if self.records else 0


def read_run(workdir: str | os.PathLike) -> Run:
    """Read the files of a workdir; what is of a later update than the last record (a
    run went back to a checkpoint, or began anew) is left out."""
    workdir = Path(workdir)
    records = read_metrics(workdir / "metrics.jsonl")
    last = records[-1]["step"] if records else math.inf
    newest = _read(workdir / "report" / "evaluation.json")
    evaluations = {
        found["step"]: found
        for found in map(read_json, (workdir / EVALUATIONS).glob("*.json"))
    }
    if newest:  # of an older version that kept this one alone
        evaluations[newest["step"]] = newest
    held_out = _read(workdir / "report" / "held_out.json")
    return Run(
        name=workdir.resolve().name,
        config=_read(workdir / "config.json"),
        record=_read(workdir / "run.json"),
        records=records,
        data=_read(workdir / "data_report.json"),
        held_out=held_out if held_out.get("step", 0) <= last else {},
        evaluations=[evaluations[s] for s in sorted(evaluations) if s <= last],
    )


def write_run_page(workdir: str | os.PathLike) -> list[Picture]:
    """Write the page, and beside it each picture as a file; returns the pictures."""
    workdir = Path(workdir)
    run, folder = read_run(workdir), workdir / "report"
    pictures = run_pictures(run)
    folder.mkdir(exist_ok=True)
    shown = list(chain.from_iterable(pictures.values()))
    for picture in shown:
        with replacing(folder / f"{picture.name}.svg") as unfinished:
            unfinished.write_text(standalone(picture.svg), "utf-8")
    evaluation = run.evaluations[-1] if run.evaluations else {}
    tables = evaluation_tables(evaluation) if evaluation else []
    grids = {name: picture_grid(part) for name, part in pictures.items()}
    for number, table in enumerate(tables):
        section = "Accounts" if number else "Returns"
        grids[section] = grids.get(section, "") + table_html(table)
    write_page(
        workdir / PAGE,
        title=run.name,
        lead=_lead(run),
        figures=_figures(run),
        warnings=run.data.get("warnings", []) + evaluation.get("warnings", []),
        sections=grids | {"Run": _about(run, folder)},
    )
    return shown


def run_pictures(run: Run) -> dict[str, list[Picture]]:
    """All pictures of a run that there is something for, by section of the page."""
    sections = {}

    def add(section, name, figure, caption):
        sections.setdefault(section, []).append(Picture(name, figure, caption))

    if run.records:
        on = "on training batches"
        if any("validation_loss" in record for record in run.records):
            on += " and on held-out data"
        text = f"The loss {on}, to update {run.step:,}."
        add("Training", "loss", plots.draw_loss(run.records), text)
        text = f"What else the records hold, to update {run.step:,}."
        add("Training", "rates", plots.draw_rates(run.records), text)
    if errors := run.held_out:
        of = _of_update(errors)
        figure = plots.draw_error_by_return(errors)
        text = f"Actions on held-out trajectories by return-to-go{of}."
        add("Held-out data", "held_out", figure, text)
        if run.data.get("act_dim") != 1:
            figure = plots.draw_error_by_dimension(errors)
            text = f"The same by dimension of the action{of}."
            add("Held-out data", "held_out_by_dimension", figure, text)
    if run.evaluations:
        last = run.evaluations[-1]
        of = _of_update(last)
        text = (
            "What was achieved for each target; on the dashed line it is what was "
            f"asked for, and grey is what the training data holds{of}."
        )
        add("Returns", "targets", plots.draw_targets(last), text)
        if len(run.evaluations) > 1:
            figure = plots.draw_by_update(run.evaluations)
            steps = ", ".join(f"{found['step']:,}" for found in run.evaluations)
            text = f"Mean returns ± standard error of updates {steps}."
            add("Returns", "by_update", figure, text)
        if last.get("curves"):
            text = (
                "The account by day: the mean over the episodes, in a band of its "
                f"standard error{of}."
            )
            add("Accounts", "accounts", plots.draw_accounts(last), text)
            text = f"The loss since the account's peak, likewise{of}."
            add("Accounts", "drawdown", plots.draw_drawdown(last), text)
    if histograms := run.data.get("histograms"):
        for name, label in (("return", "return / scale"), ("length", "length")):
            figure = plots.draw_histogram(histograms[name], label)
            add("Data", f"{name}s", figure, f"Training trajectories by {name}.")
        figure = plots.draw_returns_to_go(run.data["returns_to_go_by_timestep"])
        text = "Returns-to-go by timestep: the median, and how they spread."
        add("Data", "returns_to_go", figure, text)
        if choices := run.data["choices"]:
            figure, text = plots.draw_choices(choices), "How often a choice was taken."
        else:
            figure = plots.draw_action_ranges(run.data["action_ranges"])
            text = "Actions by dimension."
        add("Data", "actions", figure, text)
    return sections


def run_fragment(workdir: str | os.PathLike) -> str:
    """HTML for a notebook: the run's name, its figures, its loss curve."""
    run = read_run(workdir)
    row = "".join(
        f"<td style='text-align:left;padding-right:2em'>{escape(name)}<br>"
        f"<b>{escape(value)}</b></td>"
        for name, value in _figures(run).items()
    )
    picture = ""
    if run.records:
        figure = plots.draw_loss(run.records)
        svg = Picture("loss", figure, f"The loss to update {run.step:,}.").svg
        picture = f"<div style='{light_colours()}'>{svg}</div>"
    return (
        f"<div style='max-width:34rem'><b>{escape(str(workdir))}</b>"
        f"<table><tr>{row}</tr></table>{picture}</div>"
    )


def _read(path):
    return read_json(path) if path.is_file() else {}


def _of_update(found):
    return f", update {found['step']:,}" if "step" in found else ""


def _lead(run):
    text = "A Decision Transformer"
    if run.data:
        text += (
            f" trained on {run.data['trajectories']:,} trajectories, "
            f"{run.data['steps']:,} steps in all"
        )
    if run.evaluations:
        last = run.evaluations[-1]
        text += (
            f"; acting in {last['environment']} as of update {last['step']:,}, "
            f"{last['episodes']} episodes for each target from seed "
            f"{last['first_seed']} on"
        )
    total = run.record.get("total_steps")
    if total and run.step >= total:
        text += f". Complete: {run.step:,} updates"
    elif total:
        text += f". Not finished: {run.step:,} of {total:,} updates"
    return f"{text}."


def _figures(run) -> dict[str, str]:
    figures = {}
    if run.records:
        last = run.records[-1]
        figures["updates"] = f"{run.step:,}"
        figures["loss at the end"] = f"{last['loss']:.4g}"
        if "validation_loss" in last:
            figures["held-out loss"] = f"{last['validation_loss']:.4g}"
        if "accuracy" in last:
            figures["accuracy"] = f"{last['accuracy']:.1%}"
        rates = [r.get("steps_per_second", math.nan) for r in run.records]
        if rates := [rate for rate in rates if math.isfinite(rate)]:
            figures["updates a second"] = f"{median(rates):,.4g}"
        if "train_runtime" in last:
            figures["time of training"] = _duration(last["train_runtime"])
    if "num_parameters" in run.record:
        figures["parameters"] = f"{run.record['num_parameters']:,}"
    if run.evaluations and run.evaluations[-1]["spearman"] is not None:
        last = run.evaluations[-1]
        when = "" if last["step"] == run.step else f", update {last['step']:,}"
        name = f"rank correlation, {count_targets(last)} targets{when}"
        figures[name] = f"{last['spearman']:.2f}"
    return figures


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _about(run, folder):
    """Where and how it ran, the keys that differ from the defaults, and the files."""
    facts = {}
    for number, start in enumerate(run.record.get("starts", []), 1):
        name = "started" if number == 1 else "went on"
        facts[f"{name} {start['date']}"] = f"at update {start['step']:,}"
    if run.record.get("starts"):
        last = run.record["starts"][-1]
        facts |= {
            "command": last["command"],
            "versions": ", ".join(f"{k} {v}" for k, v in last["versions"].items()),
            "devices": last["devices"],
        }
        if last.get("commit"):
            facts["commit"] = last["commit"]
    keys = every = ""
    if run.config:
        changed = changed_keys(run.config)
        keys = definition_list({key: _text(value) for key, value in changed.items()})
        every = details("every key", json.dumps(run.config, indent=2))
    there = {
        address: what
        for address, what in FILES.items()
        if (folder / address).resolve().is_file()
    }
    return definition_list(facts) + keys + every + link_list(there)


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, list | Mapping) else str(value)

# SPDX-License-Identifier: Apache-2.0
"""The runs of a sweep by setting: what remains of a difference over the seeds.

In go the workdirs of the members, out come population.json, a table and a page.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dt_jax.config import flatten
from dt_jax.reporting import plots
from dt_jax.reporting.evaluation import standard_error
from dt_jax.reporting.evaluation_tables import Table, aligned
from dt_jax.reporting.html_page import Picture, picture_grid, table_html, write_page
from dt_jax.system.files import read_json, write_json
from dt_jax.system.text import fit
from dt_jax.training.metrics import read_metrics

POPULATION = "population.json"
CONFIDENCE = 0.95  # of the intervals
RESAMPLES = 2000  # of the seeds, for an interval
MEASURES = {  # what settings are compared by
    "loss": "loss",
    "validation_loss": "validation loss",
    "return": "return, top target",
}


def write_population(workdir: str | os.PathLike, names: Sequence[str]) -> dict:
    """Write `population.json` and the page of the members of these names.

    Returns:
      What population.json holds. members: name, `setting` (the keys in which members
      differ, but for the seed), seed, `stopped` (of a member whose loss was not finite
      for too long), step, and of those that came to the end the last `loss` and
      `validation_loss`, and the mean `return` for the largest target with its
      `return_error`. settings: the `setting`, its `seeds`, and of each measure over the
      seeds mean, std, error (of the mean), iqm (the interquartile mean) and `interval`,
      its 95 % bootstrap interval (both None of one seed). best: by which measure, and
      the `setting`.
    """
    workdir = Path(workdir)
    members = [_member(workdir / "members" / name) for name in names]
    configs = [flatten(member.pop("config")) for member in members]
    varied = [
        key
        for key in configs[0]
        if key != "seed" and len({str(config[key]) for config in configs}) > 1
    ]
    for member, config in zip(members, configs, strict=True):
        member["setting"] = {key: config[key] for key in varied}
    settings = _settings(members)
    found = {"members": members, "settings": settings, "best": _best(settings)}
    write_json(workdir / POPULATION, found)
    _write_page(workdir, found)
    return found


def _member(workdir):
    config = read_json(workdir / "config.json")
    last = read_metrics(workdir / "metrics.jsonl")[-1]
    stopped = not (workdir / "summary.json").is_file()
    member = {
        "name": workdir.name,
        "config": config,
        "seed": config["seed"],
        "stopped": stopped,
        "step": last["step"],
    }
    if stopped:
        return member
    member |= {key: last[key] for key in MEASURES if key in last}
    evaluation = workdir / "report" / "evaluation.json"
    if evaluation.is_file():
        actors = read_json(evaluation)["actors"]
        aimed = [actor for actor in actors if actor["target"] is not None]
        top = max(aimed, key=lambda actor: actor["target"])
        member["return"] = top["mean"]
        member["return_error"] = standard_error(top["returns"])
    return member


def _settings(members):
    groups = {}
    for member in members:
        groups.setdefault(str(member["setting"]), []).append(member)
    return [
        {
            "setting": group[0]["setting"],
            "seeds": [member["seed"] for member in group],
            "stopped": sum(member["stopped"] for member in group),
            **{
                measure: describe_sample([m[measure] for m in group if measure in m])
                for measure in MEASURES
                if any(measure in member for member in group)
            },
        }
        for group in groups.values()
    ]


def describe_sample(values: Sequence[float]) -> dict:
    """mean, std (of the sample, n - 1), error: the standard error of the mean, iqm: the
    mean of the middle half, as Agarwal et al. (2021, arXiv:2108.13264) have it, and the
    95 % bootstrap interval of that."""
    from scipy import stats

    values = np.asarray(values, np.float64)
    sample = {
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "error": standard_error(values),
        "iqm": float(stats.trim_mean(values, 0.25)),
        "interval": None,
    }
    if len(values) > 1:
        found = stats.bootstrap(
            (values,),
            lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
            confidence_level=CONFIDENCE,
            n_resamples=RESAMPLES,
            method="percentile",  # it is defined for equal values too
            rng=np.random.default_rng(0),
        )
        sample["interval"] = list(map(float, found.confidence_interval))
    return sample


def _best(settings):
    """By the validation loss where there is one, and by the return."""
    best = {}
    for measure, choose in (("validation_loss", min), ("return", max)):
        measured = [one for one in settings if measure in one]
        if measured:
            one = choose(measured, key=lambda one: one[measure]["mean"])
            best[measure] = one["setting"]
    return best


def population_tables(found: Mapping) -> list[Table]:
    """One for each measure, a row for each setting."""
    measures = [key for key in MEASURES if any(key in s for s in found["settings"])]
    if "validation_loss" in measures:  # beside it the other says little
        measures.remove("loss")
    tables = []
    for measure in measures:
        rows = [
            (
                name_of(one["setting"]),
                str(len(one["seeds"]) - one["stopped"]),
                *_cells(one.get(measure)),
            )
            for one in found["settings"]
        ]
        header = (MEASURES[measure], "seeds", "mean ± se", "sd", "IQM", "95 % interval")
        best = found["best"].get(measure)
        notes = [f"best: {name_of(best)}"] if best and len(rows) > 1 else []
        if measure == measures[-1]:
            notes.append("IQM: the mean of the middle half, and its interval")
        tables.append(Table(header, rows, notes))
    return tables


def _stopped(found):
    return [
        f"{member['name']} has stopped at update {member['step']:,}: its loss was not "
        "finite"
        for member in found["members"]
        if member["stopped"]
    ]


def _cells(sample):
    if sample is None:
        return ["-"] * 4
    interval = " .. ".join(_number(x, 3) for x in sample["interval"] or ()) or "-"
    mean = _with_se(sample["mean"], sample["error"])
    return [mean, _number(sample["std"], 2), _number(sample["iqm"]), interval]


def _with_se(mean, error):
    return _number(mean) + ("" if error is None else f" ± {_number(error, 2)}")


def _number(value, digits=4):
    """Rounded: 160, not 1.6e+02."""
    return f"{float(f'{value:.{digits}g}'):,.10g}"


def name_of(setting: Mapping) -> str:
    """'learning_rate=0.001', by the last word of each key."""
    pairs = [f"{key.rpartition('.')[2]}={value}" for key, value in setting.items()]
    return ", ".join(pairs) or "all"


def describe_population(workdir: str | os.PathLike, found: Mapping) -> str:
    """The tables by setting, and where all of it lies."""
    lines = [f"{len(found['members'])} runs, by setting"]
    for table in population_tables(found):
        lines += [f"  {line}" for line in aligned([table.header, *table.rows])]
        lines += [*(f"  {note}" for note in table.notes), ""]
    lines += [f"  warning: {text}" for text in _stopped(found)]
    lines += [
        f"In {workdir}:",
        "  report/index.html  all of them on one page",
        f"  {POPULATION}    the same as numbers",
        "  members/           a workdir each: evaluate, export, go on as with any",
    ]
    return fit("\n".join(lines))


def _write_page(workdir, found):
    links = {
        m["name"]: f"../members/{m['name']}/report/index.html" for m in found["members"]
    }
    rows = [
        (
            member["name"],
            f"{member['step']:,}",
            *(
                _with_se(member[key], member.get(f"{key}_error"))
                if key in member
                else "-"
                for key in MEASURES
            ),
        )
        for member in found["members"]
    ]
    header = ("run", "step", *MEASURES.values())
    write_page(
        workdir / "report" / "index.html",
        title=workdir.resolve().name,
        lead=f"{len(found['members'])} runs trained together, by setting.",
        figures={
            "settings": f"{len(found['settings']):,}",
            "updates": f"{max(member['step'] for member in found['members']):,}",
        },
        warnings=_stopped(found),
        sections={
            "Settings": "".join(map(table_html, population_tables(found))),
            "Curves": picture_grid(list(_pictures(workdir, found))),
            "Runs": table_html(Table(header, rows, []), links),
        },
    )


def _pictures(workdir, found):
    records = {}
    for member in found["members"]:
        path = workdir / "members" / member["name"] / "metrics.jsonl"
        name = name_of(member["setting"])
        records.setdefault(name, []).append(read_metrics(path))
    for key in ("loss", "validation_loss"):
        if any(key in record for runs in records.values() for record in runs[0]):
            title = key.replace("_", " ")
            yield Picture(
                key,
                plots.draw_bands(records, key),
                f"The {title} by update: the mean over the seeds, and within the band "
                "its standard error.",
            )

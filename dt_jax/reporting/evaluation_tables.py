# SPDX-License-Identifier: Apache-2.0
"""The tables of an evaluation: the dict of `evaluation.json` in, text out."""

import math
from itertools import chain
from typing import NamedTuple

import numpy as np

from dt_jax.reporting.evaluation import (
    MARKET,
    RANDOM,
    count_targets,
    number,
    standard_error,
)
from dt_jax.system.text import WIDTH, fit
from dt_jax.trading.backtest import BUSINESS_DAYS

CLEAR = 2.0  # standard errors from which on one is better than another
ACCOUNTS = (  # two tables of an account's figures, and how each is shown
    {
        "total": ("total_return", "+,.1%"),
        "annual": ("annual_return", "+,.1%"),
        "turnover": ("turnover", ".1f"),
    },
    {
        "volatility": ("annual_volatility", ".1%"),
        "Sharpe": ("sharpe", ".2f"),
        "drawdown": ("max_drawdown", ".1%"),
    },
)
YEARS = {365: "365 days", 252: "252 business days", 52: "52 weeks", 12: "12 months"}


class Table(NamedTuple):
    """Cells of text; the first column names the row. Notes are lines below."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str]


def describe_evaluation(report: dict) -> str:
    """The tables with their notes, at most 80 columns wide, then the warnings."""
    lines = [
        f"Evaluation: {report['environment']}, update {report['step']:,}, "
        f"{report['episodes']} episodes each from seed {report['first_seed']}"
    ]
    for table in evaluation_tables(report):
        found = [*aligned([table.header, *table.rows]), *table.notes]
        lines += [*(f"  {line}" for line in found), ""]
    lines = [*lines[:-1], *(f"  warning: {w}" for w in report["warnings"])]
    return fit("\n".join(lines))


def evaluation_tables(report: dict) -> list[Table]:
    """The returns; where there are accounts also how these did."""
    tables = [_return_table(report), *_account_tables(report), _gain_table(report)]
    return [table for table in tables if table.rows]


def _return_table(report):
    rows = [
        (
            actor["name"],
            (
                actor["mean"],
                standard_error(actor["returns"]),
                actor["std"],
                min(actor["returns"]),
                max(actor["returns"]),
            ),
            _normalized(actor, report["reference"]),
            _with_error(
                np.mean(actor["lengths"]), standard_error(actor["lengths"]), ".0f"
            ),
        )
        for actor in report["actors"]
    ]
    mean, *spread = map(report["data"]["returns"].get, ("mean", "std", "min", "max"))
    rows.append(("training data", (mean, None, *spread), "", ""))
    # As many decimals for all as give the largest number four digits.
    numbers = [abs(number) for _, row, *_ in rows for number in row if number]
    largest = max(numbers, default=1.0)
    digits = max(0, 3 - math.floor(math.log10(largest)))
    show = (f"{{:,.{digits}f}}" if 1e-3 < largest < 1e7 else "{:.3e}").format
    low, high = (show(report["reference"][key]) for key in ("low", "high"))
    notes = [
        f"normalised: 0 is a return of {low}, 100 one of {high}"
        if report["reference"]["given"]
        else f"normalised: 0 is {RANDOM} ({low}), 100 the data's 90 % quantile ({high})"
    ]
    if cut := sum(actor.get("truncated", 0) for actor in report["actors"]):
        count = report["episodes"] * len(report["actors"])
        notes.append(f"cut by a time limit: {cut:,} of {count:,} episodes")
    if report["spearman"] is not None:
        notes.append(
            f"rank correlation with the {count_targets(report)} targets: "
            f"{report['spearman']:.2f}"
        )
    if auto := report.get("auto_target"):
        notes.append(_describe_auto(auto))
    notes += map(_describe_verdict, report.get("verdicts", []))
    return Table(
        ("", "return", "± se", "sd", "min", "max", "normalised", "steps"),
        [
            (name, *("-" if n is None else show(n) for n in numbers), *others)
            for name, numbers, *others in rows
        ],
        notes,
    )


def _normalized(actor, reference):
    if actor["normalized"] is None:
        return "-"
    error = standard_error(actor["returns"])
    if error:
        error *= 100.0 / abs(reference["high"] - reference["low"])
    return _with_error(actor["normalized"], error, ".1f")


def _with_error(mean, error, form):
    """In one cell; `form` where all are alike, or there is one alone."""
    if not error:
        return _cell(mean, form)
    form = "z,.1f" if error < 1.0 else "z,.0f"
    text = f"{mean:{form}} ± {error:{form}}"
    return text if len(text) < 15 else f"{mean:.0e} ± {error:.0e}"


def _describe_auto(auto):
    target = f"target {number(auto['return'])}, by auto"
    trajectories, within = f"{auto['trajectories']:,}", number(auto["within"])
    if auto["near"] < auto["enough"]:
        return (
            f"{target}: the median, as no return of the {trajectories} trajectories "
            f"has another within {within}"
        )
    return (
        f"{target}: the highest return, of quantile {auto['quantile']:.1%}, with "
        f"enough trajectories near it, {auto['near']:,} of {trajectories} within "
        f"{within} ({auto['enough']:,} are enough)"
    )


def _describe_verdict(verdict):
    best, other = f"target {number(verdict['target'])}", verdict["baseline"]
    if (count := verdict["of_targets"]) > 1:
        best = f"the best of {count} targets ({number(verdict['target'])})"
    more, error = verdict["difference"], verdict["error"]
    if more < 0:
        more, best, other = -more, other, best
    by = number(more)
    if error:
        by += f" ± {number(error)}, {more / error:.1f} standard errors"
    if more and more >= CLEAR * (error or 0.0):
        return f"{best} beats {other} by {by}"
    return f"{best} does not clearly beat {other}: {by}"


def _account_tables(report):
    accounts = {actor["name"]: actor["backtest"] for actor in report["actors"]}
    accounts |= report["backtest_references"] or {}
    periods = report.get("periods_a_year") or BUSINESS_DAYS  # version 0.2 has none
    year = YEARS.get(periods, f"{periods:,.10g} rows")
    notes = [
        "means over the episodes; drawdown: the largest loss since a peak",
        "turnover: how often a year the account is traded over, one way",
        f"annual figures: a year has {year}",
    ]
    return [
        Table(
            ("", *chain.from_iterable((title, "± se") for title in columns)),
            [
                (name, *chain.from_iterable(_mean_and_error(found, columns)))
                for name, found in accounts.items()
                if found is not None
            ],
            notes if columns is ACCOUNTS[-1] else [],
        )
        for columns in ACCOUNTS
    ]


def _mean_and_error(found, columns):
    """A cell of the mean and one of its standard error, of each column."""
    errors = found.get("errors", {})  # an older version has none
    for key, form in columns.values():
        yield _cell(found[key], form), _cell(errors.get(key), form.lstrip("+"))


def _gain_table(report):
    """Beyond the market's luck: the episodes run on the same days."""
    found = {a["name"]: a["gain"] for a in report["actors"] if a.get("gain")}
    return Table(
        ("", f"beyond {MARKET}", "± se"),
        [
            (name, f"{gain['mean']:+.1%}", _cell(gain["error"], ".1%"))
            for name, gain in found.items()
        ],
        [],
    )


def _cell(value, form):
    if value is None:
        return "-"
    text = format(value, form)
    return text if len(text) < 12 else f"{value:.1e}"


def aligned(rows):
    """Lines whose cells stand below each other; a name too long has a line alone."""
    first, *columns = zip(*rows, strict=True)
    widths = [max(map(len, column)) + 2 for column in columns]
    room = min(max(map(len, first)), WIDTH - 2 - sum(widths))
    lines = []
    for name, *cells in rows:
        if len(name) > room:
            lines.append(name)
            name = ""
        line = name.ljust(room) + "".join(map(str.rjust, cells, widths))
        lines.append(line.rstrip())
    return lines

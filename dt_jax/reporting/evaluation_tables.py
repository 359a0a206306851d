# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found: `evaluation.json`, its warnings, its tables.

In go the episodes of each actor and the returns of the data; out come a dict for JSON
and text.
"""

import math
import re
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from dt_jax.system.text import WIDTH, fit
from dt_jax.trading.backtest import (
    BUSINESS_DAYS,
    Curves,
    drawdown,
    figures,
    total_returns,
)

RANDOM = "random actions"  # the actor whose mean return is normalised to 0
WEAK_RANK = 0.5  # targets that steer less than this hardly steer
MARKET = "equal weight"  # the reference beyond which an account gains
CLEAR = 2.0  # standard errors from which on one is better than another
MOST_DAYS = 300  # of the curves of accounts
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


class ActorResult(NamedTuple):
    """The episodes of one actor.

    Attributes:
      target: the return it was asked for, None for a baseline.
      returns, lengths: E float64, raw; E int64.
      info: by name DxE, a row for the reset and each step; what has `assets` and
        `traded` (`backtest.Curves`) and `date` is judged as an account too.
      truncated: episodes that were cut by a time limit.
    """

    name: str
    target: float | None
    returns: np.ndarray
    lengths: np.ndarray
    info: dict[str, np.ndarray]
    truncated: int = 0

    @property
    def curves(self) -> Curves | None:
        if "assets" not in self.info:
            return None
        return Curves(self.info["assets"], self.info["traded"])


class Table(NamedTuple):
    """Cells of text; the first column names the row. Notes are lines below."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str]


def evaluation_report(
    actors: Sequence[ActorResult],
    *,
    environment: str,
    step: int,
    first_seed: int,
    data_returns: dict[str, float],
    longest: int,
    auto_target: dict | None = None,
    score_range: tuple[float, float] | None = None,
    backtest_references: dict[str, Curves] | None = None,
    periods_a_year: float = BUSINESS_DAYS,
) -> dict:
    """All figures, plain for JSON (what is not defined is None), and warnings.

    Args:
      actors: those with a target first; all on the same seeds, from `first_seed` on.
      step: the update of the checkpoint.
      data_returns: of the training data, raw: min, 10 %, median, 90 %, max, mean and
        std. longest: its longest trajectory. auto_target: what `auto_target` of
        data_report.py found, where it was asked for.
      score_range: returns normalised to 0 and to 100; None: the mean of the actor named
        `RANDOM` and the data's 90 % quantile.
      backtest_references: what `backtest.references` gives. periods_a_year: rows of the
        accounts, as `backtest.periods_a_year` counts them in the market's dates.
    """
    if score_range is None:
        low = next(actor.returns.mean() for actor in actors if actor.name == RANDOM)
        low, high = float(low), data_returns["90 %"]
    else:
        low, high = map(float, score_range)

    def facts(actor):
        mean = float(actor.returns.mean())
        return {
            "name": actor.name,
            "target": actor.target,
            "returns": actor.returns.tolist(),
            "lengths": actor.lengths.tolist(),
            "truncated": actor.truncated,
            "mean": mean,
            "std": float(actor.returns.std()),
            "error": standard_error(actor.returns),
            "normalized": None if high == low else 100.0 * (mean - low) / (high - low),
            "backtest": _backtest(actor.curves, periods_a_year),
            "gain": _gain(actor.curves, (backtest_references or {}).get(MARKET)),
        }

    targeted = [actor for actor in actors if actor.target is not None]
    report = {
        "environment": environment,
        "step": step,
        "episodes": len(actors[0].returns),
        "first_seed": first_seed,
        "data": {"returns": data_returns, "longest": int(longest)},
        "auto_target": auto_target,
        "reference": {"low": low, "high": high, "given": score_range is not None},
        "actors": [facts(actor) for actor in actors],
        "spearman": _rank_correlation(
            [actor.target for actor in targeted],
            [actor.returns.mean() for actor in targeted],
        ),
        "verdicts": _verdicts(targeted, actors),
        "backtest_references": backtest_references
        and {
            name: _backtest(curves, periods_a_year)
            for name, curves in backtest_references.items()
        },
        "curves": _curves(actors, backtest_references or {}),
        "periods_a_year": None
        if all(actor.curves is None for actor in actors)
        else periods_a_year,
    }
    return report | {"warnings": _warnings(report)}


def standard_error(values: Sequence[float]) -> float | None:
    """Of their mean; None of one alone."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def _gain(curves, market):
    """What an account gained beyond the market in the same episodes."""
    if curves is None or market is None:
        return None
    beyond_E = total_returns(curves.assets) - total_returns(market.assets)
    return {"mean": float(beyond_E.mean()), "error": standard_error(beyond_E)}


def _verdicts(targeted, actors):
    """Of each baseline but chance: by how much the target with the highest mean return
    is better, paired by the seeds of the episodes."""
    best = max(targeted, key=lambda actor: actor.returns.mean())
    verdicts = []
    for actor in actors:
        if actor.target is None and actor.name != RANDOM:
            differences = best.returns - actor.returns
            verdicts.append(
                {
                    "baseline": actor.name,
                    "target": best.target,
                    "of_targets": len(targeted),
                    "difference": float(differences.mean()),
                    "error": standard_error(differences),
                }
            )
    return verdicts


def _describe_verdict(verdict):
    best, other = f"target {_number(verdict['target'])}", verdict["baseline"]
    if (count := verdict["of_targets"]) > 1:
        best = f"the best of {count} targets ({_number(verdict['target'])})"
    more, error = verdict["difference"], verdict["error"]
    if more < 0:
        more, best, other = -more, other, best
    by = _number(more)
    if error:
        by += f" ± {_number(error)}, {more / error:.1f} standard errors"
    if more and more >= CLEAR * (error or 0.0):
        return f"{best} beats {other} by {by}"
    return f"{best} does not clearly beat {other}: {by}"


def _curves(actors, references):
    """Accounts by day, for pictures: means over the episodes and their standard errors.

    At most MOST_DAYS evenly chosen days, as dates where all episodes run on the same.
    """
    with_accounts = [actor for actor in actors if actor.curves is not None]
    if not with_accounts:
        return None
    longest = max(len(actor.curves.assets) for actor in with_accounts)
    days = np.unique(np.linspace(0, longest - 1, MOST_DAYS).astype(int))
    dates_DxE = np.asarray(with_accounts[0].info.get("date", [[]]))
    dated = len(dates_DxE) == longest and (dates_DxE == dates_DxE[:, :1]).all()

    def summary(values_DxE):
        shown_DxE = values_DxE[days[days < len(values_DxE)]]
        mean_D = np.nanmean(shown_DxE, axis=1)
        others_D = np.isfinite(shown_DxE).sum(axis=1) - 1
        error_D = np.nanstd(shown_DxE, axis=1) / np.sqrt(np.maximum(others_D, 1))
        return {"mean": mean_D.tolist(), "error": error_D.tolist()}

    accounts = {actor.name: actor.curves.assets for actor in with_accounts}
    accounts |= {name: curves.assets for name, curves in references.items()}
    return {
        "dated": bool(dated),
        "days": dates_DxE[days, 0].tolist() if dated else days.tolist(),
        "accounts": {
            name: {
                "assets": summary(assets_DxE),
                "drawdown": summary(-100.0 * drawdown(assets_DxE)),
            }
            for name, assets_DxE in accounts.items()
        },
    }


def _backtest(curves, periods):
    """The mean of each figure over the episodes that have it, and their `errors`."""
    if curves is None:
        return None
    found = figures(curves, periods)
    found = {name: values_E[~np.isnan(values_E)] for name, values_E in found.items()}
    return {
        **{k: float(v_E.mean()) if len(v_E) else None for k, v_E in found.items()},
        "errors": {k: standard_error(v_E) for k, v_E in found.items()},
    }


def _rank_correlation(targets, achieved):
    """Spearman's: 1 where more is achieved whenever more is asked for."""
    if len(targets) < 3 or not np.ptp(targets) or not np.ptp(achieved):
        return None
    return float(np.corrcoef(_ranks(targets), _ranks(achieved))[0, 1])


def _ranks(values):
    """Twice the mean rank of each value, plus a constant: equal values share theirs."""
    ordered = np.sort(values)
    sides = ("left", "right")
    return sum(np.searchsorted(ordered, values, side=side) for side in sides)


def _warnings(report):
    data, longest = report["data"]["returns"], report["data"]["longest"]
    targets = [a["target"] for a in report["actors"] if a["target"] is not None]
    beyond = [t for t in targets if not data["min"] <= t <= data["max"]]
    steps = max(max(actor["lengths"]) for actor in report["actors"])
    warnings = []
    if beyond:
        warnings.append(
            f"targets beyond the data's returns ({_number(data['min'])} to "
            f"{_number(data['max'])}), of which nothing is known: "
            f"{', '.join(map(_number, beyond))}"
        )
    if report["spearman"] is not None and report["spearman"] < WEAK_RANK:
        warnings.append(
            f"achieved returns hardly rise with the {count_targets(report)} targets: "
            f"rank correlation {report['spearman']:.2f}"
        )
    if steps > longest:
        warnings.append(
            f"episodes take up to {steps:,} steps, the longest training trajectory "
            f"{longest:,}: later timesteps were never trained"
        )
    return warnings


def evaluation_scalars(report: dict) -> dict[str, float]:
    """{tag: number} of the report's main figures: evaluation/<figure>/<actor>."""
    scalars = {"evaluation/rank_correlation": report["spearman"]}
    for actor in report["actors"]:
        figures = {"return": actor["mean"], "normalized": actor["normalized"]}
        account = actor["backtest"] or {}
        for key in ("sharpe", "total_return", "max_drawdown"):
            figures[key] = account.get(key)
        who = actor["name"]
        if actor["target"] is not None:
            who = f"target_{actor['target']:.6g}"
        who = re.sub(r"[^\w.:+-]+", "_", who)  # a tag's slashes make groups
        scalars |= {f"evaluation/{key}/{who}": value for key, value in figures.items()}
    return {tag: value for tag, value in scalars.items() if value is not None}


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


def count_targets(report: dict) -> int:
    """Those that the rank correlation is of."""
    return sum(actor["target"] is not None for actor in report["actors"])


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
    target = f"target {_number(auto['return'])}, by auto"
    trajectories, within = f"{auto['trajectories']:,}", _number(auto["within"])
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


def _number(value):
    return f"{value:,.5g}"

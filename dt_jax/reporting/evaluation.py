# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found: the dict of `evaluation.json`, and its main figures.

In go the episodes of each actor and the returns of the data; out comes what JSON can
hold.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

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
MOST_DAYS = 300  # of the curves of accounts


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
            f"targets beyond the data's returns ({number(data['min'])} to "
            f"{number(data['max'])}), of which nothing is known: "
            f"{', '.join(map(number, beyond))}"
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


def count_targets(report: dict) -> int:
    """Those that the rank correlation is of."""
    return sum(actor["target"] is not None for actor in report["actors"])


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


def number(value: float) -> str:
    """With five digits, as in a sentence."""
    return f"{value:,.5g}"

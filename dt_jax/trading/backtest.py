# SPDX-License-Identifier: Apache-2.0
"""How an account did: return, risk and turnover, beside two strategies without skill.

In go account values by day, out come plain figures. D is the days of an episode, the
first one included, E episodes; after the end of a shorter episode stands NaN.
"""

from typing import NamedTuple

import numpy as np

from dt_jax.trading.environment import Rules
from dt_jax.trading.market import Market

DAYS_A_YEAR = 252  # trading days
FLAT = 1e-12  # daily returns that deviate less do so by rounding alone


class Curves(NamedTuple):
    """Accounts by day, each array DxE float64 (or D, of one account).

    Attributes:
      assets: what an account is worth at the closes of the day.
      traded: the worth bought plus sold on the way to this day; 0 on the first.
    """

    assets: np.ndarray
    traded: np.ndarray


def figures(curves: Curves) -> dict[str, float]:
    """The mean over the episodes of each figure of an episode.

    total_return: 0.1 is a gain of 10 %; annual_return: the same growth for 252 days.
    annual_volatility: the sample standard deviation of the daily returns, times the
    root of 252. sharpe: the mean daily return by that deviation, times the root of 252;
    no interest without risk. max_drawdown: the largest loss since a peak, 0.1 is 10 %.
    turnover: how often a year the account is traded over, one way: half of what was
    bought and sold, by the mean assets.

    An account that does not fluctuate (or has one day) has no sharpe: such episodes are
    left out of its mean, which is NaN when none is left.
    """
    episodes = []
    for assets_D, traded_D in zip(curves.assets.T, curves.traded.T, strict=True):
        lived_D = np.isfinite(assets_D)
        episodes.append(_figures(assets_D[lived_D], traded_D[lived_D]))
    means = {}
    for name in episodes[0]:
        known = [episode[name] for episode in episodes if np.isfinite(episode[name])]
        means[name] = float(np.mean(known)) if known else float("nan")
    return means


def _figures(assets_D, traded_D):
    years = (len(assets_D) - 1) / DAYS_A_YEAR
    growth = assets_D[-1] / assets_D[0]
    returns = assets_D[1:] / assets_D[:-1] - 1.0
    deviation = returns.std(ddof=1) if len(returns) > 1 else np.nan
    daily_sharpe = returns.mean() / deviation if deviation > FLAT else np.nan
    return {
        "total_return": growth - 1.0,
        "annual_return": growth ** (1.0 / years) - 1.0,
        "annual_volatility": deviation * np.sqrt(DAYS_A_YEAR),
        "sharpe": daily_sharpe * np.sqrt(DAYS_A_YEAR),
        "max_drawdown": drawdown(assets_D).max(),
        "turnover": traded_D.sum() / 2.0 / assets_D.mean() / years,
    }


def drawdown(assets_D: np.ndarray) -> np.ndarray:
    """By day (the first axis) the loss since the highest value so far, 0.1 is 10 %."""
    return 1.0 - assets_D / np.maximum.accumulate(assets_D)


def references(
    market: Market, rules: Rules, dates_DxE: np.ndarray
) -> dict[str, Curves]:
    """Two strategies without skill on the days of given episodes.

    Args:
      dates_DxE: the days as text, ascending, '' after the end of an episode.
    """
    strategies = {"buy and hold": buy_and_hold, "equal weight": equal_weight}
    found = {}
    for name, strategy in strategies.items():
        assets_DxE = np.full(dates_DxE.shape, np.nan)
        curves = Curves(assets_DxE, np.full_like(assets_DxE, np.nan))
        for episode, dates in enumerate(dates_DxE.T):
            first, last = np.searchsorted(
                market.dates, dates[dates != ""][[0, -1]].astype(market.dates.dtype)
            )
            played = strategy(market.close[first : last + 1], rules)
            for column_DxE, column in zip(curves, played, strict=True):
                column_DxE[: len(column), episode] = column
        found[name] = curves
    return found


def buy_and_hold(close_DxM: np.ndarray, rules: Rules) -> Curves:
    """All cash spent at the first closes, alike on every stock, and kept to the end.

    Shares are fractional. As in the environment, the trades at a day's closes, and
    their fees, show on the next day. At least two days.
    """
    bought = rules.initial_cash / (1.0 + rules.cost)
    assets_D = bought * (close_DxM / close_DxM[0]).mean(axis=1)
    assets_D[0] = rules.initial_cash
    traded_D = np.zeros(len(close_DxM))
    traded_D[1] = bought
    return Curves(assets_D, traded_D)


def equal_weight(close_DxM: np.ndarray, rules: Rules) -> Curves:
    """As `buy_and_hold`, but traded back to equal worths at every day's closes.

    The fees are paid from the stocks themselves: cash stays 0.
    """
    num_days, num_stocks = close_DxM.shape
    assets_D, traded_D = buy_and_hold(close_DxM, rules)
    worth = traded_D[1] / num_stocks
    for day in range(1, num_days):
        held_M = worth * close_DxM[day] / close_DxM[day - 1]
        assets_D[day] = held_M.sum()
        worth = _equal_worth(held_M, rules.cost)
        traded_D[day + 1 : day + 2] = np.abs(worth - held_M).sum()  # none on the last
    return Curves(assets_D, traded_D)


def _equal_worth(held_M, cost):
    """The worth w of each stock with M w + cost x sum |w - held| = sum held.

    The left side rises with w, straight from each worth held to the next.
    """
    held_M = np.sort(held_M)
    traded_M = np.abs(held_M[:, None] - held_M[None]).sum(axis=1)
    return np.interp(held_M.sum(), len(held_M) * held_M + cost * traded_M, held_M)

# SPDX-License-Identifier: Apache-2.0
"""How an account did: return, risk and turnover, beside strategies without skill.

In go account values by day, out come plain figures. D is the days of an episode, the
first one included, E episodes; after the end of a shorter episode stands NaN.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dt_jax.trading.market import Market
from dt_jax.trading.rules import Rules, rules_for

BUSINESS_DAYS = 252  # of a year, the weekends and holidays left out
FLAT = 1e-12  # returns that deviate less do so by rounding alone


class Curves(NamedTuple):
    """Accounts by day, each array DxE float64 (or D, of one account).

    Attributes:
      assets: what an account is worth at the closes of the day.
      traded: the worth bought plus sold on the way to this day; 0 on the first.
    """

    assets: np.ndarray
    traded: np.ndarray


def periods_a_year(dates_D: np.ndarray) -> float:
    """How many rows a market of these dates (ascending) has in a year.

    By the median step of its days: 365 where it is a day and all seven days of the week
    are open, 252 where not all are, 52 for weeks, 12 for months, and so on. Where a day
    has several rows, times their median number. A single day is a business day.
    """
    days, rows = np.unique(dates_D.astype("datetime64[D]"), return_counts=True)
    # Weekends left out, so that a Friday and a Monday are a day apart.
    if len(days) > 1 and np.median(np.busday_count(days[:-1], days[1:])) > 1:
        step = np.median(np.diff(days).astype(int))
        days_a_year = max(1, round(365.25 / step))
    else:
        # A day of the week is open when it is not the exception.
        open_7 = np.bincount(days.astype(int) % 7, minlength=7)
        days_a_year = 365 if 2 * open_7.min() >= open_7.max() else BUSINESS_DAYS
    return float(days_a_year * np.median(rows))


def figures(curves: Curves, periods: float) -> dict[str, np.ndarray]:
    """E float64 of each figure; `periods` make a year.

    total_return: 0.1 is a gain of 10 %; annual_return: the same growth for a year.
    annual_volatility: the sample standard deviation of the returns by row, times the
    root of periods. sharpe: their mean by that deviation, times the root of periods;
    no interest without risk. max_drawdown: the largest loss since a peak, 0.1 is 10 %.
    turnover: how often a year the account is traded over, one way: half of what was
    bought and sold, by the mean assets.

    What is not defined is NaN: an account that does not fluctuate (or has one day) has
    no sharpe.
    """
    episodes = []
    for assets_D, traded_D in zip(curves.assets.T, curves.traded.T, strict=True):
        lived_D = np.isfinite(assets_D)
        episodes.append(_figures(assets_D[lived_D], traded_D[lived_D], periods))
    found = {}
    for name in episodes[0]:
        values_E = np.array([episode[name] for episode in episodes])
        found[name] = np.where(np.isfinite(values_E), values_E, np.nan)
    return found


def _figures(assets_D, traded_D, periods):
    years = (len(assets_D) - 1) / periods
    growth = assets_D[-1] / assets_D[0]
    returns = assets_D[1:] / assets_D[:-1] - 1.0
    deviation = returns.std(ddof=1) if len(returns) > 1 else np.nan
    with np.errstate(over="ignore"):  # a few minutes, as if they were a year
        annual_return = growth ** (1.0 / years) - 1.0
    sharpe = returns.mean() / deviation if deviation > FLAT else np.nan
    return {
        "total_return": growth - 1.0,
        "annual_return": annual_return,
        "annual_volatility": deviation * np.sqrt(periods),
        "sharpe": sharpe * np.sqrt(periods),
        "max_drawdown": drawdown(assets_D).max(),
        "turnover": traded_D.sum() / 2.0 / assets_D.mean() / years,
    }


def total_returns(assets_DxE: np.ndarray) -> np.ndarray:
    """E: of each episode, 0.1 is a gain of 10 %."""
    last_E = np.isfinite(assets_DxE).sum(axis=0) - 1
    return assets_DxE[last_E, np.arange(len(last_E))] / assets_DxE[0] - 1.0


def drawdown(assets_D: np.ndarray) -> np.ndarray:
    """By day (the first axis) the loss since the highest value so far, 0.1 is 10 %."""
    return 1.0 - assets_D / np.maximum.accumulate(assets_D)


def references(
    market: Market, rules: Rules | Mapping, dates_DxE: np.ndarray
) -> dict[str, Curves]:
    """Two strategies without skill on the days of given episodes.

    Args:
      dates_DxE: the days as text, ascending, '' after the end of an episode.
    """
    rules = rules_for(market.tickers, rules)
    found = {}
    for name in ("buy_and_hold", "equal_weight"):
        assets_DxE = np.full(dates_DxE.shape, np.nan)
        curves = Curves(assets_DxE, np.full_like(assets_DxE, np.nan))
        for episode, dates in enumerate(dates_DxE.T):
            first, last = np.searchsorted(
                market.dates, dates[dates != ""][[0, -1]].astype(market.dates.dtype)
            )
            played = STRATEGIES[name](market.close[first : last + 1], rules)
            for column_DxE, column in zip(curves, played, strict=True):
                column_DxE[: len(column), episode] = column
        found[name.replace("_", " ")] = curves
    return found


def cash(close_DxM: np.ndarray, rules: Rules) -> Curves:
    """Nothing bought: the cash is kept, the shares of the start sold at the first
    closes, which shows on the next day. At least two days."""
    num_days, num_stocks = close_DxM.shape
    held_M = close_DxM[0] * rules.initial_shares
    fees = held_M @ _by_stock(rules.cost_of_sale, num_stocks)
    assets_D = np.full(num_days, rules.initial_cash + held_M.sum() - fees)
    assets_D[0] += fees
    traded_D = np.zeros(num_days)
    traded_D[1] = held_M.sum()
    return Curves(assets_D, traded_D)


def buy_and_hold(close_DxM: np.ndarray, rules: Rules) -> Curves:
    """All cash spent at the first closes, alike on every stock, and kept to the end.

    Shares are fractional; those of the start are kept. As in the environment, the
    trades at a day's closes, and their fees, show on the next day. At least two days.

    Args:
      rules: as `rules_for` gives them.
    """
    num_days, num_stocks = close_DxM.shape
    bought = rules.initial_cash / (num_stocks + _by_stock(rules.cost, num_stocks).sum())
    held_M = close_DxM[0] * rules.initial_shares
    assets_D = (close_DxM / close_DxM[0]) @ (held_M + bought)
    assets_D[0] = rules.initial_cash + held_M.sum()
    traded_D = np.zeros(num_days)
    traded_D[1] = bought * num_stocks
    return Curves(assets_D, traded_D)


def equal_weight(close_DxM: np.ndarray, rules: Rules) -> Curves:
    """As `buy_and_hold`, but traded to equal worths at every day's closes.

    The fees are paid from the cash, then from the stocks themselves: cash stays 0.
    """
    num_days, num_stocks = close_DxM.shape
    buy_M, sell_M = (
        _by_stock(cost, num_stocks) for cost in (rules.cost, rules.cost_of_sale)
    )
    cash, held_M = rules.initial_cash, close_DxM[0] * rules.initial_shares
    assets_D, traded_D = np.zeros(num_days), np.zeros(num_days)
    assets_D[0] = cash + held_M.sum()
    for day in range(1, num_days):
        worth = _equal_worth(held_M, cash, buy_M, sell_M)
        traded_D[day] = np.abs(worth - held_M).sum()
        cash, held_M = 0.0, worth * close_DxM[day] / close_DxM[day - 1]
        assets_D[day] = held_M.sum()
    return Curves(assets_D, traded_D)


# `Rules.benchmark` names one of them.
STRATEGIES = {"cash": cash, "buy_and_hold": buy_and_hold, "equal_weight": equal_weight}


def _equal_worth(held_M, cash, buy_M, sell_M):
    """The worth w of each stock with M w + the fees of trading to it = cash + sum held.

    The left side rises with w, straight from each worth held to the next.
    """
    whole = cash + held_M.sum()
    worths_W = np.sort([*held_M, whole])
    change_WxM = worths_W[:, None] - held_M
    fees_WxM = (
        np.maximum(change_WxM, 0.0) * buy_M + np.maximum(-change_WxM, 0.0) * sell_M
    )
    return np.interp(whole, len(held_M) * worths_W + fees_WxM.sum(axis=1), worths_W)


def _by_stock(cost, num_stocks):
    return np.zeros(num_stocks) + cost

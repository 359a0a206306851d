# SPDX-License-Identifier: Apache-2.0
"""What is fixed while one trades: the first cash and shares, fees, sizes, a risk limit.

In come `Rules` or a mapping of its fields, as JSON has them; out come `Rules` that are
checked against a market's tickers. M is stocks.
"""

import difflib
import numbers
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dt_jax.system.text import check_choice

PerTicker = float | Sequence[float] | Mapping[str, float]


class Rules(NamedTuple):
    """What FinRL fixes, with its values.

    What may differ by ticker is one number for all of them, M numbers in the order of
    the market's tickers, or a mapping by ticker.

    Attributes:
      initial_cash: in the currency of the prices.
      cost: the fee of a purchase, as a fraction of its worth; may differ by ticker.
      hmax: how many shares an action of 1 asks for.
      reward_scaling: reward for one unit of money gained.
      risk_limit: all shares are sold at this level of risk and above; None: never.
      sell_cost: the fee of a sale; None: as `cost`. May differ by ticker.
      initial_shares: held at the start, whole numbers; may differ by ticker, and a
        mapping need not name those of which there are none.
      benchmark: rewards are what the account gains beyond the same money in this
        strategy of `backtest.STRATEGIES`, with the same fees: 'cash', 'buy_and_hold' or
        'equal_weight'. Then a return tells what the trader added to the market's luck.
        None: rewards are what the account gains.
    """

    initial_cash: float = 1e6
    cost: PerTicker = 1e-3
    hmax: int = 100
    reward_scaling: float = 1e-4
    risk_limit: float | None = None
    sell_cost: PerTicker | None = None
    initial_shares: PerTicker = 0
    benchmark: str | None = None

    @property
    def cost_of_sale(self) -> PerTicker:
        return self.cost if self.sell_cost is None else self.sell_cost


FINRL = Rules()
BENCHMARKS = ("cash", "buy_and_hold", "equal_weight")
PER_TICKER = ("cost", "sell_cost", "initial_shares")
AT_LEAST = dict.fromkeys((*PER_TICKER, "initial_cash", "hmax"), 0.0)
BELOW = {"cost": 1.0, "sell_cost": 1.0}
# What FinRL's environment calls them, to answer who gives these.
FINRL_NAMES = {
    "initial_amount": "initial_cash",
    "buy_cost_pct": "cost",
    "sell_cost_pct": "sell_cost",
    "num_stock_shares": "initial_shares",
    "turbulence_threshold": "risk_limit",
}


def rules_for(
    tickers: Sequence[str], given: Rules | Mapping, changes: Mapping | None = None
) -> Rules:
    """Rules whose fields by ticker are numbers, or M float64 in the order of `tickers`.

    Args:
      given: `Rules`, or a mapping of some of its fields; the others are FinRL's.
      changes: fields that replace those.

    Raises:
      ValueError: a field does not exist, or is of the wrong kind or size.
    """
    if isinstance(given, Mapping):
        given, changes = FINRL, {**given, **(changes or {})}
    if not isinstance(given, Rules):
        raise ValueError(f"rules={given!r}: expected Rules or a mapping of its fields")
    for name in changes or {}:
        if name not in Rules._fields:
            raise ValueError(f"rules: {name!r}: {unknown(name, Rules._fields)}")
    rules = given._replace(**(changes or {}))
    return Rules(
        **{name: _field(name, getattr(rules, name), tickers) for name in rules._fields}
    )


def unknown(name: str, known: Sequence[str]) -> str:
    """What to answer to a name that is not `known`: the nearest right one."""
    names = [*known, *(old for old, new in FINRL_NAMES.items() if new in known)]
    nearest = difflib.get_close_matches(str(name), names, n=1)
    if not nearest:
        return f"no such name, expected one of {', '.join(known)}"
    return f"no such name; did you mean {FINRL_NAMES.get(nearest[0], nearest[0])}?"


def _field(name, value, tickers):
    if value is None and Rules._field_defaults[name] is None:
        return None
    if name == "benchmark":
        check_choice(name, value, BENCHMARKS)
        return value
    if name in PER_TICKER and isinstance(value, Mapping):
        value = _in_order(name, value, tickers)
    several = name in PER_TICKER and isinstance(value, list | tuple | np.ndarray)
    if several and len(value) != len(tickers):
        raise ValueError(
            f"{name}: found {len(value)} numbers, expected one, or one for each of "
            f"{len(tickers)} tickers"
        )
    low, high = AT_LEAST.get(name, -np.inf), BELOW.get(name, np.inf)
    for number in value if several else [value]:
        if not (
            isinstance(number, numbers.Real)
            and not isinstance(number, bool)
            and low <= number < high
            and np.isfinite(number)
            and (name != "initial_shares" or number % 1 == 0)
        ):
            kind = "a whole number" if name == "initial_shares" else "a number"
            raise ValueError(
                f"{name}={number!r}: expected {kind}"
                + (f" of at least {low:g}" if np.isfinite(low) else "")
                + (f" and below {high:g}" if np.isfinite(high) else "")
                + (" for a ticker" if several else "")
            )
    return np.array(value, np.float64) if several else value


def _in_order(name, by_ticker, tickers):
    by_ticker = {str(ticker): number for ticker, number in by_ticker.items()}
    for ticker in by_ticker:
        if ticker not in tickers:
            raise ValueError(
                f"{name}: no ticker {ticker!r}, found {', '.join(tickers)}"
            )
    if name == "initial_shares":
        by_ticker = dict.fromkeys(tickers, 0) | by_ticker
    for ticker in tickers:
        if ticker not in by_ticker:
            raise ValueError(
                f"{name}: nothing for {ticker}, expected a number for each ticker"
            )
    return [by_ticker[ticker] for ticker in tickers]

# SPDX-License-Identifier: Apache-2.0
"""Prices of stocks by day, with indicators of them: complete and finite.

In comes a table (`table.py`), out comes a `Market`. M is stocks, D days (or the
timestamps of a table that is finer), I indicators.
"""

from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dt_jax.trading.indicators import INDICATORS, compute_indicators
from dt_jax.trading.table import read_table

if TYPE_CHECKING:
    import pandas


class Market(NamedTuple):
    """Prices of M stocks on D days.

    Attributes:
      dates: D datetime64[D], ascending; datetime64[s] of a table with times.
      tickers: M, alphabetical.
      close: DxM float64. indicators: DxIxM float64, in the order of `indicator_names`.
      risk: D float64, the level that `Rules.risk_limit` looks at, or None.
      unused: columns that the table has beside.
    """

    dates: np.ndarray
    tickers: tuple[str, ...]
    close: np.ndarray
    indicators: np.ndarray
    risk: np.ndarray | None = None
    indicator_names: tuple[str, ...] = INDICATORS
    unused: tuple[str, ...] = ()

    def between(self, start: str | None, end: str | None) -> "Market":
        """The days from `start` to before `end`; None: from the first, to the last."""
        days = slice(*rows_between(self.dates, start, end))
        return self._replace(
            dates=self.dates[days],
            close=self.close[days],
            indicators=self.indicators[days],
            risk=None if self.risk is None else self.risk[days],
        )

    def __repr__(self) -> str:
        days = f"{self.dates[0]} to {self.dates[-1]}, {len(self.dates):,} "
        days += "days" if self.dates.dtype == "datetime64[D]" else "times"
        return f"Market({len(self.tickers)} stocks, {days})"


def load_market(
    table: "str | Path | pandas.DataFrame",
    *,
    start: str | None = None,
    end: str | None = None,
    drop: Collection[str] = (),
    risk: str | None = None,
    indicators: Collection[str] = INDICATORS,
) -> Market:
    """Read a FinRL-style table: a row for each ticker and day, or each finer time.

    What `start`, `end` and `drop` leave must be complete, the rest need not be.

    Args:
      table: a CSV (also .gz) or Parquet file, or a pandas frame, with columns `date`,
        `tic` (or `ticker`, `symbol`) and `close`, in any capitals.
      start, end: the first day to keep, and the first one after those kept.
      drop: tickers to leave out. risk: a column for `Market.risk`, such as "vix".
      indicators: columns by name. Those of `INDICATORS` that the table lacks are
        computed, by stockstats' formulas, from close and from `high` and `low` where it
        has them; over the kept days and all complete ones right before these.

    Raises:
      FileNotFoundError, ValueError: in one line, which file, column, day and ticker.
    """
    drop, indicators = _names("drop", drop), _names("indicators", indicators)
    ours = {name.lower(): name for name in INDICATORS}
    indicators = tuple(ours.get(name.lower(), name) for name in indicators)
    if not isinstance(risk, str | None):
        raise ValueError(f"risk={risk!r}: expected the name of a column, or None")
    table = read_table(table)
    needed = ["date", "tic", "close", *([risk] if risk else ())]
    needed += [name for name in indicators if name not in INDICATORS]
    labels = {name: table.label(name) for name in needed}
    # Of what may be absent: it is computed, or not known.
    labels |= {name: table.label(name, None) for name in indicators}
    absent = [name for name in indicators if labels[name] is None]
    if absent:
        labels |= {name: table.label(name, None) for name in ("high", "low")}

    left_N = table.without(drop)
    dates_D = np.unique(table.dates[left_N])
    first, stop = rows_between(dates_D, start, end, f"{table.name}: ")
    dates_D = dates_D[:stop]
    kept_N = left_N & (table.dates >= dates_D[first]) & (table.dates <= dates_D[-1])
    grid = table.grid(dates_D, table.tickers_of(kept_N))
    grid.check_rows(first)

    def numbers(name, above=-np.inf, empty=np.nan):
        values_DxM = grid.numbers(labels[name], empty)
        grid.check_numbers(labels[name], values_DxM, first, above)
        return values_DxM

    close_DxM = numbers("close", above=0.0)
    found = {name: numbers(name)[first:] for name in indicators if labels[name]}
    if absent:
        # An empty cell is no fault here: such a day has no range.
        prices = (
            close_DxM,
            *(
                numbers(name, empty=close_DxM) if labels[name] else close_DxM
                for name in ("high", "low")
            ),
        )
        computed_DxIxM = _indicators_from(first, *prices)
        found |= {name: computed_DxIxM[:, INDICATORS.index(name)] for name in absent}
    indicators_DxIxM = np.empty((stop - first, len(indicators), len(grid.tickers)))
    for place, name in enumerate(indicators):
        indicators_DxIxM[:, place] = found[name]
    used = {*labels.values()}
    return Market(
        dates_D[first:],
        grid.tickers,
        close_DxM[first:],
        indicators_DxIxM,
        numbers(risk)[first:, 0] if risk else None,
        indicators,
        tuple(
            str(label)
            for label in table.frame
            # A CSV's column without a name holds the numbers of its rows.
            if label not in used and not str(label).startswith("Unnamed: ")
        ),
    )


def _names(argument, given):
    """A tuple of text, each once."""
    if isinstance(given, str) or not isinstance(given, Collection):
        raise ValueError(f"{argument}={given!r}: expected a list of names")
    names = tuple(map(str, given))
    if len({*names}) < len(names):
        raise ValueError(f"{argument}={given!r}: expected each name once")
    return names


def _indicators_from(first, close_DxM, high_DxM, low_DxM):
    """The indicators of the days from `first` on, and of what is sound before it."""
    sound_DxM = np.isfinite(close_DxM + high_DxM + low_DxM) & (close_DxM > 0.0)
    faults = np.flatnonzero(~sound_DxM[:first].all(axis=1))
    begin = faults[-1] + 1 if len(faults) else 0
    prices = (price_DxM[begin:] for price_DxM in (close_DxM, high_DxM, low_DxM))
    return compute_indicators(*prices)[first - begin :]


def rows_between(
    dates_D: np.ndarray, start: str | None, end: str | None, of: str = ""
) -> tuple[int, int]:
    """The first row from the day `start` on, and the first one from `end` on.

    Raises:
      ValueError: there is no day between them, or one is no day; it begins with `of`.
    """
    first = 0 if start is None else np.searchsorted(dates_D, _moment("start", start))
    stop = len(dates_D)
    if end is not None:
        stop = np.searchsorted(dates_D, _moment("end", end))
    if first >= stop:
        raise ValueError(
            f"{of}found no day from {start} to before {end}, "
            f"expected some of {dates_D[0]} to {dates_D[-1]}"
        )
    return int(first), int(stop)


def _moment(argument, given):
    try:
        # NumPy alone reads 20200701 as a year.
        moment = datetime.fromisoformat(given) if isinstance(given, str) else given
        if isinstance(moment, datetime):
            moment = moment.replace(tzinfo=None)  # as the table's times
        moment = np.datetime64(moment)
    except (ValueError, TypeError):
        moment = np.datetime64("NaT")
    if np.isnat(moment):
        raise ValueError(f"{argument}={given!r}: expected a day such as '2020-07-01'")
    return moment

# SPDX-License-Identifier: Apache-2.0
"""Prices of stocks by day, from a FinRL-style table, and eight indicators of them.

In comes a file or a pandas frame, out comes a `Market` that is complete and finite. M
is stocks, D days, I indicators.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas

# In FinRL's order: within a state, one indicator of all stocks follows another.
INDICATORS = (
    "macd",
    "boll_ub",
    "boll_lb",
    "rsi_30",
    "cci_30",
    "dx_30",
    "close_30_sma",
    "close_60_sma",
)
MACD, CCI = INDICATORS.index("macd"), INDICATORS.index("cci_30")
WARM_UP_DAYS = 60  # the longest window of an indicator


class Market(NamedTuple):
    """Prices of M stocks on D days.

    Attributes:
      dates: D datetime64[D], ascending. tickers: M, alphabetical.
      close: DxM float64. indicators: DxIxM float64, in the order of `INDICATORS`.
      risk: D float64, the level that `Rules.risk_limit` looks at, or None.
    """

    dates: np.ndarray
    tickers: tuple[str, ...]
    close: np.ndarray
    indicators: np.ndarray
    risk: np.ndarray | None = None

    def __repr__(self) -> str:
        days = f"{self.dates[0]} to {self.dates[-1]}, {len(self.dates):,} days"
        return f"Market({len(self.tickers)} stocks, {days})"


def load_market(
    table: "str | Path | pandas.DataFrame",
    *,
    start: str | None = None,
    end: str | None = None,
    drop: Collection[str] = (),
    risk: str | None = None,
) -> Market:
    """Read a FinRL-style table: a row for each day and ticker.

    Args:
      table: a CSV (also .gz) or Parquet file, or a pandas frame, with columns `date`,
        `tic`, `close`. Indicators it lacks are computed over all its days, by
        stockstats' formulas, from close and from `high` and `low` where it has them.
      start, end: the first day to keep, and the first one after those kept.
      drop: tickers to leave out. risk: a column for `Market.risk`, such as "vix".

    Raises:
      FileNotFoundError, ValueError: in one line, which file, column, day and ticker.
    """
    name, frame = ("table", table) if hasattr(table, "columns") else _read(Path(table))
    for column in ("date", "tic", "close", *([risk] if risk else [])):
        if column not in frame.columns:
            found = ", ".join(map(str, frame.columns))
            raise ValueError(f"{name}: column {column!r} is missing, found {found}")
    for ticker in sorted(set(drop).difference(frame["tic"])):
        found = ", ".join(sorted(frame["tic"].astype(str).unique()))
        raise ValueError(f"{name}: no ticker {ticker!r} to drop, found {found}")
    frame = _by_day_and_ticker(name, frame[~frame["tic"].isin(list(drop))])
    dates, tickers = frame.index.levels
    dates_D = dates.to_numpy().astype("datetime64[D]")

    close_DxM = _numbers(name, frame, "close", above=0.0)
    absent = [column for column in INDICATORS if column not in frame.columns]
    if absent:
        for column in ("high", "low"):
            # Also where a cell is empty: such a day has no range, which is no fault.
            known = frame.get(column, frame["close"])
            frame[column] = known.fillna(frame["close"])
        high_DxM, low_DxM = (
            _numbers(name, frame, column) for column in ("high", "low")
        )
        computed_DxIxM = compute_indicators(close_DxM, high_DxM, low_DxM)
        for column in absent:
            frame[column] = computed_DxIxM[:, INDICATORS.index(column)].ravel()

    first = 0 if start is None else np.searchsorted(dates_D, np.datetime64(start))
    stop = len(dates_D) if end is None else np.searchsorted(dates_D, np.datetime64(end))
    if first >= stop:
        raise ValueError(
            f"{name}: found no day from {start} to before {end}, "
            f"expected some of {dates_D[0]} to {dates_D[-1]}"
        )
    indicators_DxIxM = np.stack(
        [_numbers(name, frame, column)[first:stop] for column in INDICATORS], axis=1
    )
    return Market(
        dates_D[first:stop],
        tuple(tickers),
        close_DxM[first:stop],
        indicators_DxIxM,
        _numbers(name, frame, risk)[first:stop, 0] if risk else None,
    )


def _read(path):
    import pandas

    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, expected a CSV or Parquet table"
        )
    try:
        if path.suffix == ".parquet":
            return path, pandas.read_parquet(path)
        return path, pandas.read_csv(path, dtype={"date": str, "tic": str})
    except Exception as error:  # pandas, gzip and Arrow each raise their own kinds
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a CSV or Parquet table ({reason})") from error


def _by_day_and_ticker(name, frame):
    """A copy with a row for every day and ticker, in this order; it was complete."""
    import pandas

    if frame.empty:
        raise ValueError(f"{name}: found no rows, expected one for each day and ticker")
    days = frame["date"].astype(str).str[:10]  # without the time, where there is one
    days = pandas.to_datetime(days, format="ISO8601", errors="coerce")
    for column, values, expected in (
        ("date", days, "a day such as 2020-07-01"),
        ("tic", frame["tic"], "a ticker"),
    ):
        if values.isna().any():
            row = int(np.argmax(values.isna()))
            raise ValueError(
                f"{name}: column {column!r}, row {row}: found "
                f"{frame[column].iloc[row]}, expected {expected}"
            )
    keys = pandas.MultiIndex.from_arrays([days, frame["tic"].astype(str)])
    every = pandas.MultiIndex.from_product(
        [keys.unique(level).sort_values() for level in (0, 1)]
    )
    twice, never = keys[keys.duplicated()], every.difference(keys)
    for wrong, found in ((twice, "more than one row"), (never, "no row")):
        if len(wrong):
            day, ticker = wrong[0]
            raise ValueError(
                f"{name}: {ticker} on {day.date()}: found {found}, expected one"
            )
    return frame.set_axis(keys).reindex(every)


def _numbers(name, frame, column, above=-np.inf):
    """A column of the completed frame as DxM float64, every one finite and `above`."""
    import pandas

    values = pandas.to_numeric(frame[column], errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > above)))
    if len(bad):
        day, ticker = frame.index[bad[0]]
        raise ValueError(
            f"{name}: column {column!r}, {ticker} on {day.date()}: found "
            f"{frame[column].iloc[bad[0]]}, expected a number"
            + (f" above {above:g}" if above > -np.inf else "")
        )
    return values.reshape(frame.index.levshape)


def compute_indicators(
    close_DxM: np.ndarray, high_DxM: np.ndarray, low_DxM: np.ndarray
) -> np.ndarray:
    """DxIxM float64: the eight `INDICATORS` by the formulas of stockstats 0.6.

    Windows are as long as the days before allow; a quotient that is not defined (no
    movement yet) is neutral: rsi 50, cci and dx 0. stockstats itself gives a cci of 0
    before day 30, and Bollinger bands that are not a number on day 1.
    """
    middle_DxM = _rolling(_mean, close_DxM, 20)
    band_DxM = 2.0 * _rolling(_std, close_DxM, 20)

    change_DxM = np.diff(close_DxM, axis=0, prepend=close_DxM[:1])
    gain_DxM = _smoothed(np.maximum(change_DxM, 0.0), 1 / 30)
    loss_DxM = _smoothed(np.maximum(-change_DxM, 0.0), 1 / 30)

    typical_DxM = (high_DxM + low_DxM + close_DxM) / 3.0
    excess_DxM = typical_DxM - _rolling(_mean, typical_DxM, 30)
    spread_DxM = 0.015 * _rolling(_mean_deviation, typical_DxM, 30)

    rise_DxM = np.diff(high_DxM, axis=0, prepend=high_DxM[:1])
    fall_DxM = -np.diff(low_DxM, axis=0, prepend=low_DxM[:1])
    up_DxM = _smoothed(np.maximum(rise_DxM, 0.0) * (rise_DxM > fall_DxM), 1 / 30)
    down_DxM = _smoothed(np.maximum(fall_DxM, 0.0) * (fall_DxM > rise_DxM), 1 / 30)

    indicators = {
        "macd": _smoothed(close_DxM, 2 / 13) - _smoothed(close_DxM, 2 / 27),
        "boll_ub": middle_DxM + band_DxM,
        "boll_lb": middle_DxM - band_DxM,
        "rsi_30": 100.0 * _quotient(gain_DxM, gain_DxM + loss_DxM, 0.5),
        "cci_30": _quotient(excess_DxM, spread_DxM, 0.0),
        "dx_30": 100.0 * _quotient(np.abs(up_DxM - down_DxM), up_DxM + down_DxM, 0.0),
        "close_30_sma": _rolling(_mean, close_DxM, 30),
        "close_60_sma": _rolling(_mean, close_DxM, 60),
    }
    return np.stack([indicators[name] for name in INDICATORS], axis=1)


def _rolling(statistic, values_DxM, days):
    return np.stack(
        [
            statistic(values_DxM[max(0, day + 1 - days) : day + 1])
            for day in range(len(values_DxM))
        ]
    )


def _mean(window_WxM):
    return window_WxM.mean(axis=0)


def _std(window_WxM):
    if len(window_WxM) == 1:
        return np.zeros_like(window_WxM[0])
    return window_WxM.std(axis=0, ddof=1)


def _mean_deviation(window_WxM):
    return np.abs(window_WxM - window_WxM.mean(axis=0)).mean(axis=0)


def _smoothed(values_DxM, weight):
    """The exponentially weighted mean over all days so far, weights summing to one."""
    means_DxM = np.empty_like(values_DxM)
    total, count = 0.0, 0.0
    for day, values in enumerate(values_DxM):
        total = values + (1.0 - weight) * total
        count = 1.0 + (1.0 - weight) * count
        means_DxM[day] = total / count
    return means_DxM


def _quotient(above, below, undefined):
    return np.divide(above, below, out=np.full_like(above, undefined), where=below != 0)

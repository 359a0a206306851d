# SPDX-License-Identifier: Apache-2.0
"""Tables become markets, or are refused in one line; indicators are stockstats'."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dt_jax.trading.environment import (
    TradingEnv,
)
from dt_jax.trading.indicators import INDICATORS, compute_indicators
from dt_jax.trading.market import load_market


def test_no_jax_and_no_pandas_before_a_table_is_read():
    code = "import sys, dt_jax.trading; print(*{'jax', 'pandas'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root
    )
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


def frame_of(days=70, tickers=("MMM", "AA", "ZZ"), **columns):
    """A table in an order that is neither by day nor by ticker."""
    rng = np.random.default_rng(1)
    dates = pd.date_range("2020-01-01", periods=days).strftime("%Y-%m-%d")
    rows = [(d, t) for t in tickers for d in dates]
    frame = pd.DataFrame(rows, columns=["date", "tic"])
    frame["close"] = rng.uniform(50, 100, len(rows))
    for name, values in columns.items():
        frame[name] = values
    return frame.sample(frac=1.0, random_state=0).reset_index(drop=True)


def test_tables_of_every_kind_are_the_same_market(tmp_path):
    frame = frame_of(vix=20.0)
    frame.to_csv(tmp_path / "prices.csv", index=False)
    frame.to_csv(tmp_path / "prices.csv.gz")
    frame.to_parquet(tmp_path / "prices.parquet")
    typed = frame.assign(date=pd.to_datetime(frame["date"]))
    compact = frame.assign(date=frame["date"].str.replace("-", "").astype(int))
    stamped = frame.assign(date=frame["date"] + " 00:00:00-05:00")
    tables = [tmp_path / name for name in ("prices.csv.gz", "prices.parquet")]
    markets = [
        load_market(table, risk="vix")
        for table in (
            str(tmp_path / "prices.csv"),
            *tables,
            frame,
            typed,
            compact,
            stamped,
        )
    ]
    for market in markets:
        assert market.tickers == ("AA", "MMM", "ZZ")
        assert (market.dates == np.arange("2020-01-01", "2020-03-11", dtype="M8")).all()
        assert market.risk.tolist() == [20.0] * 70
        assert market.unused == ()
        for ours, first in zip(market[2:5], markets[0][2:5], strict=True):
            np.testing.assert_allclose(ours, first, rtol=1e-12, atol=1e-12)
    by_hand = frame.pivot(index="date", columns="tic", values="close").to_numpy()
    assert (load_market(frame).close == by_hand).all()
    assert load_market(frame).risk is None
    assert TradingEnv(tmp_path / "prices.csv").market.close.shape == (70, 3)


def test_indicators_are_kept_or_computed_over_all_days():
    frame = frame_of(rsi_30=7.0, high=120.0, low=1.0, vix=np.arange(210) % 70)
    empty = np.flatnonzero((frame["tic"] == "AA") & (frame["date"] == "2020-02-28"))
    frame.loc[empty, ["high", "low"]] = np.nan
    market = load_market(
        frame, start="2020-03-01", end="2020-03-05", drop=["MMM"], risk="vix"
    )
    assert market.risk.tolist() == [60.0, 61.0, 62.0, 63.0]
    assert market.tickers == ("AA", "ZZ")
    assert market.dates.astype(str).tolist() == [f"2020-03-0{day}" for day in "1234"]
    close_DxM, high_DxM, low_DxM = (
        frame.fillna({"high": frame["close"], "low": frame["close"]})
        .pivot(index="date", columns="tic", values=name)[["AA", "ZZ"]]
        .to_numpy()
        for name in ("close", "high", "low")
    )
    expected_DxIxM = compute_indicators(close_DxM, high_DxM, low_DxM)[60:64]
    expected_DxIxM[:, INDICATORS.index("rsi_30")] = 7.0
    np.testing.assert_allclose(market.indicators, expected_DxIxM, rtol=1e-12)
    assert list(frame.columns)[3:] == ["rsi_30", "high", "low", "vix"], "it was changed"


def missing(frame, ticker, *dates):
    return frame[~((frame.tic == ticker) & frame.date.isin(dates))]


def test_only_what_is_kept_must_be_complete():
    """Before `start` a ticker is not yet listed, and a level of risk warms up."""
    whole = frame_of(vix=np.arange(210) % 70, my_mean=1.0)
    late = whole[(whole.tic != "ZZ") | (whole.date >= "2020-02-10")]
    late = late.assign(
        vix=late["vix"].where(late.date >= "2020-02-10"),
        my_mean=late["my_mean"].where(late.date >= "2020-02-01"),
        rsi_30=np.where(late.date >= "2020-02-10", 7.0, np.inf),
    )
    late = pd.concat([late, late[late.date == "2020-01-05"].iloc[:1]])  # there twice
    kept = load_market(
        late,
        start="2020-02-10",
        risk="vix",
        indicators=["my_mean", "rsi_30", "close_60_sma"],
    )
    assert kept.tickers == ("AA", "MMM", "ZZ")
    assert kept.risk.tolist() == list(range(40, 70))
    close_DxM = load_market(whole).close[40:]
    assert (kept.close == close_DxM).all()
    # Before the first complete day nothing of the mean is known.
    expected_DxM = [close_DxM[: day + 1].mean(axis=0) for day in range(30)]
    np.testing.assert_allclose(kept.indicators[:, 2], expected_DxM, rtol=1e-12)
    with pytest.raises(ValueError, match="ZZ on 2020-02-09: found no row, expected"):
        load_market(late, start="2020-02-09")
    # What is left out, or comes later, is not asked for either.
    frame = missing(whole, "ZZ", "2020-02-20", "2020-03-03")
    assert len(load_market(frame, drop=["ZZ"]).dates) == 70
    frame.loc[frame.date == "2020-03-05", "close"] = np.nan
    assert len(load_market(frame, start="2020-02-21", end="2020-03-03").dates) == 11
    # A ticker that is not listed any more is none of the market.
    gone = whole[(whole.tic != "ZZ") | (whole.date < "2020-02-10")]
    assert load_market(gone, start="2020-02-10").tickers == ("AA", "MMM")


def test_indicators_see_the_complete_days_before_the_start():
    whole = frame_of(high=110.0, low=40.0)
    names = ("close_60_sma", "rsi_30", "dx_30")

    def begins(frame, day):
        """Whether the indicators are those of a table that begins on this day."""
        market = load_market(frame, start="2020-02-20", indicators=names)
        later = load_market(whole[whole.date >= day], indicators=names)
        expected_DxIxM = later.between("2020-02-20", None).indicators
        return np.allclose(market.indicators, expected_DxIxM, rtol=1e-12)

    assert begins(whole, "2020-01-01")
    assert not begins(whole, "2020-01-02")
    gaps = missing(whole, "ZZ", "2020-01-05", "2020-01-20")
    assert begins(gaps, "2020-01-21")
    for column, value in (("close", np.nan), ("close", 0.0), ("high", np.inf)):
        frame = whole.copy()
        frame.loc[(frame.date == "2020-02-01") & (frame.tic == "AA"), column] = value
        assert begins(frame, "2020-02-02")
    twice = pd.concat([whole, whole[whole.date == "2020-02-18"].iloc[:1]])
    assert begins(twice, "2020-02-19")
    assert begins(missing(whole, "AA", "2020-02-19"), "2020-02-20")


def test_indicators_by_name_of_the_table_or_our_own():
    frame = frame_of(Sentiment=np.arange(210.0), volume=5, macd=2.0, high=120.0, day=0)
    market = load_market(frame, indicators=("close_30_SMA", "sentiment", "MACD"))
    assert market.indicator_names == ("close_30_sma", "sentiment", "macd")
    by_hand = frame.pivot(index="date", columns="tic", values="Sentiment").to_numpy()
    assert (market.indicators[:, 1] == by_hand).all()
    assert (market.indicators[:, 2] == 2.0).all()
    assert (market.indicators[:, 0] == load_market(frame).indicators[:, 6]).all()
    assert market.unused == ("volume", "day")
    assert load_market(frame).unused == ("Sentiment", "volume", "day")
    assert load_market(frame, indicators=["macd"], risk="volume").unused == (
        *("Sentiment", "high", "day"),
    )
    none = load_market(frame, indicators=[])
    assert none.indicators.shape == (70, 0, 3)
    assert TradingEnv(none).reset()[0][4:].tolist() == [0.0] * 3
    environment = TradingEnv(frame, indicators=["sentiment", "volume"])
    assert environment.reset()[0].shape == (1 + 4 * 3,)
    assert environment.reset()[0][7:].tolist() == [*by_hand[0], 5.0, 5.0, 5.0]


HOURLY = pd.DataFrame(
    {
        "timestamp": np.repeat(
            pd.date_range("2020-07-01 09:30", periods=3, freq="h").append(
                pd.date_range("2020-07-02 09:30", periods=3, freq="h")
            ),
            2,
        ),
        "symbol": ["A", "B"] * 6,
        "close": np.arange(1.0, 13.0),
    }
)


def test_rows_finer_than_a_day(tmp_path):
    HOURLY.to_csv(tmp_path / "hours.csv", index=False)
    zoned = HOURLY.assign(timestamp=HOURLY["timestamp"].dt.tz_localize("US/Eastern"))
    zoned.to_csv(tmp_path / "zoned.csv", index=False)
    for table in (
        HOURLY,
        zoned,
        tmp_path / "hours.csv",
        tmp_path / "zoned.csv",
        HOURLY.set_index(["timestamp", "symbol"]),
    ):
        market = load_market(table, indicators=["close_30_sma"])
        assert market.dates.astype(str).tolist() == [
            f"2020-07-0{day}T{hour}:30:00"
            for day in (1, 2)
            for hour in ("09", "10", "11")
        ]
        assert market.close.tolist() == np.arange(1.0, 13.0).reshape(6, 2).tolist()
        assert market.indicators[:, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]
        assert str(market).endswith("2020-07-02T11:30:00, 6 times)")
    cut = load_market(HOURLY, start="2020-07-01T10:30", end="2020-07-02")
    assert cut.close.tolist() == [[3.0, 4.0], [5.0, 6.0]]
    assert load_market(HOURLY, start="2020-07-02").close[0].tolist() == [7.0, 8.0]
    with pytest.raises(ValueError, match=r"B on 2020-07-01T10:30:00: found no row, ex"):
        load_market(HOURLY.drop(index=3))
    with pytest.raises(ValueError, match=r"A on 2020-07-01T09:30:00: found more than"):
        load_market(pd.concat([HOURLY, HOURLY[:1]]))
    # Only a time of the day, which may be another for each ticker, is a day.
    daily = HOURLY[2:8].drop(index=[4, 5])
    daily.loc[3, "timestamp"] += pd.Timedelta("1 min")
    assert load_market(daily).dates.astype(str).tolist() == ["2020-07-01", "2020-07-02"]


def put(row, column, value):
    def change(frame):
        frame = frame.sort_values(["date", "tic"], ignore_index=True).astype(object)
        frame.loc[row, column] = value
        return frame

    return change


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            lambda f: f.drop(columns="tic"),
            {},
            "column 'tic' is missing, found date, cl",
        ),
        (lambda f: f, {"risk": "vix"}, "column 'vix' is missing, found date, tic, clo"),
        (lambda f: f, {"indicators": ["tide"]}, "column 'tide' is missing, found date"),
        (lambda f: f, {"risk": "macd"}, "column 'macd' is missing, found date, tic, c"),
        (
            put(4, "tic", ""),
            {},
            "column 'tic', row 4: found nothing, expected a ticker",
        ),
        (
            lambda f: f.assign(Ticker="A", symbol="B").drop(columns="tic"),
            {},
            "found 'Ticker' and 'symbol', expected one column 'tic'",
        ),
        (
            lambda f: f.assign(CLOSE=1.0).rename(columns={"close": "Close"}),
            {},
            "found 'Close' and 'CLOSE', expected one column 'close'",
        ),
        (lambda f: f, {"drop": ["IBM"]}, "no ticker 'IBM' to drop, found AA, MMM, ZZ"),
        (lambda f: f[:0], {}, "found no rows, expected one for each day and ticker"),
        (
            lambda f: f[~((f.date == "2020-01-03") & (f.tic == "ZZ"))],
            {},
            "ZZ on 2020-01-03: found no row, expected one",
        ),
        (
            put(4, "date", "2020-01-01"),
            {},
            "MMM on 2020-01-01: found more than one row, expected one",
        ),
        (
            put(4, "date", "once"),
            {},
            "column 'date', row 4: found once, expected a day",
        ),
        (put(4, "tic", None), {}, "column 'tic', row 4: found None, expected a ticker"),
        (
            put(5, "close", np.nan),
            {},
            "column 'close', ZZ on 2020-01-02: found nan, expected a number above 0",
        ),
        (put(5, "close", 0.0), {}, "column 'close', ZZ on 2020-01-02: found 0.0, exp"),
        (put(5, "close", "n/a"), {}, "column 'close', ZZ on 2020-01-02: found n/a, ex"),
        (
            lambda f: put(3, "macd", np.inf)(f.assign(macd=0.0)),
            {},
            "column 'macd', AA on 2020-01-02: found inf, expected a number",
        ),
        (
            lambda f: f,
            {"start": "2021-01-01"},
            "found no day from 2021-01-01 to before None, expected some of 2020-01-01 "
            "to 2020-01-05",
        ),
        (
            lambda f: f,
            {"start": "2020-01-03", "end": "2020-01-03"},
            "found no day from",
        ),
    ],
)
def test_bad_tables_are_refused_in_one_line(change, options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared
        load_market(change(frame_of(days=5)), **options)
    assert str(caught.value).startswith(f"table: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "July"}, "start='July': expected a day such as '2020-07-01'"),
        ({"start": "5"}, "start='5': expected a day such as '2020-07-01'"),
        ({"end": "2020-13-01"}, "end='2020-13-01': expected a day such as '2020-07-01"),
        ({"end": 5}, "end=5: expected a day such as '2020-07-01'"),
        ({"drop": "AA"}, "drop='AA': expected a list of names"),
        ({"drop": 1}, "drop=1: expected a list of names"),
        ({"indicators": "macd"}, "indicators='macd': expected a list of names"),
        ({"indicators": ["macd"] * 2}, "indicators=['macd', 'macd']: expected each na"),
        ({"risk": 5}, "risk=5: expected the name of a column, or None"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared
        load_market(frame_of(days=5), **options)
    assert str(caught.value).startswith(message)
    with pytest.raises(ValueError, match=r"market=\[1\]: expected a CSV or Parquet"):
        load_market([1])


@pytest.mark.parametrize(
    "start",
    [
        "2020-03-01",
        "20200301",
        "2020-02-29T16:00",
        "2020-03-01T00:00:00-05:00",
        np.datetime64("2020-03-01"),
        pd.Timestamp("2020-03-01", tz="Asia/Tokyo"),
        pd.Timestamp("2020-03-01").date(),
    ],
)
def test_a_day_is_the_same_however_it_is_written(start):
    market = load_market(frame_of(), start=start)
    assert str(market.dates[0]) == "2020-03-01"
    assert load_market(frame_of(), end=start).dates[-1] == market.dates[0] - 1
    assert str(market.between(None, "20200303").dates[-1]) == "2020-03-02"


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file, expected a"):
        load_market(tmp_path / "none.csv")
    for name in ("empty.csv", "text.parquet", "text.csv.gz"):
        (tmp_path / name).write_text("" if name.startswith("empty") else "a\nb")
        with pytest.raises(ValueError, match=f"{name}: not a CSV or Parquet") as caught:
            load_market(tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "short.csv").write_text("date,tic\n2020-01-01,AA\n")
    with pytest.raises(ValueError, match=r"short\.csv: column 'close' is missing"):
        load_market(tmp_path / "short.csv")

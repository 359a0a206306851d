# SPDX-License-Identifier: Apache-2.0
"""Tables become markets, or are refused in one line; indicators are stockstats'."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_environment import GOLDEN

from dt_jax.trading.environment import (
    TradingEnv,
)
from dt_jax.trading.market import INDICATORS, compute_indicators, load_market


def test_no_jax_and_no_pandas_before_a_table_is_read():
    code = "import sys, dt_jax.trading; print(*{'jax', 'pandas'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root
    )
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


def test_indicators_equal_stockstats():
    golden = GOLDEN["stockstats"]
    prices = [np.array(golden[name]) for name in ("close", "high", "low")]
    ours_DxIxM = compute_indicators(*prices)
    expected_DxIxM = np.array(golden["indicators"], np.float64).transpose(2, 1, 0)
    assert np.isfinite(ours_DxIxM).all()
    for place, name in enumerate(INDICATORS):
        first = {"cci_30": 29, "boll_ub": 1, "boll_lb": 1}.get(name, 0)
        np.testing.assert_allclose(
            ours_DxIxM[first:, place],
            expected_DxIxM[first:, place],
            rtol=1e-9,
            atol=1e-9,
            err_msg=name,
        )


def test_indicators_of_a_price_that_never_moves():
    still_DxM = np.full((40, 1), 8.0)
    expected = [0.0, 8.0, 8.0, 50.0, 0.0, 0.0, 8.0, 8.0]
    values_DxIxM = compute_indicators(still_DxM, still_DxM, still_DxM)
    np.testing.assert_allclose(
        values_DxIxM[:, :, 0], np.tile(expected, (40, 1)), atol=1e-12
    )


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
        for ours, first in zip(market[2:], markets[0][2:], strict=True):
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

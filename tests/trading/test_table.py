# SPDX-License-Identifier: Apache-2.0
"""Tables as other programs write them: separators, capitals, tickers, dates."""

import numpy as np
import pandas as pd
import pytest

from dt_jax.trading.market import load_market

PLAIN = """\
date,tic,close
2020-07-01,NA,1.5
2020-07-01,1,20
2020-07-02,NA,2.5
2020-07-02,1,30
"""
TEXTS = {
    "plain": PLAIN,
    "semicolons": PLAIN.replace(",", ";"),
    "decimal commas": PLAIN.replace(",", ";").replace(".", ","),
    "tabs": PLAIN.replace(",", "\t"),
    "capitals": PLAIN.replace("date,tic,close", "Date,TIC,Close"),
    "spaces": PLAIN.replace("date,tic,close", "date, Ticker , close"),
    "a symbol": PLAIN.replace("date,tic,close", "Datetime,Symbol,Close"),
    "a byte order mark": "\ufeff" + PLAIN,
    "quotes": PLAIN.replace("NA", '"NA"'),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_csv_by_any_program(text, tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text(text)
    market = load_market(path, indicators=["close_30_sma"])
    assert market.tickers == ("1", "NA")
    assert market.dates.astype(str).tolist() == ["2020-07-01", "2020-07-02"]
    assert market.close.tolist() == [[20.0, 1.5], [30.0, 2.5]]
    assert market.unused == ()
    for drop in (["1"], [1], {"1"}):
        assert load_market(path, drop=drop).tickers == ("NA",)


@pytest.mark.parametrize(
    ("tickers", "expected"),
    [
        ([600000, 1], ("1", "600000")),
        ([600000.0, 1.0], ("1", "600000")),
        (np.array([2, 10], object), ("10", "2")),
        (pd.Categorical(["B", "A"]), ("A", "B")),
        (pd.array([7, 8], "Int64"), ("7", "8")),
        (["000001", "NA"], ("000001", "NA")),
        ([True, False], ("False", "True")),
    ],
)
def test_tickers_are_text(tickers, expected):
    frame = pd.DataFrame({"date": "2020-07-01", "tic": tickers, "close": 1.0})
    assert load_market(frame).tickers == expected
    one = expected[0]
    for name in {one, int(one)} if one.isdigit() and one[0] != "0" else {one}:
        assert load_market(frame, drop=[name]).tickers == expected[1:]


def test_a_ticker_may_be_called_like_an_indicator():
    tickers = ["MACD", "macd", "A"]
    frame = pd.DataFrame({"date": "2020-07-01", "tic": tickers, "close": 1.0})
    assert load_market(frame, drop=["MACD"]).tickers == ("A", "macd")


def test_whole_tickers_of_a_column_with_a_gap():
    frame = pd.DataFrame(
        {
            "date": ["2020-07-01", "2020-07-02"],
            "tic": [np.nan, 5],
            "close": 1.0,
        }
    )
    assert load_market(frame, start="2020-07-02").tickers == ("5",)
    with pytest.raises(ValueError, match="column 'tic', row 0: found nan, expected a"):
        load_market(frame)


@pytest.mark.parametrize(
    "dates",
    [
        ["2020-07-01", "2020-07-02"],
        ["2020/07/01", "2020/07/02"],
        [20200701, 20200702],
        ["2020-07-01T00:00:00Z", "2020-07-02 00:00"],
        ["2020-07-01 20:00:00-04:00", "2020-07-02 20:00:00.500 +0900"],
        pd.to_datetime(["2020-07-01 23:00", "2020-07-02 23:00"]).tz_localize(
            "Asia/Tokyo"
        ),
        pd.to_datetime(["2020-07-01", "2020-07-02"]).date,
        pd.period_range("2020-07-01", periods=2),
    ],
)
def test_days_are_those_of_the_table_in_its_own_time(dates):
    frame = pd.DataFrame({"date": dates, "tic": "A", "close": 1.0})
    for table in (frame, frame.set_index("date")):
        market = load_market(table)
        assert market.dates.dtype == "datetime64[D]"
        assert market.dates.astype(str).tolist() == ["2020-07-01", "2020-07-02"]


@pytest.mark.parametrize("date", ["12/31/2020", 1593561600, "once", None, 20200701.5])
def test_a_date_that_is_none_is_refused(date):
    frame = pd.DataFrame({"date": ["2020-07-01", date], "tic": "A", "close": 1.0})
    with pytest.raises(ValueError, match=r"column 'date', row 1: found .*, expected a"):
        load_market(frame)

# SPDX-License-Identifier: Apache-2.0
"""Figures of accounts, and the two strategies without skill, worked out on paper."""

import numpy as np
import pandas
import pytest

from dt_jax.trading.backtest import (
    Curves,
    buy_and_hold,
    drawdown,
    equal_weight,
    figures,
    periods_a_year,
    references,
)
from dt_jax.trading.environment import assets, open_accounts, trade_day
from dt_jax.trading.rules import Rules, rules_for
from dt_jax.trading.simulation import simulate_market

CLOSE_DXM = np.array([[10.0, 20.0], [20.0, 20.0], [40.0, 10.0]])


def stamps(first, last, step):
    return np.arange(np.datetime64(first), np.datetime64(last), np.timedelta64(*step))


BUSINESS_2020 = np.busday_offset("2020-01-01", np.arange(200))
# From 9:30 on, seven rows of an hour on each of those days.
HOURS_2020 = (
    BUSINESS_2020.astype("M8[s]")[:, None]
    + (np.arange(7) * 3600 + 9 * 3600 + 1800).astype("m8[s]")
).ravel()


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        (BUSINESS_2020, 252),
        (BUSINESS_2020[:4], 252),
        (BUSINESS_2020[2:4], 252),  # a Friday and a Monday
        (np.delete(BUSINESS_2020, [3, 4, 50, 90]), 252),  # and holidays
        # Now and then a session on a Sunday, or a week that begins on one.
        (np.sort(np.append(BUSINESS_2020, np.datetime64("2020-02-02"))), 252),
        (BUSINESS_2020 - 1, 252),
        (stamps("2020-01-01", "2020-12-31", (1, "D")), 365),
        (stamps("2020-01-01", "2020-01-09", (1, "D")), 365),
        (np.delete(stamps("2020-01-01", "2020-06-01", (1, "D")), [7, 50]), 365),
        (stamps("2020-01-01", "2020-12-31", (2, "D")), 183),
        (stamps("2020-01-01", "2020-12-31", (7, "D")), 52),
        (stamps("2020-01-05", "2020-12-31", (7, "D")), 52),  # Sundays
        (stamps("2020-01-01", "2020-12-31", (14, "D")), 26),
        (np.arange("2020-01", "2022-01", dtype="M8[M]").astype("M8[D]"), 12),
        (np.arange("2020-01", "2022-01", dtype="M8[M]").astype("M8[D]") - 1, 12),
        (np.arange("2020-01", "2024-01", 3, dtype="M8[M]").astype("M8[D]"), 4),
        (np.arange("2000", "2020", dtype="M8[Y]").astype("M8[D]"), 1),
        (HOURS_2020, 7 * 252),
        (HOURS_2020[3:-5], 7 * 252),  # the first and the last day are short
        (stamps("2020-01-01T00", "2020-02-01T00", (1, "h")), 24 * 365),
        (stamps("2020-01-01T00:00", "2020-01-09T00:00", (1, "m")), 1440 * 365),
        (np.array(["2020-01-01"], "M8[D]"), 252),
    ],
)
def test_the_rows_of_a_year_by_the_markets_own_calendar(dates, expected):
    assert periods_a_year(dates) == expected


def curves(*episodes):
    """Of lists of assets, nothing traded, padded at the end."""
    assets_DxE = np.full((max(map(len, episodes)), len(episodes)), np.nan)
    for column, values in enumerate(episodes):
        assets_DxE[: len(values), column] = values
    return Curves(assets_DxE, np.where(np.isnan(assets_DxE), np.nan, 0.0))


def test_the_figures_by_hand():
    # Daily returns 0.1, -0.1, 0.1: of mean 1/30 and deviation root(1/75).
    account = curves([100.0, 110.0, 99.0, 108.9])
    account.traded[:, 0] = [0.0, 50.0, 0.0, 20.0]
    assert figures(account, 252) == pytest.approx(
        {
            "total_return": 0.089,
            "annual_return": 1.089**84 - 1,
            "annual_volatility": 3.36**0.5,
            "sharpe": 21**0.5,
            "max_drawdown": 0.1,
            "turnover": 35 / 104.475 * 84,
        }
    )


def test_a_year_has_as_many_rows_as_the_market():
    # Two rows, of a gain of 10 % and one of 20 %, in a year of four.
    account = curves([100.0, 110.0, 132.0])
    account.traded[:, 0] = [0.0, 57.0, 57.0]
    found = figures(account, 4)
    assert found["annual_return"] == pytest.approx(1.32**2 - 1)
    assert found["annual_volatility"] == pytest.approx((0.005 * 4) ** 0.5)
    assert found["sharpe"] == pytest.approx(0.15 / 0.005**0.5 * 2)
    assert found["turnover"] == pytest.approx(57 / 114 * 2)


def test_a_gain_of_a_minute_may_be_too_large_for_a_year():
    found = figures(curves([1.0, 2.0]), 525_600)
    assert found["total_return"] == 1.0
    assert np.isnan(found["annual_return"])


def test_each_episode_has_its_figures_whatever_its_length():
    first, second = [100.0, 90.0, 120.0, 130.0], [50.0, 60.0, 30.0]
    alone = [figures(curves(episode), 252) for episode in (first, second)]
    together = figures(curves(first, second), 252)
    for name, value in together.items():
        expected = np.concatenate([alone[0][name], alone[1][name]])
        assert value == pytest.approx(expected), name
    assert together["max_drawdown"] == pytest.approx([0.1, 0.5])


def test_an_account_that_does_not_fluctuate_has_no_sharpe():
    cash, steady = [100.0, 100.0, 100.0], [1.0, 1.1, 1.21, 1.331]  # but for rounding
    other = [100.0, 120.0, 110.0]
    found = figures(curves(cash, steady, other), 252)
    assert np.isnan(found["sharpe"]).tolist() == [True, True, False]
    assert found["annual_volatility"][:2] == pytest.approx(0.0, abs=1e-12)
    assert found["max_drawdown"][:2].tolist() == [0.0, 0.0]
    assert found["sharpe"][2] == figures(curves(other), 252)["sharpe"]

    one_day = figures(curves([100.0, 101.0]), 252)
    assert one_day["annual_return"] == pytest.approx(1.01**252 - 1)
    assert np.isnan(one_day["annual_volatility"])
    assert np.isnan(one_day["sharpe"])


def test_the_figures_as_pandas_users_write_them():
    walk = 1e6 * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.01, 300)))
    series = pandas.Series(walk)
    daily = series.pct_change().dropna()
    found = figures(curves(walk), 252)
    assert found["annual_volatility"] == pytest.approx(daily.std() * 252**0.5)
    assert found["sharpe"] == pytest.approx(daily.mean() / daily.std() * 252**0.5)
    assert found["max_drawdown"] == pytest.approx(-(series / series.cummax() - 1).min())
    growth = (1 + daily).prod()
    assert found["annual_return"] == pytest.approx(growth ** (252 / len(daily)) - 1)


def test_drawdown_by_hand():
    assets_DxE = np.array([[4.0, 4.0], [8.0, 2.0], [6.0, 3.0], [2.0, 8.0]])
    expected = [[0.0, 0.0], [0.0, 0.5], [0.25, 0.25], [0.75, 0.0]]
    np.testing.assert_array_equal(drawdown(assets_DxE), expected)


def test_buy_and_hold_by_hand():
    # Of 1000, 200 are the fee of buying for 800: 40 shares and 20.
    found = buy_and_hold(CLOSE_DXM, Rules(initial_cash=1000.0, cost=0.25))
    np.testing.assert_allclose(found.assets, [1000, 40 * 20 + 400, 1600 + 200])
    np.testing.assert_allclose(found.traded, [0, 800, 0])


def test_equal_weight_by_hand():
    free = equal_weight(CLOSE_DXM, Rules(initial_cash=1000.0, cost=0.0))
    # 500 each, then 1000 and 500, traded to 750 each, then 1500 and 375.
    np.testing.assert_allclose(free.assets, [1000, 1500, 1875])
    np.testing.assert_allclose(free.traded, [0, 1000, 500])
    # The same, but a sale of 275 brings the 247.5 that buying for 225 takes.
    dear = equal_weight(CLOSE_DXM, Rules(initial_cash=1100.0, cost=0.1))
    np.testing.assert_allclose(dear.assets, [1100, 1500, 1450 + 362.5])
    np.testing.assert_allclose(dear.traded, [0, 1000, 500])


def test_fees_by_side_and_ticker_by_hand():
    # 1000 buy a worth w of each: 2 w + 0.1 w + 0.4 w.
    rules = Rules(initial_cash=1000.0, cost=np.array([0.1, 0.4]), sell_cost=0.5)
    held = buy_and_hold(CLOSE_DXM, rules)
    np.testing.assert_allclose(held.assets, [1000, 800 + 400, 1600 + 200])
    np.testing.assert_allclose(held.traded, [0, 800, 0])
    # 400 each, then 800 and 400: a sale of s brings s / 2, of which 1/1.4 is bought,
    # and 800 - s = 400 + s / 2.8, so s is 5600 / 19.
    equal = equal_weight(CLOSE_DXM, rules)
    sold = 5600 / 19
    np.testing.assert_allclose(equal.assets, [1000, 1200, 2.5 * (800 - sold)])
    np.testing.assert_allclose(equal.traded, [0, 800, sold * (1 + 1 / 2.8)])


def test_shares_of_the_start_by_hand():
    # 30 shares at 10 are held beside 100 in cash, which buy for 50 of either stock.
    rules = Rules(initial_cash=100.0, cost=0.0, initial_shares=np.array([30.0, 0.0]))
    held = buy_and_hold(CLOSE_DXM, rules)
    np.testing.assert_allclose(held.assets, [400, 700 + 50, 1400 + 25])
    np.testing.assert_allclose(held.traded, [0, 100, 0])
    # Of 300 and 0 and the cash, 200 each: 100 sold and 200 bought.
    equal = equal_weight(CLOSE_DXM, rules)
    np.testing.assert_allclose(equal.assets, [400, 600, 600 + 150])
    np.testing.assert_allclose(equal.traded, [0, 300, 200])


FEES = {
    "one fee": {"cost": 0.01},
    "by side and ticker": {
        "cost": [0.01, 0.0, 0.03, 0.0, 0.02],
        "sell_cost": {"S000": 0.02, "S001": 0, "S002": 0, "S003": 0.04, "S004": 0},
        "initial_shares": {"S001": 10**10},
    },
}


@pytest.mark.parametrize("fees", FEES.values(), ids=FEES)
@pytest.mark.parametrize("strategy", [buy_and_hold, equal_weight])
def test_the_environment_agrees(strategy, fees):
    """The same trades by FinRL's rules, of so many shares that wholes do not matter."""
    market = simulate_market(30, 5, seed=0)
    rules = rules_for(market.tickers, {"initial_cash": 1e12, "hmax": 10**11} | fees)
    expected = strategy(market.close, rules)
    kept_M = np.zeros(5)
    if strategy is buy_and_hold:
        kept_M += rules.initial_shares
    accounts = open_accounts(market, rules, [0])
    found = [assets(market, accounts)[0]]
    for day, close_M in enumerate(market.close[:-1]):
        # The day after shows what each of the stocks was worth once it was traded.
        growth_M = market.close[day + 1] / close_M
        kept = kept_M @ market.close[day + 1]
        worth = (expected.assets[day + 1] - kept) / growth_M.sum()
        wants_M = (worth / close_M + kept_M - accounts.shares[0]) / rules.hmax
        if day and strategy is buy_and_hold:
            wants_M = np.zeros(5)
        before = accounts.shares
        accounts, _ = trade_day(market, rules, accounts, wants_M[None])
        traded = (np.abs(accounts.shares - before)[0] * close_M).sum()
        # A share here or there, of 1e10 of them.
        assert traded == pytest.approx(expected.traded[day + 1], rel=1e-7)
        found.append(assets(market, accounts)[0])
    np.testing.assert_allclose(found, expected.assets, rtol=1e-7)


def test_references_run_on_the_days_of_each_episode():
    market, rules = simulate_market(12, 3, seed=1), Rules()
    dates = market.dates.astype(str)
    dates_DxE = np.stack([dates[2:8], [*dates[5:9], "", ""]], axis=1)
    found = references(market, rules, dates_DxE)
    assert list(found) == ["buy and hold", "equal weight"]
    for name, strategy in (
        ("buy and hold", buy_and_hold),
        ("equal weight", equal_weight),
    ):
        for episode, (first, last) in enumerate(((2, 7), (5, 8))):
            alone = strategy(market.close[first : last + 1], rules)
            for column_DxE, expected in zip(found[name], alone, strict=True):
                column = column_DxE[:, episode]
                np.testing.assert_array_equal(column[: len(expected)], expected)
                assert np.isnan(column[len(expected) :]).all()

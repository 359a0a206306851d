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
    references,
)
from dt_jax.trading.environment import Rules, assets, open_accounts, trade_day
from dt_jax.trading.simulation import simulate_market

CLOSE_DXM = np.array([[10.0, 20.0], [20.0, 20.0], [40.0, 10.0]])


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
    assert figures(account) == pytest.approx(
        {
            "total_return": 0.089,
            "annual_return": 1.089**84 - 1,
            "annual_volatility": 3.36**0.5,
            "sharpe": 21**0.5,
            "max_drawdown": 0.1,
            "turnover": 35 / 104.475 * 84,
        }
    )


def test_the_figures_are_means_over_episodes_of_any_length():
    first, second = [100.0, 90.0, 120.0, 130.0], [50.0, 60.0, 30.0]
    alone = [figures(curves(episode)) for episode in (first, second)]
    together = figures(curves(first, second))
    for name, value in together.items():
        assert value == pytest.approx((alone[0][name] + alone[1][name]) / 2), name
    assert together["max_drawdown"] == pytest.approx((0.1 + 0.5) / 2)


def test_an_account_that_does_not_fluctuate_has_no_sharpe():
    cash, steady = [100.0, 100.0, 100.0], [1.0, 1.1, 1.21, 1.331]  # but for rounding
    found = figures(curves(cash, steady))
    assert np.isnan(found["sharpe"])
    assert found["annual_volatility"] == pytest.approx(0.0, abs=1e-12)
    assert found["max_drawdown"] == 0.0
    other = [100.0, 120.0, 110.0]
    assert figures(curves(cash, other))["sharpe"] == figures(curves(other))["sharpe"]

    one_day = figures(curves([100.0, 101.0]))
    assert one_day["annual_return"] == pytest.approx(1.01**252 - 1)
    assert np.isnan(one_day["annual_volatility"])
    assert np.isnan(one_day["sharpe"])


def test_the_figures_as_pandas_users_write_them():
    walk = 1e6 * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.01, 300)))
    series = pandas.Series(walk)
    daily = series.pct_change().dropna()
    found = figures(curves(walk))
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


@pytest.mark.parametrize("strategy", [buy_and_hold, equal_weight])
def test_the_environment_agrees(strategy):
    """The same trades by FinRL's rules, of so many shares that wholes do not matter."""
    market = simulate_market(30, 5, seed=0)
    rules = Rules(initial_cash=1e12, cost=0.01, hmax=10**11)
    expected = strategy(market.close, rules)
    accounts = open_accounts(market, rules, [0])
    found = [assets(market, accounts)[0]]
    for day, close_M in enumerate(market.close[:-1]):
        # What remains after the fees of the trades to come is spread evenly.
        worth = (expected.assets[day] - rules.cost * expected.traded[day + 1]) / 5
        wants_M = (worth / close_M - accounts.shares[0]) / rules.hmax
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

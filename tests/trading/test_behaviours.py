# SPDX-License-Identifier: Apache-2.0
"""Scripted traders earn by their skill."""

import numpy as np
import pytest
from test_market import frame_of
from test_simulation import returns_of

from dt_jax.trading import behaviours
from dt_jax.trading.behaviours import behaviour_episodes, scripted_actions
from dt_jax.trading.environment import (
    TradingEnv,
)
from dt_jax.trading.indicators import INDICATORS
from dt_jax.trading.market import load_market
from dt_jax.trading.simulation import (
    SIMULATED,
    simulate_market,
)


@pytest.mark.parametrize(
    "options",
    [
        {"start": 29},
        {"start": -1},
        {"start": 5, "episode_length": 25},
        {"start": None, "episode_length": 30},
        {"episode_length": 0},
    ],
)
def test_episodes_must_fit_the_market(options):
    with pytest.raises(ValueError, match="expected a row of the market's 30 days"):
        TradingEnv(simulate_market(30, 2, 0), **options)


def test_skill_earns_and_luck_does_not():
    market = simulate_market(1000, 6, seed=0)

    def returns(skills, length=80):
        return returns_of(
            behaviour_episodes(market, 256, length, 7, rules=SIMULATED, skills=skills)
        )

    bad, random, good = (returns(skill) for skill in (-1.0, 0.0, 1.0))
    luck = max(bad.std(), good.std())
    assert good.mean() > 1500
    assert bad.mean() < -1500
    assert abs(random.mean()) < 100
    assert good.mean() - bad.mean() > 5 * luck
    skills = np.linspace(-1, 1, 256)
    assert np.corrcoef(skills, returns(skills, (60, 100)))[0, 1] > 0.9


def test_behaviours_buy_the_cheap_or_the_dear():
    market = simulate_market(200, 4, seed=0)
    day_E, still = np.arange(200), np.zeros((200, 4))
    cci_ExM = market.indicators[:, INDICATORS.index("cci_30")]
    good, bad = (
        scripted_actions(market, day_E, np.full(200, skill), still)
        for skill in (0.5, -0.5)
    )
    assert good.dtype == np.float32
    assert (good == -bad).all()
    assert (np.sign(good) == -np.sign(cci_ExM)).all()
    assert np.abs(good).max() == 0.5
    assert np.abs(good).mean() > 0.25, "the mean action must stand out of the noise"
    noise = np.full((200, 4), 9.0)
    assert (scripted_actions(market, day_E, np.zeros(200), noise) == 1.0).all()


def test_behaviours_on_a_table_of_29_stocks(monkeypatch):
    frame = frame_of(days=40, tickers=[f"T{number:02d}" for number in range(29)])
    market = load_market(frame)
    episodes = list(behaviour_episodes(market, 10, 30, seed=0))
    assert episodes[0]["observations"].shape == (30, 291)
    # Ten at once, or in blocks: the numbers change, what is promised does not.
    monkeypatch.setattr(behaviours, "EPISODES_AT_ONCE", 4)
    blocks = list(behaviour_episodes(market, 10, 30, seed=0))
    assert [e["actions"].shape for e in blocks] == [(30, 29)] * 10
    for length in (0, 40, (30, 20)):
        with pytest.raises(ValueError, match="expected at least 1 step and fewer than"):
            next(behaviour_episodes(market, 10, length, seed=0))


def test_behaviours_trade_by_the_rules_and_indicators_of_their_market():
    frame = frame_of(days=40, volume=7.0)
    rules = {"initial_shares": {"AA": 3, "ZZ": 5}, "cost": [0.01, 0.02, 0.03]}
    market = load_market(frame, indicators=["volume", "cci_30"])
    assert market.tickers == ("AA", "MMM", "ZZ")
    (episode,) = behaviour_episodes(market, 1, 5, seed=0, rules=rules)
    assert episode["observations"].shape == (5, 1 + 4 * 3)
    assert episode["observations"][0, 4:7].tolist() == [3.0, 0.0, 5.0]
    assert (episode["observations"][:, 7:10] == 7.0).all()
    market = load_market(frame, indicators=["volume"])
    with pytest.raises(ValueError, match="indicators: found volume, expected cci_30"):
        next(behaviour_episodes(market, 1, 5, seed=0))

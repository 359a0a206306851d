# SPDX-License-Identifier: Apache-2.0
"""The project's own market and its dataset."""

import numpy as np
import pytest

from dt_jax.trading.environment import (
    TradingEnv,
)
from dt_jax.trading.simulation import (
    simulate_market,
    simulated_env,
    simulated_episodes,
)


def test_a_simulated_market_begins_warm_and_returns_to_its_value():
    market = simulate_market(1000, 6, seed=2)
    assert market.close.shape == (1000, 6)
    assert np.is_busday(market.dates).all()
    mean_30, mean_60 = market.indicators[0, -2:]
    assert (mean_30 != mean_60).all(), "the first day has no history"
    gap_DxM = np.log(market.close / market.indicators[:, -1])
    change_DxM = np.diff(np.log(market.close), axis=0)
    assert np.corrcoef(gap_DxM[:-1].ravel(), change_DxM.ravel())[0, 1] < -0.25


@pytest.fixture(scope="module")
def dataset():
    return simulated_episodes(seed=0)


def returns_of(episodes):
    return np.array([episode["rewards"].sum() for episode in episodes])


def test_the_dataset_is_what_the_readers_expect(dataset):
    assert len(dataset) == 512
    lengths = [len(episode["rewards"]) for episode in dataset]
    assert (min(lengths), max(lengths)) == (60, 100)
    for length, episode in zip(lengths, dataset, strict=True):
        assert {name: (v.shape, v.dtype.name) for name, v in episode.items()} == {
            "observations": ((length, 61), "float32"),
            "actions": ((length, 6), "float32"),
            "rewards": ((length,), "float32"),
            "dones": ((length,), "bool"),
        }
        assert np.flatnonzero(episode["dones"]).tolist() == [length - 1]
        assert np.abs(episode["actions"]).max() <= 1.0
        assert np.isfinite(episode["observations"]).all()
    states_NxS = np.concatenate([episode["observations"] for episode in dataset])
    assert states_NxS.std(axis=0).min() > 0.1, "a constant feature"


def test_the_dataset_is_a_function_of_its_seed(dataset):
    for ours, again in zip(dataset, simulated_episodes(seed=0), strict=True):
        assert all((ours[name] == again[name]).all() for name in ours)
    other = simulated_episodes(seed=1)
    assert not np.array_equal(other[0]["actions"][:60], dataset[0]["actions"][:60])
    assert not np.array_equal(
        simulate_market(9, 2, seed=0).close, simulate_market(9, 2, seed=1).close
    )


def test_the_dataset_replays_in_its_environment(dataset):
    env = simulated_env(seed=0)
    for episode in dataset[::100]:
        closes = env.market.close.astype(np.float32)
        (start,) = np.flatnonzero((closes == episode["observations"][0, 1:7]).all(1))
        replay = TradingEnv(env.market, rules=env.rules, start=int(start))
        state, _ = replay.reset()
        for observation, action, reward in zip(
            episode["observations"], episode["actions"], episode["rewards"], strict=True
        ):
            assert (state.astype(np.float32) == observation).all()
            state, again, *_ = replay.step(action)
            assert np.float32(again) == reward


def test_returns_are_of_the_size_of_the_return_scale(dataset):
    returns = returns_of(dataset) / 1000.0
    assert abs(returns.mean()) < 0.2
    assert 1.0 < returns.std() < 2.0
    assert -4.0 < returns.min() < -2.0
    assert 2.0 < returns.max() < 4.0

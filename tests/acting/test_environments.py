# SPDX-License-Identifier: Apache-2.0
"""Environments by name: made, shared, or refused in one line."""

import sys

import pytest
from gymnasium.spaces import Box, Discrete, Tuple
from test_rollout import Stairs, constant

from dt_jax.acting.checked_env import CheckedEnv
from dt_jax.acting.environments import check_spaces, make_environments
from dt_jax.acting.rollout import roll_out
from dt_jax.trading import environment as trading_environment
from dt_jax.trading.simulation import (
    simulate_market,
)


def test_environments_of_every_kind(tmp_path, monkeypatch):
    (tmp_path / "my_stairs.py").write_text(
        "from test_rollout import Stairs\n"
        "def build(width): return Stairs(width)\n"
        "def number(): return 7\n"
        "value = 7\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    made = make_environments("my_stairs:build", {"width": 4}, 3)
    assert [one.action_space.shape for one in made] == [(4,)] * 3
    assert len(set(map(id, made))) == 3
    for spec, message in (
        ("my_stairs:number", "'my_stairs:number' gave a int, expected a gymnasium.Env"),
        ("my_stairs:value", "found no callable 'value' in my_stairs"),
        ("my_stairs:absent", "found no callable 'absent' in my_stairs"),
    ):
        with pytest.raises(ValueError, match=f"^environment=.*{message}"):
            make_environments(spec, {}, 1)


@pytest.mark.parametrize(
    ("environment", "kwargs", "message"),
    [
        ("Pendulm-v1", {}, "environment='Pendulm-v1': Environment `Pendulm` does"),
        ("pendulum", {}, "environment='pendulum': "),
        ("no_such:Env-v0", {}, "environment='no_such:Env-v0': No module named"),
        ("no_such:make", {}, "environment='no_such:make': No module named 'no_s"),
        ("Pendulum-v1", {"h": 1}, "environment_kwargs={'h': 1}: PendulumEnv.__in"),
        (
            "dt_jax/StockTrading-v0",
            {"market": "none.csv"},
            "environment_kwargs={'market': 'none.csv'}: none.csv: no such file",
        ),
        (
            "dt_jax/SimulatedTrading-v0",
            {"seed": "x"},
            "environment_kwargs={'seed': 'x'}: ",
        ),
        ("CartPole-v1", {"render_mode": 5}, "environment_kwargs={'render_mode': 5}: "),
        (
            "dt_jax/StockTrading-v0",
            {"market": "none.csv", "ruels": {}},
            "environment_kwargs={'market': 'none.csv', 'ruels': {}}: 'ruels': no such "
            "name; did you mean rules?",
        ),
        (
            "dt_jax/SimulatedTrading-v0",
            {"episode_length": 0},
            "environment_kwargs={'episode_length': 0}: start=None, episode_leng",
        ),
    ],
)
def test_wrong_environments_are_refused_in_one_line(environment, kwargs, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared
        make_environments(environment, kwargs, 2)
    assert str(caught.value).startswith(message)
    assert "; expected " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["dt_jax/StockTrading-v0", "dt_jax:TradingEnv"])
def test_a_market_is_loaded_once_and_shared(spec, monkeypatch):
    loads = []

    def load(path):
        loads.append(path)
        return simulate_market(30, 2, seed=0)

    monkeypatch.setattr(trading_environment, "load_market", load)
    kwargs = {"market": "prices.csv", "start": None, "episode_length": 8}
    environments = make_environments(spec, kwargs, 4)
    assert loads == ["prices.csv"]
    assert len({id(one.unwrapped.market) for one in environments}) == 1
    rollout = roll_out(environments, constant(1.0, width=2), [3, 4, 3, 4])
    # The rest is not shared: each goes its own way, by its seed.
    assert rollout.lengths_E.tolist() == [8] * 4
    assert rollout.returns_E[:2].tolist() == rollout.returns_E[2:].tolist()
    assert rollout.returns_E[0] != rollout.returns_E[1]


def test_spaces_must_be_vectors_of_the_models_sizes():
    check_spaces(CheckedEnv(Stairs()))
    check_spaces(CheckedEnv(Stairs(width=3)), state_dim=2, act_dim=3)
    for options, dims, message in (
        (
            {},
            {"state_dim": 61},
            r"observations are Box.*\(2,\).*, expected a Box of 61 \(st",
        ),
        (
            {},
            {"act_dim": 6},
            r"actions are Box.*\(1,\).*, expected a Box of 6 \(act_dim",
        ),
        (
            {"space": Tuple([Discrete(2)])},
            {},
            r"actions are Tuple\(Discrete\(2\)\), expected a Box of one d",
        ),
        ({"space": Box(0, 1, (2, 2))}, {}, "actions are Box.*, expected a Box of one"),
    ):
        with pytest.raises(ValueError, match=f"^environment=Stairs: {message}"):
            check_spaces(CheckedEnv(Stairs(**options)), **dims)


def test_an_environment_may_have_more_choices_than_the_model():
    (cart,) = make_environments("CartPole-v1", {}, 1)
    check_spaces(cart, state_dim=4, act_dim=2, action_sizes=(2,))
    check_spaces(cart, state_dim=4, act_dim=1, action_sizes=(1,))
    check_spaces(cart)
    for sizes, message in (((3,), "have 2 choices, .* model 3"), ((2, 2), "2 x 2")):
        with pytest.raises(ValueError, match=message):
            check_spaces(cart, state_dim=4, act_dim=sum(sizes), action_sizes=sizes)
    with pytest.raises(ValueError, match=r"actions are MultiDiscrete.*expected a Box"):
        check_spaces(cart, state_dim=4, act_dim=2, action_sizes=())

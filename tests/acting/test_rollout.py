# SPDX-License-Identifier: Apache-2.0
"""Episodes against paper and against an environment alone; data on disk; actors."""

import sys
import zipfile

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from dt_jax.acting import actors
from dt_jax.acting.actors import load_actor, random_actor
from dt_jax.acting.environments import check_spaces, make_environments
from dt_jax.acting.rollout import record_episodes, roll_out, roll_out_targets
from dt_jax.data.readers import load_trajectories
from dt_jax.trading import environment as trading_environment
from dt_jax.trading.simulation import (
    simulate_market,
    simulated_env,
    simulated_episodes,
)


class Stairs(gymnasium.Env):
    """Step t (from 1) rewards t times the action; seed s gives 1 + s % 3 steps."""

    def __init__(self, width=1, space=None):
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = space or Box(-1.0, 1.0, (width,), np.float32)
        self.seen = []

    def reset(self, *, seed=None, options=None):
        self.seed, self.time = seed, 0
        return self.state(), {"left": 1 + seed % 3, "name": f"seed {seed}"}

    def step(self, action):
        left = 1 + self.seed % 3 - self.time
        assert left > 0, "an ended episode was stepped"
        self.seen.append(action)
        self.time += 1
        reward = self.time * float(action.sum())
        info = {"left": np.int64(left - 1), "late": left < 3, "bag": [1], "none": None}
        # Both kinds of an end.
        return self.state(), reward, left == 1 and self.time < 3, self.time == 3, info

    def state(self):
        return np.array([self.seed, self.time], np.float32)


def stairs(count, **options):
    return [Stairs(**options) for _ in range(count)]


def constant(action, width=1):
    """An actor that does the same at every step, in float64."""
    return lambda num: lambda states_ExS, rewards_E: np.full((num, width), action)


class FakePolicy:
    """Acts by a tenth of its target."""

    def reset(self, target_returns_E):
        self.targets_E = target_returns_E

    def act(self, states_ExS, rewards_E):
        return self.targets_E[:, None].astype(np.float32) / 10


# Rolling out


def test_three_episodes_on_paper():
    seen = []

    def actor(num_episodes):
        assert num_episodes == 3

        def act(states_ExS, rewards_E):
            seen.append((states_ExS.tolist(), rewards_E.tolist()))
            return np.full((3, 1), 0.5)

        return act

    rollout = roll_out(stairs(3), actor, [10, 11, 12])
    assert rollout.lengths_E.tolist() == [2, 3, 1]
    assert rollout.returns_E.tolist() == [0.5 + 1.0, 0.5 + 1.0 + 1.5, 0.5]
    assert (rollout.returns_E.dtype, rollout.lengths_E.dtype) == ("float64", "int64")
    assert seen == [
        ([[10, 0], [11, 0], [12, 0]], [0, 0, 0]),
        ([[10, 1], [11, 1], [12, 1]], [0.5, 0.5, 0.5]),
        ([[10, 2], [11, 2], [12, 1]], [1.0, 1.0, 0]),
    ]
    nan = np.nan
    assert rollout.info.keys() == {"left", "name", "late"}
    np.testing.assert_array_equal(
        rollout.info["left"], [[2, 3, 1], [1, 2, 0], [0, 1, nan], [nan, 0, nan]]
    )
    np.testing.assert_array_equal(
        rollout.info["late"], [[nan] * 3, [1, 0, 1], [1, 1, nan], [nan, 1, nan]]
    )
    names = [["seed 10", "seed 11", "seed 12"]] + [[""] * 3] * 3
    assert rollout.info["name"].tolist() == names


def test_actions_are_clipped_and_get_the_dtype_of_their_space():
    environments = stairs(2, width=2)
    rollout = roll_out(environments, constant([7.0, -0.25], width=2), [0, 1])
    for environment in environments:
        for action in environment.seen:
            assert action.dtype == np.float32
            assert action.tolist() == [1.0, -0.25]
    assert rollout.returns_E.tolist() == [0.75, 0.75 + 2 * 0.75]


def test_what_is_recorded_is_what_was_done():
    steps = []
    roll_out(stairs(2), constant(3.0), [1, 3], record=steps.append)
    states_TxExS, actions_TxExA, rewards_TxE = map(np.array, zip(*steps, strict=True))
    assert states_TxExS.tolist() == [[[1, 0], [3, 0]], [[1, 1], [3, 1]]]
    assert actions_TxExA.tolist() == [[[1.0], [1.0]]] * 2
    assert rewards_TxE.tolist() == [[1, 1], [2, 0]]


@pytest.mark.parametrize("name", ["Pendulum-v1", "dt_jax/SimulatedTrading-v0"])
def test_episodes_at_once_equal_each_alone_and_come_again(name):
    environments = make_environments(name, {}, 3)
    steps = []

    def run():
        actor = random_actor(environments[0], seed=5)
        return roll_out(environments, actor, [5, 6, 7], record=steps.append)

    first, again = run(), run()
    np.testing.assert_array_equal(first.returns_E, again.returns_E)
    assert len(set(first.returns_E)) == 3
    length = {"Pendulum-v1": 200}.get(name, 80)
    assert first.lengths_E.tolist() == [length] * 3
    alone = gymnasium.make(name)
    for episode, seed in enumerate([5, 6, 7]):
        state, info = alone.reset(seed=seed)
        rewards = []
        for states_ExS, actions_ExA, _ in steps[:length]:
            assert (states_ExS[episode] == state).all()
            state, reward, *_, info = alone.step(actions_ExA[episode])
            rewards.append(float(reward))
        assert sum(rewards) == pytest.approx(first.returns_E[episode], rel=1e-12)
        assert all(first.info[key][-1, episode] == info[key] for key in info)
    if name != "Pendulum-v1":
        assert first.info.keys() == {"date", "assets", "traded"}


def test_random_actions_fill_their_space_and_differ_by_block():
    actor = random_actor(Stairs(width=2), seed=0)
    blocks_NxExA = np.array([actor(50)(None, None) for _ in range(20)])
    assert blocks_NxExA.shape == (20, 50, 2)
    assert len(np.unique(blocks_NxExA)) > 1900
    assert abs(blocks_NxExA.mean()) < 0.1
    assert -1 <= blocks_NxExA.min() < -0.99
    free = Stairs(space=Box(-np.inf, np.inf, (1,)))
    assert np.isfinite(random_actor(free, seed=0)(3)(None, None)).all()


def test_every_target_meets_the_same_seeds():
    parts = roll_out_targets(
        stairs(6), FakePolicy(), targets=[5.0, -2.5], seeds=[10, 11, 12]
    )
    returns = [part.returns_E.tolist() for part in parts]
    # Seeds 10, 11 and 12 climb 1 + 2, 1 + 2 + 3 and 1.
    assert returns == [[1.5, 3.0, 0.5], [-0.75, -1.5, -0.25]]
    assert [part.lengths_E.tolist() for part in parts] == [[2, 3, 1]] * 2
    for part in parts:
        assert part.info["left"].shape == (4, 3)
        assert part.info["name"][0].tolist() == ["seed 10", "seed 11", "seed 12"]


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros(2), r"gave actions of shape \(2,\), expected \(2, 1\)"),
        (np.zeros((2, 2)), r"gave actions of shape \(2, 2\), expected \(2, 1\)"),
        (np.array([[0.0], [np.nan]]), "gave an action that is not finite"),
    ],
)
def test_actions_must_fit(actions, message):
    with pytest.raises(ValueError, match=message):
        roll_out(stairs(2), lambda _: lambda *_: actions, [0, 1])


def test_the_bar_shows_only_when_it_has_a_name(capsys):
    roll_out(stairs(1), constant(0.0), [2])
    assert capsys.readouterr().err == ""
    roll_out(stairs(1), constant(0.0), [2], desc="evaluating")
    assert "evaluating: 3step" in capsys.readouterr().err


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
    check_spaces(Stairs())
    check_spaces(Stairs(width=3), state_dim=2, act_dim=3)
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
            {"space": Discrete(2)},
            {},
            r"actions are Discrete\(2\), expected a Box of one d",
        ),
        ({"space": Box(0, 1, (2, 2))}, {}, "actions are Box.*, expected a Box of one"),
    ):
        with pytest.raises(ValueError, match=f"^environment=Stairs: {message}"):
            check_spaces(Stairs(**options), **dims)


# Data


@pytest.mark.parametrize("count", [1, 3])
def test_collected_data_is_what_happened(tmp_path, count):
    def actor(num_episodes):
        return lambda states_ExS, rewards_E: states_ExS[:, :1] / 100 + states_ExS[:, 1:]

    path = tmp_path / "data"
    record_episodes(path, stairs(count), actor, num_episodes=5, seed=10)
    read = load_trajectories(path)
    # By seed; the action of step t is t + seed / 100, clipped to 1.
    assert read.lengths.tolist() == [2, 3, 1, 2, 3]
    states_NxS = read.states.slice(0, 11)
    seeds = np.repeat([10, 11, 12, 13, 14], read.lengths)
    times = np.concatenate([np.arange(length) for length in read.lengths])
    assert states_NxS.tolist() == np.stack([seeds, times], axis=1).tolist()
    actions = np.minimum(seeds / 100 + times, 1).astype(np.float32)
    assert read.actions.slice(0, 11)[:, 0].tolist() == actions.tolist()
    np.testing.assert_allclose(read.rewards, (times + 1) * actions, rtol=1e-7)
    again = load_trajectories(path, split_on_dones=True)
    assert again.lengths.tolist() == read.lengths.tolist(), "dones stand at the ends"


def test_a_collection_is_all_or_nothing(tmp_path):
    def actor(num_episodes):
        act = constant(1.0)(num_episodes)

        def stop(*given):
            if len(environments[0].seen) == 4:
                raise KeyboardInterrupt
            return act(*given)

        return stop

    environments = stairs(1)
    with pytest.raises(KeyboardInterrupt):
        record_episodes(tmp_path / "data", environments, actor, num_episodes=9, seed=0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="exists already"):
        record_episodes(tmp_path, environments, constant(1.0), num_episodes=9, seed=0)
    assert len(environments[0].seen) == 4
    discrete = stairs(1, space=Discrete(2))
    with pytest.raises(ValueError, match=r"actions are Discrete\(2\)"):
        record_episodes(
            tmp_path / "data", discrete, constant(1.0), num_episodes=9, seed=0
        )


# Actors


def test_a_callable_of_ones_own_acts(tmp_path, monkeypatch):
    (tmp_path / "my_agent.py").write_text(
        "def act(observations_ExS): return observations_ExS[:, 1:] / 2\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    rollout = roll_out(stairs(2), load_actor("my_agent:act"), [0, 1])
    assert rollout.returns_E.tolist() == [0.0, 2 * 0.5]


def test_a_folder_is_a_policy_with_a_target(tmp_path, monkeypatch):
    loaded = []

    class Loaded(FakePolicy):
        @classmethod
        def load(cls, folder):
            loaded.append(folder)
            return cls()

    monkeypatch.setattr(actors, "Policy", Loaded)
    actor = load_actor(str(tmp_path), target_return=5)
    assert loaded == [str(tmp_path)]
    # A second block starts anew, also when it is of another size.
    assert roll_out(stairs(3), actor, [10, 11, 12]).returns_E.tolist() == [1.5, 3, 0.5]
    assert roll_out(stairs(1), actor, [11]).returns_E.tolist() == [3.0]
    with pytest.raises(ValueError, match="is a policy, which needs a target return"):
        load_actor(str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "nothing",
            "'nothing': no such folder; expected one of a trained policy, a .z",
        ),
        (
            "no_such:act",
            "'no_such:act': No module named 'no_such'; expected a 'module:",
        ),
        ("math:pi", "'math:pi': found no callable 'pi' in math"),
        ("none.zip", "'none.zip': no such file"),
        ("text.zip", "'text.zip' is no agent saved by stable-baselines3 (File is not"),
        ("other.zip", "'other.zip' is no agent saved by stable-baselines3 ("),
        ("dqn.zip", "'dqn.zip': found an agent of another algorithm, expected one of "),
        ("memory.zip", "'memory.zip': found an agent of another algorithm, expected "),
    ],
)
def test_wrong_actors_are_refused_in_one_line(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "text.zip").write_text("text")
    memory = '{"clip_range": 0, "policy_class": {"__module__": "sb3.recurrent"}}'
    for name, file, text in (
        ("other", "weights", ""),
        ("dqn", "data", "{}"),
        ("memory", "data", memory),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr(file, text)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_actor(spec)
    assert str(caught.value).startswith(f"actor {message}")
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
        archive.writestr("data", '{"clip_range": 0}')
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(ValueError, match="pip install stable-baselines3"):
        load_actor(str(tmp_path / "agent.zip"))


@pytest.mark.parametrize("name", ["PPO", "A2C", "SAC", "TD3", "DDPG"])
def test_agents_of_stable_baselines3(name, tmp_path):
    sb3 = pytest.importorskip("stable_baselines3")
    environments = make_environments("Pendulum-v1", {}, 4)
    options = {"use_sde": True} if name == "A2C" else {}
    agent = getattr(sb3, name)("MlpPolicy", environments[0], seed=1, **options)
    agent.save(tmp_path / "agent.zip")
    states_ExS = np.stack([one.reset(seed=3)[0] for one in environments])

    def actions(seed=None, blocks=1):
        actor = load_actor(str(tmp_path / "agent.zip"), seed=seed)
        return np.stack([actor(4)(states_ExS, None) for _ in range(blocks)])

    expected_ExA = agent.predict(states_ExS, deterministic=True)[0]
    assert actions().tolist() == [expected_ExA.tolist()]
    drawn_NxExA = actions(seed=7, blocks=2)
    assert drawn_NxExA.tolist() == actions(seed=7, blocks=2).tolist()
    if name in ("TD3", "DDPG"):
        assert (drawn_NxExA == expected_ExA[None]).all(), "they have nothing to draw"
    else:
        # Eight draws, of which some may be clipped to the same bound.
        assert len(np.unique(drawn_NxExA)) >= 6, "each draws for itself"
        assert drawn_NxExA.tolist() != actions(seed=8, blocks=2).tolist()


def test_a_trained_agent_fills_a_dataset(tmp_path):
    sb3 = pytest.importorskip("stable_baselines3")
    spec = "dt_jax/SimulatedTrading-v0"
    environments = make_environments(spec, {"episode_length": 20}, 4)
    agent = sb3.PPO("MlpPolicy", environments[0], n_steps=128, n_epochs=2, seed=0)
    agent.learn(256).save(tmp_path / "agent")
    actor = load_actor(str(tmp_path / "agent.zip"), seed=0)
    record_episodes(tmp_path / "data", environments, actor, num_episodes=6, seed=0)
    read = load_trajectories(tmp_path / "data")
    assert (read.num_trajectories, read.state_dim, read.act_dim) == (6, 61, 6)
    assert read.lengths.tolist() == [20] * 6
    assert read.actions.slice(0, 120).std() > 0.3
    assert np.abs(read.actions.slice(0, 120)).max() <= 1.0


@pytest.mark.slow
def test_ppo_learns_to_trade_and_its_data_shows_it(tmp_path):
    sb3 = pytest.importorskip("stable_baselines3")
    # With more, small batches wait for each other: 7 times as long on busy cores.
    pytest.importorskip("torch").set_num_threads(1)
    known = np.concatenate([e["observations"] for e in simulated_episodes()])
    mean, std = known.mean(axis=0), known.std(axis=0)

    def market():
        return gymnasium.wrappers.TransformObservation(
            simulated_env(),
            lambda state: ((state - mean) / std).astype(np.float32),
            Box(-np.inf, np.inf, mean.shape),
        )

    vector = sb3.common.env_util.make_vec_env(market, n_envs=4, seed=0)
    agent = sb3.PPO("MlpPolicy", vector, n_steps=256, batch_size=128, gamma=0.9, seed=0)
    agent.learn(80_000).save(tmp_path / "agent")
    environments = [market() for _ in range(10)]
    actors = {
        "ppo": load_actor(str(tmp_path / "agent.zip"), seed=0),
        "random": random_actor(environments[0], seed=0),
    }
    returns = {}
    for name, actor in actors.items():
        record_episodes(tmp_path / name, environments, actor, num_episodes=50, seed=50)
        read = load_trajectories(tmp_path / name)
        assert read.lengths.tolist() == [80] * 50
        returns[name] = read.returns_to_go[read.starts]
    # Ten times the standard error of either mean lies between them.
    assert returns["ppo"].mean() > returns["random"].mean() + 500
    assert returns["ppo"].std() > 50

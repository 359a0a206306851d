# SPDX-License-Identifier: Apache-2.0
"""Who acts: a function, an agent of stable-baselines3, a policy, or chance."""

import sys
import zipfile

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from test_rollout import FakePolicy, Stairs, stairs

from dt_jax.acting import actors
from dt_jax.acting.actors import load_actor, random_actor
from dt_jax.acting.environments import make_environments
from dt_jax.acting.rollout import record_episodes, roll_out
from dt_jax.data.readers import load_trajectories
from dt_jax.trading.simulation import (
    simulated_env,
    simulated_episodes,
)

pytestmark = pytest.mark.usefixtures("compile_fast")


def test_random_actions_fill_their_space_and_differ_by_block():
    actor = random_actor(Stairs(width=2), seed=0)
    blocks_NxExA = np.array([actor(50)(None, None) for _ in range(20)])
    assert blocks_NxExA.shape == (20, 50, 2)
    assert len(np.unique(blocks_NxExA)) > 1900
    assert abs(blocks_NxExA.mean()) < 0.1
    assert -1 <= blocks_NxExA.min() < -0.99
    free = Stairs(space=Box(-np.inf, np.inf, (1,)))
    assert np.isfinite(random_actor(free, seed=0)(3)(None, None)).all()


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

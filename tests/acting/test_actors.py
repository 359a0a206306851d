# SPDX-License-Identifier: Apache-2.0
"""Who acts: a function, an agent of stable-baselines3, a policy, or chance."""

import base64
import json
import pickle
import sys
import warnings
import zipfile
from types import SimpleNamespace

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

PPO = {
    "policy_class": {"__module__": "stable_baselines3.common.policies"},
    "clip_range": 0.2,
    "gae_lambda": 0.95,
}


def save_zip(file, data, **texts):
    """A zip as stable-baselines3 writes it, but for the weights."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", json.dumps(data))
        for name, text in texts.items():
            archive.writestr(f"{name}.txt", text)


class FakeAgent:
    """Of either package: does as half the first number that it sees says."""

    use_sde = False
    observation_space = action_space = Box(-1, 1, (2,))

    def predict(self, states_ExS, deterministic):
        return states_ExS[:, :1] / 2, None


@pytest.fixture
def loaded(monkeypatch):
    """Both packages, though they are not there; the agents loaded: (package, class)."""
    found = []

    class Package:
        def __init__(self, name):
            self.name = name

        def __getattr__(self, algorithm):
            def load(*_, **__):
                found.append((self.name, algorithm))
                return FakeAgent()

            return SimpleNamespace(load=load)

    for name in ("stable_baselines3", "sb3_contrib"):
        monkeypatch.setitem(sys.modules, name, Package(name))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(manual_seed=id))
    return found


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
        ("old.zip", "'old.zip' is no agent saved by stable-baselines3 ('policy_class"),
        (
            "qr.zip",
            "'qr.zip': found a policy of sb3_contrib.qrdqn.policies, expected an agent "
            "of PPO, TRPO, A2C, SAC, TD3, DDPG, DQN, TQC, CrossQ",
        ),
        (
            "memory.zip",
            "'memory.zip': found a policy of sb3_contrib.common.recurrent.policies, ex",
        ),
        (
            "own.zip",
            "'own.zip': found a policy of my_policies, expected an agent of PPO, TRPO, "
            "A2C, SAC, TD3, DDPG, DQN, TQC, CrossQ; say by algorithm=PPO or the like ",
        ),
    ],
)
def test_wrong_actors_are_refused_in_one_line(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "text.zip").write_text("text")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("weights", "")
    save_zip(tmp_path / "old.zip", {"clip_range": 0.2})
    for name, module in (
        ("qr", "sb3_contrib.qrdqn.policies"),
        ("memory", "sb3_contrib.common.recurrent.policies"),
        ("own", "my_policies"),
    ):
        data = PPO | {"policy_class": {"__module__": module}}
        save_zip(tmp_path / f"{name}.zip", data)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_actor(spec)
    assert str(caught.value).startswith(f"actor {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "package", "hint"),
    [
        (PPO, "stable_baselines3", "of PPO, needs a package: pip install stable-b"),
        (
            {"policy_class": {"__module__": "sb3_contrib.tqc.policies"}},
            "sb3_contrib",
            "an agent of TQC, needs a package: pip install sb3-contrib",
        ),
    ],
)
def test_a_missing_package_is_named(data, package, hint, tmp_path, monkeypatch):
    save_zip(tmp_path / "agent.zip", data | {"target_entropy": -1.0})
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=hint):
        load_actor(str(tmp_path / "agent.zip"))


@pytest.mark.parametrize(
    ("module", "hyperparameters", "asked", "expected"),
    [
        ("stable_baselines3.common", "gae_lambda clip_range", "", "PPO"),
        ("stable_baselines3.common", "gae_lambda", "", "A2C"),
        ("stable_baselines3.common", "gae_lambda cg_max_steps", "", "TRPO"),
        ("stable_baselines3.sac", "target_entropy", "", "SAC"),
        ("stable_baselines3.td3", "policy_delay target_policy_noise", "", "TD3"),
        ("sb3_contrib.tqc", "target_entropy", "", "TQC"),
        ("sb3_contrib.crossq", "target_entropy policy_delay", "", "CrossQ"),
        # A class of one's own says nothing, whatever its hyperparameters look like.
        ("my_agents", "target_entropy policy_delay", "CrossQ", "CrossQ"),
        ("my_agents", "target_entropy", "DDPG", "DDPG"),
        # The others know better.
        ("sb3_contrib.crossq", "target_entropy policy_delay", "SAC", "CrossQ"),
    ],
)
def test_the_policys_own_name_decides_the_algorithm(
    module, hyperparameters, asked, expected, loaded, tmp_path
):
    data = {"policy_class": {"__module__": f"{module}.policies"}}
    data |= dict.fromkeys(hyperparameters.split(), 0.5)
    save_zip(tmp_path / "agent.zip", data)
    actor = load_actor(str(tmp_path / "agent.zip"), algorithm=asked)
    ours = expected in ("TRPO", "TQC", "CrossQ")
    package = "sb3_contrib" if ours else "stable_baselines3"
    assert loaded == [(package, expected)]
    assert actor(1)(np.array([[3.0, 0.0]]), None).tolist() == [[1.5]]


def test_an_algorithm_that_is_none_of_them_is_refused():
    with pytest.raises(ValueError, match=r"^algorithm='REDQ': expected one of PPO, T"):
        load_actor("agent.zip", algorithm="REDQ")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModuleNotFoundError("No module\n named 'gym'"), "ModuleNotFoundError: No mo"),
        (KeyError("observation_space"), "No module named 'gym.spaces'"),
    ],
)
def test_what_does_not_unpickle_is_one_line(error, told, loaded, tmp_path, monkeypatch):
    def fail(*_, **__):
        if isinstance(error, KeyError):  # as stable-baselines3 does of some errors
            warnings.warn(
                "Could not deserialize object observation_space. Consider using ...\n"
                "Exception: No module named 'gym.spaces'",
                stacklevel=1,
            )
        raise error

    package = SimpleNamespace(PPO=SimpleNamespace(load=fail))
    monkeypatch.setitem(sys.modules, "stable_baselines3", package)
    versions = "- OS: Linux\n- Python: 3.8.10\n- Numpy: 1.21.5\n- Gym: 0.21.0\n"
    save_zip(tmp_path / "agent.zip", PPO, system_info=versions)
    with pytest.raises(ValueError, match="saved with") as caught:
        load_actor(str(tmp_path / "agent.zip"))
    message = str(caught.value)
    assert "zip', saved with Python 3.8.10, Numpy 1.21.5, Gym 0.21.0, can" in message
    assert f"cannot be loaded here ({told}" in message
    assert "'gym" in message
    assert "save it anew with a current stable-baselines3" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["observation", "action"])
def test_an_agent_of_other_spaces_is_refused(name, loaded, tmp_path, monkeypatch):
    save_zip(tmp_path / "agent.zip", PPO)
    space = gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(3)])
    monkeypatch.setattr(FakeAgent, f"{name}_space", space)
    with pytest.raises(ValueError, match=rf"its {name}s are Tuple\(.*, expected a Box"):
        load_actor(str(tmp_path / "agent.zip"))


class Normalizer:
    """Like a VecNormalize: what is pickled and what it does."""

    def __init__(self, mean):
        self.obs_rms = SimpleNamespace(mean=np.array(mean))

    def normalize_obs(self, states_ExS):
        return ((states_ExS - self.obs_rms.mean) / 4).astype(np.float32)


def first_number(states_ExS):
    return states_ExS[:, :1]


def test_an_actor_sees_normalised_observations_and_the_data_has_raw_ones(tmp_path):
    """Seed 10: states (10, 0), (10, 1); normalised, the first number is -1/2."""
    file = tmp_path / "vecnormalize.pkl"
    file.write_bytes(pickle.dumps(Normalizer([12.0, 0.0])))
    actor = load_actor(f"{__name__}:first_number", normalization=str(file))
    record_episodes(tmp_path / "data", stairs(1), actor, num_episodes=1, seed=10)
    read = load_trajectories(tmp_path / "data")
    assert read.states.slice(0, 2).tolist() == [[10, 0], [10, 1]]
    assert read.actions.slice(0, 2).tolist() == [[-0.5], [-0.5]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, ": no such file"),
        (b"text", " cannot be loaded here (UnpicklingError: "),
        (
            b"cno_such_gym.spaces\nBox\n.",
            " cannot be loaded here (ModuleNotFoundError:",
        ),
        (pickle.dumps([1]), ": found a list, expected a VecNormalize of stable-base"),
        (
            pickle.dumps(Normalizer({})),
            ": found a Normalizer, expected a VecNormalize ",
        ),
        (
            pickle.dumps(Normalizer([1.0] * 3)),
            ": normalises 3 numbers, but an observation has 2",
        ),
    ],
)
def test_a_normalization_that_does_not_fit_is_named(content, message, tmp_path):
    file = tmp_path / "normalize.pkl"
    if content is not None:
        file.write_bytes(content)

    def collect():
        actor = load_actor(f"{__name__}:first_number", normalization=str(file))
        record_episodes(tmp_path / "data", stairs(1), actor, num_episodes=1, seed=0)

    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        collect()
    assert str(caught.value).startswith(f"normalization={str(file)!r}{message}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["vecnormalize.pkl", "vec_normalize.pkl", None])
def test_a_normalization_beside_an_agent_is_warned_about(
    name, loaded, tmp_path, monkeypatch
):
    said = []
    monkeypatch.setattr(actors.logging, "warning", said.append)
    spec = str(tmp_path / "agent.zip")
    save_zip(spec, PPO)
    (tmp_path / "replay_buffer.pkl").touch()
    if name is None:
        load_actor(spec)
        assert not said
        return
    (tmp_path / name).write_bytes(pickle.dumps(Normalizer([0.0, 0.0])))
    load_actor(spec, normalization=str(tmp_path / name))
    assert not said
    load_actor(spec)
    (line,) = said
    assert f"normalization={tmp_path / name}" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "name", ["PPO", "A2C", "SAC", "TD3", "DDPG", "TRPO", "TQC", "CrossQ"]
)
def test_agents_of_stable_baselines3(name, tmp_path):
    contrib = name in ("TRPO", "TQC", "CrossQ")
    sb3 = pytest.importorskip("sb3_contrib" if contrib else "stable_baselines3")
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


@pytest.mark.parametrize(
    ("pickled", "told"),
    [
        (b"cno_such_gym.spaces\nBox\n.", "No module named 'no_such_gym'"),
        (b"cgymnasium\nNoSuchBox\n.", "attribute 'NoSuchBox'"),
        (b"half", "UnpicklingError"),
    ],
)
def test_a_zip_of_other_versions_is_one_line(pickled, told, tmp_path):
    sb3 = pytest.importorskip("stable_baselines3")
    sb3.PPO("MlpPolicy", "Pendulum-v1", device="cpu").save(tmp_path / "new.zip")
    with (
        zipfile.ZipFile(tmp_path / "new.zip") as new,
        zipfile.ZipFile(tmp_path / "old.zip", "w") as old,
    ):
        for name in new.namelist():
            content = new.read(name)
            if name == "data":
                data = json.loads(content)
                serialized = base64.b64encode(pickled).decode()
                data["observation_space"][":serialized:"] = serialized
                content = json.dumps(data)
            old.writestr(name, content)
    with pytest.raises(ValueError, match=f"Numpy .*cannot be loaded.*{told}") as caught:
        load_actor(str(tmp_path / "old.zip"))
    assert "\n" not in str(caught.value)


def test_an_agent_acts_on_what_its_own_vecnormalize_gives(tmp_path):
    sb3 = pytest.importorskip("stable_baselines3")
    vector = sb3.common.env_util.make_vec_env("Pendulum-v1", n_envs=2, seed=0)
    vector = sb3.common.vec_env.VecNormalize(vector, clip_obs=1.0)
    agent = sb3.PPO("MlpPolicy", vector, n_steps=32, n_epochs=1, seed=0, device="cpu")
    agent.learn(64).save(tmp_path / "agent.zip")
    vector.save(tmp_path / "vecnormalize.pkl")
    actor = load_actor(
        str(tmp_path / "agent.zip"), normalization=str(tmp_path / "vecnormalize.pkl")
    )
    states_ExS = np.array([[0.5, -0.5, 6.0], [1.0, 0.0, -7.0]], np.float32)
    rms = vector.obs_rms
    seen_ExS = ((states_ExS - rms.mean) / np.sqrt(rms.var + 1e-8)).clip(-1.0, 1.0)
    expected_ExA = agent.predict(seen_ExS.astype(np.float32), deterministic=True)[0]
    found_ExA = actor(2)(states_ExS, None)
    assert found_ExA.tolist() == expected_ExA.tolist()
    assert (found_ExA != agent.predict(states_ExS, deterministic=True)[0]).all()


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

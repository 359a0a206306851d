# SPDX-License-Identifier: Apache-2.0
"""Episodes run in step, and are recorded as they happened."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from dt_jax.acting.actors import random_actor
from dt_jax.acting.environments import make_environments
from dt_jax.acting.rollout import record_episodes, roll_out, roll_out_targets
from dt_jax.data.readers import load_trajectories

pytestmark = pytest.mark.usefixtures("compile_fast")


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
    assert "evaluating: 3 steps, 0 episodes go on, " in capsys.readouterr().err


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
    images = stairs(1, space=Box(0, 1, (2, 2)))
    with pytest.raises(ValueError, match=r"actions are Box\(.*2, 2"):
        record_episodes(
            tmp_path / "data", images, constant(1.0), num_episodes=9, seed=0
        )

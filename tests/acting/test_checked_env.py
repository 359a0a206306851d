# SPDX-License-Identifier: Apache-2.0
"""Whatever kinds of numbers an environment gives, the rest sees floats, or one line."""

import datasets
import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from dt_jax.acting.checked_env import CheckedEnv, one_line, probe
from dt_jax.acting.rollout import record_episodes, roll_out
from dt_jax.data.episodes import describe_actions
from dt_jax.data.readers import load_trajectories
from dt_jax.data.writer import save_trajectories

ANY = spaces.Box(-np.inf, np.inf, (2,), np.float32)


class Told(gymnasium.Env):
    """Says what it is told to say: at the reset, and at every step."""

    def __init__(self, reset, step=None, space=ANY):
        self.observation_space = space
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.told, self.time = (reset, step or good_step()), 0

    def reset(self, *, seed=None, options=None):
        return self.told[0]

    def step(self, action):
        return self.told[1]


class Old(Told):
    """Of the API before Gymnasium 0.26."""

    def reset(self):
        return self.told[0]


def good_step(observation=(0.5, 1.5), reward=1.0, terminated=True, truncated=False):
    return observation, reward, terminated, truncated, {}


def constant(num_episodes):
    return lambda states_ExS, rewards_E: np.zeros((num_episodes, 1))


@pytest.mark.parametrize("space", [ANY, spaces.Box(0, 9, (2,), np.int64)])
@pytest.mark.parametrize("first", [[1, 2], np.array([1, 2]), (1, 2), np.uint8([1, 2])])
def test_whole_numbers_at_the_reset_cut_nothing_off_later(tmp_path, space, first):
    seen = []

    def actor(num_episodes):
        def act(states_ExS, rewards_E):
            seen.append(states_ExS.tolist())
            return np.zeros((1, 1))

        return act

    environment = Told((first, {}), good_step(terminated=False), space)
    environment = CheckedEnv(environment, max_episode_steps=3)
    path = tmp_path / "dataset"
    truncated = record_episodes(path, [environment], actor, num_episodes=1, seed=0)
    assert seen == [[[1, 2]], [[0.5, 1.5]], [[0.5, 1.5]]]
    np.testing.assert_array_equal(load_trajectories(path)[0]["states"], np.vstack(seen))
    assert truncated == 1


@pytest.mark.parametrize(
    ("shape", "observation"),
    [
        ((2,), [0.5, 1.5]),
        ((2,), np.array([[0.5], [1.5]])),
        ((2, 1), np.array([0.5, 1.5])),
        ((2,), jnp.array([0.5, 1.5])),
        ((1,), 0.5),
        ((1,), [0.5]),
        ((1,), np.float64(0.5)),
        ((), np.array([0.5])),
    ],
)
def test_one_observation_has_many_shapes(shape, observation):
    space = spaces.Box(-np.inf, np.inf, shape, np.float32)
    environment = CheckedEnv(Told((observation, {}), good_step(observation), space))
    expected = np.array([0.5, 1.5])[: max(1, space.shape[0] if shape else 1)]
    for found in (environment.reset(seed=0)[0], environment.step([0.0])[0]):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "reward", [2, 2.0, np.float32(2), np.array([2.0]), np.array(2), jnp.float32(2), [2]]
)
@pytest.mark.parametrize("end", [True, 1, np.bool_(True), np.array([True]), [True]])
def test_one_reward_and_one_end_have_many_kinds(reward, end):
    environment = Told(([0, 0], {}), good_step(reward=reward, terminated=end))
    _, found, *ends, _ = CheckedEnv(environment).step([0.0])
    assert (type(found), found, ends) == (float, 2.0, [True, False])


def test_structured_observations_are_flattened_as_gymnasium_does():
    space = spaces.Dict(
        {
            "b": spaces.Box(0, 9, (2, 2), np.int64),
            "a": spaces.Tuple([spaces.Box(-1, 1, (1,), np.float32)]),
        }
    )
    # Whole numbers are declared, others come: they are kept.
    observation = {"a": ([0.5],), "b": np.array([[1, 2], [3, 4.25]])}
    environment = CheckedEnv(Told((observation, {}), good_step(observation), space))
    parts = {"a": [0.5], "b": [1, 2, 3, 4.25]}
    expected = [number for key in space for number in parts[key]]
    assert environment.observation_space.shape == (5,)
    np.testing.assert_array_equal(environment.reset()[0], expected)
    order = gymnasium.spaces.flatten(
        space, {"a": (np.float32([0.5]),), "b": np.array([[1, 2], [3, 4]])}
    )
    np.testing.assert_array_equal(np.trunc(expected), np.trunc(order))
    assert environment.layout.startswith("Dict(")
    assert CheckedEnv(Told(None)).layout == ""


@pytest.mark.parametrize(
    ("space", "observation", "expected"),
    [
        (spaces.MultiBinary(3), [1, 0, 1], [1, 0, 1]),
        (spaces.Discrete(3), 1, [0, 1, 0]),
        (spaces.Tuple([spaces.Discrete(2), ANY]), (1, [0.5, 1.5]), [0, 1, 0.5, 1.5]),
    ],
)
def test_what_is_counted_becomes_floats(space, observation, expected):
    environment = CheckedEnv(Told((observation, {}), space=space))
    found, _ = environment.reset()
    assert found.dtype == environment.observation_space.dtype
    assert found.dtype.kind == "f"
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("reset", "step", "message"),
    [
        ([0, 0], None, "reset() returned list [0, 0], but Gymnasium expects (obser"),
        (([0, 0], 1), None, "reset() returned 2 values (list, int), but Gymnasium"),
        (([0, 0, 0], {}), None, "an observation of shape (3,), expected one of Box("),
        (([0, "x"], {}), None, "an observation list [0, 'x'] ("),
        (([0, 0], {}), ([0, 0], 1.0, True, {}), "step() returned 4 values (list, flo"),
        (([0, 0], {}), good_step(reward=[1, 2]), "step() gave reward=list [1, 2], exp"),
        (([0, 0], {}), good_step(reward=np.nan), "a reward of nan, expected a number"),
        (([0, 0], {}), good_step(terminated="no"), "step() gave terminated=str 'no', "),
    ],
)
def test_what_cannot_be_right_is_one_line(reset, step, message):
    environment = CheckedEnv(Told(reset, step))
    with pytest.raises(ValueError, match=r"^environment=Told: ") as caught:
        probe(environment)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_old_api_is_told_what_gymnasium_expects():
    with pytest.raises(ValueError, match=r"reset\(seed=0\) failed with TypeError: .*"):
        probe(CheckedEnv(Old([0, 0])))
    told = Told(([0, 0], {}), ([0, 0], 1.0, True, {}))
    limited = gymnasium.wrappers.TimeLimit(told, 5)
    with pytest.raises(ValueError, match=r"step\(action\) failed with ValueError: .*4"):
        probe(CheckedEnv(limited))


def test_a_probe_of_what_is_right_says_nothing():
    probe(CheckedEnv(Told(([0, 0], {}))))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (8, 8, 3), np.uint8),
        spaces.Dict({"camera": spaces.Box(0, 255, (8, 8), np.uint8), "x": ANY}),
    ],
)
def test_images_are_refused_by_name(space):
    with pytest.raises(ValueError, match=r"images, Box\(0, 255, \(8, 8"):
        CheckedEnv(Told(None, space=space))
    with pytest.raises(ValueError, match="observations are Text"):
        CheckedEnv(Told(None, space=spaces.Text(5)))


def test_no_episode_is_without_an_end():
    def endless():
        return Told(([0, 0], {}), good_step(terminated=False))

    def steps(environment, **limits):
        rollout = roll_out([CheckedEnv(environment, **limits)], constant, [0])
        assert rollout.truncated_E.tolist() == [True]
        return rollout.lengths_E[0]

    own = gymnasium.wrappers.TimeLimit(endless(), 7)
    assert steps(endless(), default_steps=5) == 5
    assert steps(own, default_steps=5) == 7
    assert steps(own, max_episode_steps=3, default_steps=5) == 3
    assert CheckedEnv(endless()).max_episode_steps == 100_000
    # An end on the last step is an end, and is not cut.
    ends = CheckedEnv(Told(([0, 0], {})), max_episode_steps=1)
    assert roll_out([ends], constant, [0]).truncated_E.tolist() == [False]


def test_a_dataset_says_what_its_observations_were(tmp_path):
    space = spaces.Dict({"x": ANY})
    environment = Told(({"x": [0, 1]}, {}), good_step({"x": [0, 1]}), space)
    path = tmp_path / "dataset"
    record_episodes(path, [environment], constant, num_episodes=2, seed=0)
    expected = {"environment": "Told", "observations": one_line(space)}
    expected |= describe_actions(environment.action_space)
    assert load_trajectories(path).about == expected
    opened = datasets.load_from_disk(str(path))
    assert load_trajectories(opened.select([1, 0])).about == expected
    save_trajectories(tmp_path / "other", load_trajectories(path))
    assert load_trajectories(tmp_path / "other").about == {}


class Chosen(Told):
    """Keeps what it is asked to do."""

    def __init__(self, space):
        super().__init__(((0.0, 0.0), {}), good_step())
        self.action_space = space

    def step(self, action):
        assert self.action_space.contains(action), action
        self.action = action
        return super().step(action)


@pytest.mark.parametrize(
    ("space", "sizes", "given", "expected"),
    [
        (spaces.Discrete(3), [3], [2], 2),
        (spaces.Discrete(3, start=-1), [3], [0], -1),
        (spaces.MultiDiscrete([2, 4]), [2, 4], [1, 3], [1, 3]),
        (spaces.MultiDiscrete([2, 4], start=[5, 0]), [2, 4], [1, 3], [6, 3]),
        (spaces.MultiBinary(3), [2, 2, 2], [0, 1, 1], [0, 1, 1]),
    ],
)
def test_choices_count_from_0(space, sizes, given, expected):
    environment = CheckedEnv(Chosen(space))
    assert environment.action_space == spaces.MultiDiscrete(sizes)
    probe(environment)
    roll_out([environment], lambda _: lambda *_: np.array([given]), [0])
    np.testing.assert_array_equal(environment.unwrapped.action, expected)


@pytest.mark.parametrize("given", [3, -1, 0.5])
def test_a_choice_that_there_is_not_is_refused(given):
    environment = CheckedEnv(Chosen(spaces.Discrete(3)))
    message = f"an action of {given}, expected whole numbers from 0 on, below 3"
    with pytest.raises(ValueError, match=message):
        roll_out([environment], lambda _: lambda *_: np.array([given]), [0])


def test_a_collection_of_choices_holds_whole_numbers(tmp_path):
    environment = CheckedEnv(Chosen(spaces.Discrete(3, start=1)))
    path = tmp_path / "dataset"
    record_episodes(
        path, [environment], lambda _: lambda *_: [2], num_episodes=1, seed=0
    )
    assert load_trajectories(path).action_sizes == (3,)

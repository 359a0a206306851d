# SPDX-License-Identifier: Apache-2.0
"""An episode in any shape and under any name is one form; a fault is one line."""

import numpy as np
import pytest

from dt_jax.data.episodes import read_episodes
from dt_jax.data.trajectories import Trajectories
from dt_jax.data.writer import save_trajectories


def make(**changes):
    """Three steps of two state features and one action; None: left out."""
    episode = {
        "observations": np.arange(6.0).reshape(3, 2),
        "actions": np.array([[1.0], [2.0], [3.0]]),
        "rewards": np.array([1.0, 2.0, 4.0]),
        "dones": np.array([False, True, False]),
    } | changes
    return {name: value for name, value in episode.items() if value is not None}


def read(episode):
    return next(read_episodes([episode]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"observations": None, "states": [[0, 1], [2, 3], [4, 5]]},
        {"observations": [[0, 1], [2, 3], [4, 5], [np.nan, np.inf]]},
        {"actions": [1, 2, 3]},
        {"rewards": [[1], [2], [4]]},
        {"dones": [[0.0], [1.0], [0.0]]},
        {"dones": None, "terminals": [0, 1, 0]},
        {"dones": None, "terminations": [0, 0, 0], "truncations": [[0], [1], [0]]},
        {"dones": None, "terminals": [0, 1, 0], "timeouts": [0, 1, 0]},
        {"infos": ["whatever"] * 9},
    ],
)
def test_an_episode_has_one_form(changes):
    episode = read(make(**changes))
    assert episode.states.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert episode.actions.tolist() == [[1], [2], [3]]
    assert episode.rewards.tolist() == [1, 2, 4]
    assert episode.dones.dtype == bool
    assert episode.dones.tolist() == [False, True, False]


def test_states_of_one_feature_may_be_flat_and_dones_missing():
    episode = read(make(observations=[7, 8, 9], dones=None))
    assert episode.states.tolist() == [[7], [8], [9]]
    assert episode.dones is None


def test_numbers_keep_their_precision():
    assert read(make()).states.dtype == np.float64
    assert read(make(observations=np.ones((3, 2), np.float32))).states.dtype == "f4"


FAULTS = [
    ({"rewards": None}, "found actions, dones, observations; expected observations ("),
    ({"states": np.ones((3, 2))}, "expected either observations or states, not both"),
    ({"observations": [[1, 2], [np.nan, 1], [1, 2]]},
     "column 'observations' holds nan at step 1, feature 0; expected a finite float32"),
    ({"actions": [1.0, 2.0, -np.inf]}, "column 'actions' holds -inf at step 2, fea"),
    ({"rewards": [1.0, 1e39, 0.0]}, "column 'rewards' holds 1e+39 at step 1; expected"),
    ({"dones": [0.0, np.nan, 0.0]}, "column 'dones' holds nan at step 1"),
    ({name: np.array(column)[:0] for name, column in make().items()},
     "column 'observations' has no steps; every trajectory needs at least one"),
    ({"observations": np.ones((1, 2)), "actions": [], "rewards": [], "dones": []},
     "column 'observations' has no steps"),
    ({"observations": np.ones((5, 2))},
     "column 'actions' has 3 steps, but column 'observations' has 5"),
    ({"observations": np.ones((4, 2)), "rewards": [1] * 4},
     "column 'actions' has 3 steps, but column 'observations' has 4"),
    ({"rewards": [1, 2]}, "column 'rewards' has 2 steps, but column 'observations'"),
    ({"timeouts": [1] * 4}, "column 'timeouts' has 4 steps"),
    ({"rewards": np.ones((3, 2))}, "column 'rewards' has shape (3, 2), expected (st"),
    ({"rewards": 1.0}, "column 'rewards' has shape (), expected (steps,)"),
    ({"observations": np.ones((3, 2, 1))},
     "column 'observations' has shape (3, 2, 1), expected (steps, width)"),
    ({"actions": np.ones((3, 0))}, "column 'actions' has rows of 0 numbers"),
    ({"actions": np.ones((3, 4))},
     "column 'actions' has rows of 4 numbers, but those of trajectory 0 have 1"),
    ({"observations": [1, 2, 3]}, "column 'observations' has rows of 1 numbers, but"),
    ({"observations": [[1, 2], [1], [1, 2]]}, "has rows of unequal widths"),
    ({"actions": ["a", "b", "c"]}, "column 'actions' holds <U1, expected numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "told"), FAULTS)
def test_a_fault_names_its_episode_and_nothing_is_written(tmp_path, changes, told):
    episodes = [make(), make(), make(**changes), make()]

    def save(episodes):
        save_trajectories(tmp_path / "data", episodes)

    for take in (Trajectories.from_episodes, save):
        with pytest.raises(ValueError) as caught:  # noqa: PT011, compared below
            take(iter(episodes))
        assert str(caught.value).startswith("trajectory 2: ")
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_episode_is_a_mapping():
    with pytest.raises(ValueError, match="trajectory 0: found list, expected"):
        read([1, 2])

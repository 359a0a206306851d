# SPDX-License-Identifier: Apache-2.0
"""What a run consists of: by what its actions are scaled."""

import numpy as np
import pytest

from dt_jax.commands.setup import Setup
from dt_jax.config import default_config
from dt_jax.data.writer import save_trajectories


@pytest.fixture
def setup_of(tmp_path):
    def build(actions, about=None, **changes):
        steps = len(actions)
        episode = {"states": np.zeros((steps, 3)), "rewards": np.zeros(steps)}
        path = tmp_path / "data"
        if not path.exists():
            save_trajectories(path, [episode | {"actions": actions}], about=about)
        config = default_config()
        config.data.path = str(path)
        config.train.batch_size = 4
        config.update_from_flattened_dict(changes)
        return Setup(config, tmp_path)

    return build


INSIDE, BEYOND = np.float32([[-1, 1], [0, 0.5]]), np.float32([[-1, 1], [0, 3]])


@pytest.mark.parametrize(
    ("actions", "changes"),
    [
        (INSIDE, {}),
        (BEYOND, {"data.action_scaling": "none"}),
        (BEYOND, {"model.action_tanh": False}),
        (np.int32([[0, 1], [0, 3]]), {}),
    ],
)
def test_actions_are_as_they_are(setup_of, actions, changes):
    setup = setup_of(actions, **changes)
    assert setup.statistics()["action_scaling"] is None
    assert "action_low" not in setup.record()["normalization"]


def test_actions_beyond_1_are_scaled_by_their_range(setup_of):
    setup = setup_of(BEYOND)
    found = setup.record()["normalization"]
    assert (found["action_low"], found["action_high"]) == ([-1, 1], [0, 3])
    center_A, half_A = setup.statistics()["action_scaling"]
    np.testing.assert_array_equal((center_A, half_A), [[-0.5, 2], [0.5, 1]])


def test_or_by_the_bounds_of_the_environment_made_wider(setup_of):
    """Pendulum-v1 has actions from -2 to 2."""
    setup = setup_of(np.float32([[-1], [3]]), **{"eval.environment": "Pendulum-v1"})
    found = setup.record()["normalization"]
    assert (found["action_low"], found["action_high"]) == ([-2], [3])
    # The run goes on without the environment, by the bounds that it had.
    again = setup_of(np.float32([[-1], [3]]))
    assert again.record()["normalization"]["action_low"] == [-1]
    again.go_on_from(setup.record())
    assert again.record()["normalization"]["action_low"] == [-2]


def test_or_by_the_bounds_that_the_data_knows(setup_of):
    setup = setup_of(np.float32([[-1], [3]]), {"action_bounds": [[-4], [2]]})
    found = setup.record()["normalization"]
    assert (found["action_low"], found["action_high"]) == ([-4], [3])


def test_a_run_that_had_none_goes_on_without(setup_of):
    setup = setup_of(BEYOND)
    record = setup.record()
    for key in ("action_low", "action_high"):  # as of a version that did not scale
        del record["normalization"][key]
    setup.go_on_from(record)
    assert setup.statistics()["action_scaling"] is None


def test_a_scaling_that_there_is_not_is_refused(setup_of):
    with pytest.raises(ValueError, match=r"data.action_scaling='minmax': expected"):
        setup_of(BEYOND, **{"data.action_scaling": "minmax"})

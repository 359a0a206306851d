# SPDX-License-Identifier: Apache-2.0
"""What a run consists of: by what its actions are scaled."""

import json

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


@pytest.fixture
def rewarded(tmp_path):
    """Config keys of a run on six trajectories, two of them held out."""
    episodes = [
        {"states": np.full((n, 3), n), "actions": np.zeros((n, 1))}
        | {"rewards": np.arange(n) + n}
        for n in (1, 2, 4, 4, 5, 7)
    ]
    save_trajectories(tmp_path / "data", episodes)
    return {"data.validation_fraction": 0.3, "data.relative_to": "timestep"}


def test_returns_are_relative_to_those_of_training(setup_of, rewarded):
    setup = setup_of(BEYOND, **rewarded)
    assert (len(setup.sampler.trajectories), len(setup.held_out.trajectories)) == (4, 2)
    data, means_T = setup.trajectories, setup.mean_returns_to_go
    training = data.select(np.isin(data.starts, setup.sampler.trajectories.starts))
    np.testing.assert_array_equal(means_T, training.mean_returns_to_go(985))
    normalization = setup.record()["normalization"]
    assert normalization["mean_returns_to_go"] == means_T.tolist()
    # The rows of both are in the store on the device, which is training's.
    expected = (data.relative_to(means_T).returns_to_go / 1000).astype("float32")
    for sampler in (setup.sampler, setup.held_out):
        np.testing.assert_array_equal(sampler.returns_to_go, expected)
    plain = setup_of(BEYOND, **rewarded | {"data.relative_to": "nothing"})
    expected = (data.returns_to_go / 1000).astype("float32")
    np.testing.assert_array_equal(plain.sampler.returns_to_go, expected)
    assert "mean_returns_to_go" not in plain.record()["normalization"]
    older = plain.record()
    del older["config"]["data"]["relative_to"]
    plain.go_on_from(older)
    with pytest.raises(
        ValueError, match=r"with data.relative_to=nothing, but now data"
    ):
        setup.go_on_from(older)
    with pytest.raises(ValueError, match=r"data.relative_to='time': expected nothing"):
        setup_of(BEYOND, **{"data.relative_to": "time"})


def test_members_have_the_relative_returns_that_they_would_have_alone(
    setup_of, rewarded
):
    keys = [{"data.return_scale": 10.0}, {"data.discount": 0.5}, {"seed": 1}]
    members = setup_of(BEYOND, **rewarded, sweep=json.dumps(keys)).members
    for member, own in zip(members, keys, strict=True):
        alone = setup_of(BEYOND, **rewarded, **own)
        for part in ("sampler", "held_out"):
            np.testing.assert_array_equal(
                getattr(member, part).returns_to_go, getattr(alone, part).returns_to_go
            )
        assert member.record()["normalization"] == alone.record()["normalization"]
    assert len({member.mean_returns_to_go[0] for member in members}) == 2


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

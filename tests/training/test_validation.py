# SPDX-License-Identifier: Apache-2.0
"""The held-out error is the plain one, of every step once; training knows none."""

import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dt_jax.data.segments import SegmentSampler
from dt_jax.data.trajectories import Trajectories
from dt_jax.model.decision_transformer import (
    DecisionTransformer,
    Prediction,
    init_params,
)
from dt_jax.training import validation
from dt_jax.training.feed import Feed
from dt_jax.training.validation import HeldOut

pytestmark = pytest.mark.usefixtures("compile_fast")
SETTINGS = {"max_ep_len": 7, "return_scale": 10.0, "weighting": "length", "seed": 0}


def make_trajectories(lengths, seed=0):
    draw = np.random.default_rng(seed).normal
    return Trajectories.from_episodes(
        {
            "states": draw(size=(length, 3)),
            "actions": draw(size=(length, 2)),
            "rewards": draw(size=length),
        }
        for length in lengths
    )


def make_held_out(
    data, chosen, model, *, size=4, length=4, placement="host", scaling=None
):
    """Over the chosen trajectories, with the feed of a sampler over all the others."""
    settings = {"batch_size": size, "context_length": length, **SETTINGS}
    rest = np.setdiff1d(np.arange(data.num_trajectories), chosen)
    feed = Feed(SegmentSampler(data.select(rest), **settings), placement, "float32")
    held_out = SegmentSampler(data.select(chosen), **settings)
    return HeldOut(held_out, model, feed, scaling)


def predict_zeros(variables, actions, **_):
    return Prediction(jnp.zeros_like(actions), None, None)


ZEROS = SimpleNamespace(apply=predict_zeros, action_sizes=(), predict_return=False)


def test_the_figures_on_paper():
    def episode(actions, rewards):
        actions = np.array(actions, float)[:, None]
        return {"states": actions, "actions": actions, "rewards": rewards}

    data = Trajectories.from_episodes(
        [
            episode([0, 2], [0, 0]),  # trained on: the mean action is 1
            episode([1, 2, 3], [0, 0, 10]),  # returns-to-go 1, 1, 1
            episode([0, 3], [10, 20]),  # 3, 2
        ]
    )
    measure = make_held_out(data, [1, 2], ZEROS, length=2)
    found = measure.evaluate({}, data.select([0]))
    assert found == {
        "mse": pytest.approx((1 + 4 + 9 + 0 + 9) / 5),
        "mse_per_dimension": [found["mse"]],
        # The quantiles 0 to 60 % are 1, that of 80 % is 2: two bins are left of five.
        "bins": [
            {"from": 1.0, "to": 2.0, "steps": 3, "mse": pytest.approx(14 / 3)},
            {"from": 2.0, "to": 3.0, "steps": 2, "mse": pytest.approx(9 / 2)},
        ],
        "references": {
            "mean_action": pytest.approx((0 + 1 + 4 + 1 + 4) / 5),
            "previous_action": pytest.approx((0 + 1 + 1 + 1 + 9) / 5),
        },
    }
    assert json.loads(json.dumps(found)) == found
    # Returns predicted as 1.5 miss by -0.5 three times, by 0.5 and by 1.5: the loss
    # has that, too, and the errors of actions are as before.
    half = SimpleNamespace(
        apply=lambda _, returns_to_go, **rest: predict_zeros(_, **rest)._replace(
            return_preds=jnp.full_like(returns_to_go, 1.5)
        ),
        action_sizes=(),
        predict_return=True,
    )
    asking = make_held_out(data, [1, 2], half, length=2)
    assert asking.evaluate({}, data.select([0])) == found
    missed = (3 * 0.01 * 0.5**2 + 0.99 * (0.5**2 + 1.5**2)) / 5
    assert float(asking.loss({})) == pytest.approx(found["mse"] + missed, rel=1e-6)


def test_the_figures_equal_a_plain_loop_wherever_the_data_lies():
    data, chosen = make_trajectories((6, 5, 1, 8, 3, 9, 2)), [5, 1, 2, 3]
    model = DecisionTransformer(
        state_dim=3, act_dim=2, hidden_size=8, n_layer=1, max_ep_len=7
    )
    params = jax.jit(partial(init_params, model))(jax.random.key(0))
    apply, squares, returns = jax.jit(model.apply), [], []
    for start, length in zip(data.starts[chosen], data.lengths[chosen], strict=True):
        for first in range(0, length, 4):  # without any padding
            steps = np.arange(first, min(first + 4, length))
            rows = start + steps
            states = data.states.slice(0, 34)[rows].astype(np.float32)
            actions = data.actions.slice(0, 34)[rows].astype(np.float32)
            to_go = (data.returns_to_go[rows] / 10.0).astype(np.float32)
            prediction = apply(
                {"params": params},
                states=((states - data.state_mean[None]) / data.state_std[None])[None],
                actions=actions[None],
                returns_to_go=to_go[None, :, None],
                timesteps=np.minimum(steps, 6)[None],
                attention_mask=np.ones((1, len(steps))),
            )
            squares += list(np.square(prediction.action_preds[0] - actions))
            returns += list(to_go)
    squares_NxA, returns = np.array(squares), np.array(returns)
    # The same float32 arithmetic, summed in another order.
    close = partial(np.testing.assert_allclose, rtol=1e-5)
    for placement in ("host", "device"):
        measure = make_held_out(data, chosen, model, placement=placement)
        found = measure.evaluate(params, data.select([0, 4, 6]))
        close(measure.loss(params), squares_NxA.mean())
        close(found["mse"], squares_NxA.mean())
        close(found["mse_per_dimension"], squares_NxA.mean(axis=0))
        *_, last = found["bins"]
        assert (len(found["bins"]), last["to"]) == (5, returns.max())
        for part in found["bins"]:
            end = np.inf if part is last else part["to"]
            inside = (returns >= part["from"]) & (returns < end)
            assert part["steps"] == inside.sum()
            close(part["mse"], squares_NxA[inside].mean())


@pytest.mark.parametrize("length", [1, 3, 50])
@pytest.mark.parametrize("size", [4, 64])
def test_every_step_counts_once(size, length):
    data = make_trajectories(np.random.default_rng(1).integers(1, 20, size=30))
    chosen = np.arange(0, 30, 2)
    measure = make_held_out(data, chosen, ZEROS, size=size, length=length)
    found = measure.evaluate({}, data)
    held = data.select(chosen)
    assert sum(part["steps"] for part in found["bins"]) == held.num_steps
    actions_NxA = np.concatenate(
        [
            data.actions.slice(start, start + n)
            for start, n in zip(held.starts, held.lengths, strict=True)
        ]
    )
    # Rounded to float32 and summed in it.
    assert found["mse"] == pytest.approx(np.square(actions_NxA).mean(), rel=1e-5)


def test_a_record_reads_few_windows_batch_by_batch_in_one_shape(monkeypatch):
    traced, gathered = [], []

    def apply(variables, actions, **_):
        traced.append(actions.shape)
        return predict_zeros(variables, actions)

    data = make_trajectories((2, 8, 12, 1, 3))
    measure = make_held_out(
        data, [1, 2, 3, 4], SimpleNamespace(**vars(ZEROS) | {"apply": apply})
    )

    def gather(sampler, episodes_B, starts_B, gather=measure._feed.gather):
        gathered.append(list(zip(episodes_B.tolist(), starts_B.tolist(), strict=True)))
        return gather(sampler, episodes_B, starts_B)

    monkeypatch.setattr(measure._feed, "gather", gather)
    monkeypatch.setattr(validation, "LOGGED_SEGMENTS", 3)
    # Of the windows (0, 0), (0, 4), (1, 0), (1, 4), (1, 8), (2, 0) and (3, 0):
    loss = measure.loss({})
    assert gathered == [[(0, 0), (1, 0), (1, 8), (3, 0)]]  # the last one is padding
    rows = np.r_[2:6, 10:14, 18:22]
    actions_NxA = data.actions.slice(0, 26)[rows]
    # Rounded to float32 and summed in it.
    assert float(loss) == pytest.approx(np.square(actions_NxA).mean(), rel=1e-6)
    measure.evaluate({}, data)
    assert [len(windows) for windows in gathered] == [4, 4, 4]
    assert traced == [(4, 4, 2)]


def test_training_draws_every_step_but_those_held_out():
    training, held = make_trajectories(range(1, 13)).split(0.3)
    assert (training.num_trajectories, held.num_trajectories) == (8, 4)
    sampler = SegmentSampler(training, batch_size=32, context_length=4, **SETTINGS)
    draws = [sampler.layout(*sampler.draw(step)) for step in range(40)]
    drawn = {row for rows_BxK, *_ in draws for row in rows_BxK.ravel().tolist()}

    def rows_of(data):
        return {
            row
            for start, length in zip(data.starts, data.lengths, strict=True)
            for row in range(start, start + length)
        }

    assert drawn == rows_of(training)
    assert rows_of(training) | rows_of(held) == set(range(78))
    assert rows_of(training).isdisjoint(rows_of(held))


def test_discrete_figures_on_paper():
    def episode(actions):
        actions = np.array(actions)
        zeros = np.zeros(len(actions))
        return {"states": zeros[:, None], "actions": actions, "rewards": zeros}

    data = Trajectories.from_episodes([episode([2, 0, 2]), episode([2, 2, 0, 1])])
    logits = jnp.log(jnp.float32([1, 1, 2])).reshape(1, 1, 3)
    says_two = SimpleNamespace(
        apply=lambda _, actions, **__: Prediction(
            jnp.broadcast_to(logits, actions.shape), None, None
        ),
        action_sizes=(3,),
        predict_return=False,
    )
    measure = make_held_out(data, [1], says_two, length=3)
    found = measure.evaluate({}, data.select([0]))
    entropy = (2 * np.log(2) + 2 * np.log(4)) / 4
    assert found == {
        "cross_entropy": pytest.approx(entropy),
        "accuracy": 0.5,
        "accuracy_per_dimension": [0.5],
        "bins": [{"from": 0.0, "to": 0.0, "steps": 4, "accuracy": 0.5}],
        # Of those trained on, 2 is the most frequent. Of 2, 2, 0, 1, the first being
        # compared with it, only two repeat the one before.
        "references": {"most_frequent_action": 0.5, "previous_action": 0.5},
    }
    assert float(measure.loss({})) == pytest.approx(entropy)


def test_errors_of_scaled_actions_are_in_the_units_of_the_data():
    data = make_trajectories((4, 4, 4))
    scaling = np.float32([0.0, 0.0]), np.float32([2.0, 10.0])
    plain = make_held_out(data, [1], ZEROS)
    scaled = make_held_out(data, [1], ZEROS, scaling=scaling)
    expected, found = (each.evaluate({}, data.select([0])) for each in (plain, scaled))
    # Float32 divided and multiplied by the same numbers.
    mse = "mse_per_dimension"
    np.testing.assert_allclose(found[mse], expected[mse], rtol=1e-6)
    assert found["references"] == expected["references"]
    squares_A = np.array(expected[mse]) / np.square(scaling[1])
    np.testing.assert_allclose(scaled.loss({}), squares_A.mean(), rtol=1e-6)

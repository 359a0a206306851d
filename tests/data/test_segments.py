# SPDX-License-Identifier: Apache-2.0
"""Segments equal the notebook's collator, and are drawn as it means to draw them."""

import random
import sys
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from dt_jax.data import rows
from dt_jax.data.segments import (
    ACTION_PADDING,
    Batch,
    SegmentSampler,
    action_scaling,
    normalize,
    scale_actions,
    unscale_actions,
)
from dt_jax.data.trajectories import Trajectories

SETTINGS = {
    "batch_size": 8,
    "context_length": 5,
    "max_ep_len": 985,
    "return_scale": 1000.0,
    "weighting": "length",
    "seed": 0,
}


def make_episodes(lengths, dtype=np.float32, seed=0):
    draw = np.random.default_rng(seed).normal
    return [
        {
            "states": draw(3, 5, size=(n, 3)).astype(dtype),
            "actions": draw(size=(n, 2)).astype(dtype),
            "rewards": draw(size=n).astype(dtype),
        }
        for n in lengths
    ]


def make_sampler(lengths=(3, 1, 40, 9), **changes):
    store = Trajectories.from_episodes(make_episodes(lengths))
    return SegmentSampler(store, **SETTINGS | changes)


def collate(episode, start, *, context_length, max_ep_len, return_scale, **_):
    """One row of the notebook's collator in its double precision, not normalised."""
    rewards = [float(reward) for reward in episode["rewards"][start:]]
    returns = [rewards[-1]]
    for reward in rewards[-2::-1]:
        returns.insert(0, reward + returns[0])
    taken = min(len(rewards), context_length)

    def left_pad(values, padding=0.0):
        values = np.asarray(values, np.float64)[:taken]
        missing = np.full((context_length - taken, *values.shape[1:]), padding)
        return np.concatenate([missing, values])

    timesteps = np.arange(start, start + taken)
    timesteps[timesteps >= max_ep_len] = max_ep_len - 1
    row = Batch(
        states=left_pad(episode["states"][start:]),
        actions=left_pad(episode["actions"][start:], -10.0),
        rewards=left_pad(rewards)[:, None],
        returns_to_go=left_pad(returns)[:, None] / return_scale,
        timesteps=left_pad(timesteps),
        attention_mask=left_pad(np.ones(taken)),
    )
    floats = Batch(*(values.astype(np.float32) for values in row))
    return floats._replace(timesteps=row.timesteps.astype(np.int32))


def assert_same_bits(batch, expected):
    for name, found, wanted in zip(Batch._fields, batch, expected, strict=True):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), name
        np.testing.assert_array_equal(found, wanted, err_msg=name)
        assert found.tobytes() == wanted.tobytes(), name  # tells -0.0 from 0.0


def test_a_segment_on_paper():
    store = Trajectories.from_episodes(
        [
            {"states": [[7]], "actions": [[7.0]], "rewards": [7]},
            {
                "states": [[1], [2], [3]],
                "actions": [[0.1], [0.2], [0.3]],
                "rewards": [-4, 5, 6],
            },
        ]
    )
    changes = {"context_length": 4, "max_ep_len": 2, "return_scale": 10.0}
    sampler = SegmentSampler(store, **SETTINGS | changes)
    batch = sampler.gather(np.array([1, 1]), np.array([1, 0]))
    np.testing.assert_array_equal(batch.states[..., 0], [[0, 0, 2, 3], [0, 1, 2, 3]])
    np.testing.assert_array_equal(
        batch.actions[..., 0], np.float32([[-10, -10, 0.2, 0.3], [-10, 0.1, 0.2, 0.3]])
    )
    np.testing.assert_array_equal(batch.rewards[..., 0], [[0, 0, 5, 6], [0, -4, 5, 6]])
    np.testing.assert_array_equal(
        batch.returns_to_go[..., 0], np.float32([[0, 0, 1.1, 0.6], [0, 0.7, 1.1, 0.6]])
    )
    np.testing.assert_array_equal(batch.timesteps, [[0, 0, 1, 1], [0, 0, 1, 1]])
    np.testing.assert_array_equal(batch.attention_mask, [[0, 0, 1, 1], [0, 1, 1, 1]])


@settings(deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    context_length=st.integers(1, 8),
    max_ep_len=st.integers(1, 14),
    return_scale=st.sampled_from([1000.0, 1.0, 0.3]),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 99),
)
def test_any_batch_is_the_collators(lengths, dtype, seed, **changes):
    options = SETTINGS | changes | {"seed": seed}
    episodes = make_episodes(lengths, dtype, seed)
    sampler = SegmentSampler(Trajectories.from_episodes(episodes), **options)
    episodes_B, starts_B = sampler.draw(seed)
    rows = [
        collate(episodes[episode], start, **options)
        for episode, start in zip(episodes_B, starts_B, strict=True)
    ]
    batch = sampler.batch(seed)
    assert_same_bits(batch, Batch(*map(np.stack, zip(*rows, strict=True))))

    valid_BxK = batch.attention_mask > 0
    left_B = np.array(lengths)[episodes_B] - starts_B
    taken_B = np.minimum(left_B, changes["context_length"])
    np.testing.assert_array_equal(valid_BxK.sum(1), taken_B)
    assert valid_BxK[:, -1].all()
    assert (np.diff(batch.attention_mask) >= 0).all()
    assert (batch.actions[~valid_BxK] == ACTION_PADDING).all()
    assert not batch.timesteps[~valid_BxK].any()
    assert batch.timesteps.max() < changes["max_ep_len"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalized_states_are_the_collators(dtype):
    episodes = make_episodes((3, 1, 40, 9), dtype)
    store = Trajectories.from_episodes(episodes)
    sampler = SegmentSampler(store, **SETTINGS)
    states_BxKxS = sampler.batch(0).states
    mean, std = store.state_mean, store.state_std
    expected = (states_BxKxS.astype(np.float64) - mean) / std
    for array in (np.asarray, jnp.asarray):
        found = normalize(array(states_BxKxS), array(mean), array(std))
        # Two roundings in float32, of values up to 20 before they are divided by 5.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert normalize(states_BxKxS, mean, std).dtype == np.float32
    row_S = normalize(states_BxKxS[0, -1], mean, std)
    np.testing.assert_allclose(row_S, expected[0, -1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("weighting", ["length", "uniform"])
def test_a_batch_is_a_function_of_seed_and_step_alone(weighting):
    sampler = make_sampler(weighting=weighting)
    states = np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    batches = [sampler.batch(step) for step in range(4)]
    for step in (3, 0, 0, 2):
        assert_same_bits(sampler.batch(step), batches[step])
    assert_same_bits(make_sampler(weighting=weighting).batch(2), batches[2])
    assert states == (
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        random.getstate(),
    )


@pytest.mark.parametrize("weighting", ["length", "uniform"])
def test_every_seed_and_step_draws_another_batch(weighting):
    make = partial(make_sampler, (300, 700), weighting=weighting)
    draws = {
        b"".join(part.tobytes() for part in sampler.draw(step))
        for sampler in (make(seed=seed) for seed in range(9))
        for step in (*range(9), 10**6, 2**40)
    }
    assert len(draws) == 9 * 11


@pytest.mark.parametrize("weighting", ["length", "uniform"])
def test_draws_follow_their_distribution(weighting):
    lengths = np.array([1, 2, 3, 10, 50, 200, 600, 1200])
    sampler = make_sampler(lengths, weighting=weighting, batch_size=1000)
    draws = [sampler.draw(step) for step in range(100)]
    episodes_N, starts_N = (np.concatenate(part) for part in zip(*draws, strict=True))
    weights_E = lengths if weighting == "length" else np.ones(len(lengths))
    share_E = weights_E / weights_E.sum()
    counts_E = np.bincount(episodes_N, minlength=len(lengths))
    offsets_E = np.cumsum(lengths) - lengths
    cells_N = offsets_E[episodes_N] + starts_N
    assert (starts_N < lengths[episodes_N]).all()
    counts_N = np.bincount(cells_N, minlength=lengths.sum())
    share_N = np.repeat(share_E / lengths, lengths)
    # At least ten are expected everywhere; a fair sampler stays within these bounds
    # for 998 seeds of 1,000, and this seed is fixed.
    for counts, share in ((counts_E, share_E), (counts_N, share_N)):
        assert (100_000 * share).min() > 10
        assert 0.001 < chisquare(counts, 100_000 * share).pvalue < 0.999


@pytest.mark.parametrize("weighting", ["length", "uniform"])
def test_the_best_are_drawn_as_if_there_were_no_others(weighting):
    sampler = make_sampler((3, 1, 40, 9, 25), weighting=weighting, keep_best=0.4)
    assert 0 < len(sampler.kept) < 5
    alone = SegmentSampler(
        sampler.trajectories.select(sampler.kept), **SETTINGS | {"weighting": weighting}
    )
    for step in range(20):
        assert_same_bits(sampler.batch(step), alone.batch(step))


@pytest.mark.parametrize("weighting", ["length", "uniform"])
def test_a_batch_of_any_size_runs_equally_many_lines_of_python(weighting, monkeypatch):
    monkeypatch.setattr(rows, "THREAD_BYTES", 1 << 40)  # more threads are more lines

    def lines_run(batch_size):
        sampler = make_sampler(weighting=weighting, batch_size=batch_size)
        count = 0

        def trace(frame, event, _):
            nonlocal count
            count += event == "line" and "dt_jax" in frame.f_code.co_filename
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            sampler.batch(0)
        finally:
            sys.settrace(before)
        return count

    assert lines_run(4096) == lines_run(8) > 10


def test_gather_reads_across_pieces_and_leaves_the_store_alone():
    episodes = make_episodes((3, 1, 40, 9))
    whole = Trajectories.from_episodes(episodes)
    states_NxS, actions_NxA = whole.states.pieces[0], whole.actions.pieces[0]
    pieces = Trajectories.from_arrays(
        np.split(states_NxS.copy(), [4]),
        np.split(actions_NxA.copy(), [3, 44]),
        whole.rewards,
        starts=whole.starts,
        lengths=whole.lengths,
    )
    batch = SegmentSampler(pieces, **SETTINGS).batch(0)
    assert_same_bits(batch, SegmentSampler(whole, **SETTINGS).batch(0))
    np.testing.assert_array_equal(np.concatenate(pieces.states.pieces), states_NxS)
    np.testing.assert_array_equal(np.concatenate(pieces.actions.pieces), actions_NxA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"context_length": 0}, "context_length=0: expected at least 1"),
        ({"max_ep_len": 0}, "max_ep_len=0: expected at least 1"),
        ({"return_scale": 0.0}, "return_scale=0.0: expected above 0"),
        ({"return_scale": -1.0}, "return_scale=-1.0: expected above 0"),
        ({"return_scale": np.nan}, "return_scale=nan: expected above 0"),
        (
            {"weighting": "len"},
            "weighting='len': expected length or uniform; did you mean length?",
        ),
        ({"seed": -1}, "seed=-1: expected 0 to 2**32 - 1"),
        ({"keep_best": 0.0}, "keep_best=0.0: expected above 0, at most 1"),
        ({"keep_best": 1.1}, "keep_best=1.1: expected above 0, at most 1"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, compared below
        make_sampler(**changes)
    assert str(caught.value) == message


def test_actions_are_scaled_and_back():
    scaling = action_scaling(np.array([-2.0, 0.0, 7.0]), np.array([2.0, 4.0, 7.0]))
    actions_2x3 = np.float32([[-2, 4, 7], [1, 3, 7]])
    scaled_2x3 = scale_actions(actions_2x3, scaling)
    np.testing.assert_array_equal(scaled_2x3, [[-1, 1, 0], [0.5, 0.5, 0]])
    np.testing.assert_array_equal(unscale_actions(scaled_2x3, scaling), actions_2x3)
    assert scale_actions(actions_2x3, None) is actions_2x3

# SPDX-License-Identifier: Apache-2.0
"""The action error on trajectories that training never sees.

In go a sampler over them and parameters; out comes the mean of the training loss's own
errors, without dropout, and what it is made of. Every step is predicted once, from what
precedes it in its window of K steps.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dt_jax.data.segments import SegmentSampler, scale_actions
from dt_jax.data.trajectories import Trajectories
from dt_jax.model.decision_transformer import DecisionTransformer
from dt_jax.training.feed import Feed
from dt_jax.training.train_step import Errors, errors_of

NUM_BINS = 5  # of the returns-to-go, with about as many steps each
LOGGED_SEGMENTS = 256  # of a record: the cost of one or two updates, of 20 by default


class HeldOut:
    """Measures parameters on held-out trajectories, always in the same windows."""

    def __init__(
        self,
        sampler: SegmentSampler,
        model: DecisionTransformer,
        feed: Feed,
        action_scaling: tuple | None = None,
    ):
        """`feed` is training's; `sampler` is like its own, over the same rows."""
        data = sampler.trajectories
        owner_N = np.repeat(np.arange(data.num_trajectories), data.lengths)
        offset_N = np.arange(data.num_steps)
        offset_N -= (np.cumsum(data.lengths) - data.lengths)[owner_N]
        opens_N = offset_N % sampler.context_length == 0
        self._episodes_W, self._starts_W = owner_N[opens_N], offset_N[opens_N]
        returns_N = sampler.returns_to_go[data.starts[owner_N] + offset_N]
        # Each bin begins at a level that occurs, no two at the same: none is empty.
        levels = np.arange(NUM_BINS) / NUM_BINS
        lows_Q = np.unique(np.quantile(returns_N, levels, method="lower"))
        ends_Q = np.append(lows_Q[1:], np.float32(np.inf))
        self._edges = [*lows_Q.tolist(), float(returns_N.max())]
        self._sampler, self._feed = sampler, feed
        self._is_discrete = bool(model.action_sizes)
        self._predicts_return = model.predict_return
        # A squared error in the units of the data is so many times a scaled one.
        zero_and_one_2xA = np.float32([[0], [1]]) * np.ones(data.actions.shape[1])
        zero_A, one_A = scale_actions(zero_and_one_2xA, action_scaling)
        self._squared_units_A = 1 / np.square(one_A - zero_A)

        def add(sums, params, store, item):
            batch = feed.fetch(store, item)
            errors = errors_of(
                model, params, batch, data.state_mean, data.state_std, action_scaling
            )
            returns_BxKx1, valid_BxK = batch.returns_to_go, batch.attention_mask > 0
            inside_BxKxQ = (returns_BxKx1 >= lows_Q[None, None]) & valid_BxK[..., None]
            inside_BxKxQ &= returns_BxKx1 < ends_Q[None, None]
            errors = jax.tree.map(
                partial(jnp.einsum, "bkq,bka->qa", inside_BxKxQ, precision="highest"),
                errors,
            )
            found = inside_BxKxQ.sum(axis=(0, 1)), errors
            return jax.tree.map(jnp.add, sums, found)

        self._add = jax.jit(add)

    def loss(self, params: dict) -> jax.Array:
        """The mean error in LOGGED_SEGMENTS windows (or all), evenly spaced.

        It may still be on its way when this returns; `params` may be donated at once.
        """
        count = min(LOGGED_SEGMENTS, len(self._starts_W))
        windows = np.arange(count) * len(self._starts_W) // count
        steps_Q, errors = self._sums(params, windows)
        return errors.total() / (steps_Q.sum() * errors.actions.shape[1])

    def evaluate(self, params: dict, training: Trajectories) -> dict:
        """Of all held-out steps, in the units of the data, as JSON can hold it.

        Returns:
          mse; mse_per_dimension: A; bins of the scaled return-to-go: from, to (which
          only the last includes), steps, mse; references: the mse of the mean action
          of `training`, and of the previous action (the mean one at a first step).
          Of discrete actions cross_entropy, and accuracy in place of mse throughout;
          references: of the most frequent action of `training`, and of the previous.
        """
        windows = np.arange(len(self._starts_W))
        steps_Q, errors = jax.device_get(self._sums(params, windows))
        name, sums_QxA = "accuracy", errors.right
        if not self._is_discrete:
            name, sums_QxA = "mse", errors.actions * self._squared_units_A[None]
        mean_A = sums_QxA.sum(axis=0, dtype=np.float64) / steps_Q.sum()
        mean_Q = sums_QxA.mean(axis=1, dtype=np.float64) / steps_Q
        columns = self._edges[:-1], self._edges[1:], steps_Q.tolist(), mean_Q.tolist()
        bins = [
            {"from": low, "to": high, "steps": steps, name: mean}
            for low, high, steps, mean in zip(*columns, strict=True)
        ]
        found = {
            name: float(mean_A.mean()),
            f"{name}_per_dimension": mean_A.tolist(),
            "bins": bins,
            "references": _references(self._sampler.trajectories, training),
        }
        if self._is_discrete:
            count = steps_Q.sum() * len(mean_A)
            entropy = float(errors.actions.sum(dtype=np.float64) / count)
            found = {"cross_entropy": entropy} | found
        return found

    def _sums(self, params, windows):
        """Steps Q and sums of `Errors` [Q, ...], batch after batch of one shape."""
        # One device does it: the figures do not depend on how many there are.
        params, store = jax.tree.map(
            lambda leaf: leaf.addressable_data(0), (params, self._feed.store)
        )
        actions = self._sampler.trajectories.actions
        shape = len(self._edges) - 1, actions.shape[1]
        zeros_QxA = np.zeros(shape, np.float32)
        errors = Errors(
            zeros_QxA,
            zeros_QxA if self._is_discrete else None,
            zeros_QxA[:, :1] if self._predicts_return else None,
        )
        sums = np.zeros(shape[0], np.int32), errors
        sums = jax.device_put(sums, jax.local_devices()[0])
        size = self._sampler.batch_size
        padded = np.pad(windows, (0, -len(windows) % size), constant_values=-1)
        for window_B in padded.reshape(-1, size):
            draw = self._episodes_W[window_B], self._starts_W[window_B]
            item = self._feed.gather(self._sampler, *draw)
            mask_BxK = item.attention_mask * (window_B >= 0)[:, None]
            item = item._replace(attention_mask=mask_BxK)
            jax.block_until_ready(sums)  # else all batches would lie in memory
            sums = self._add(sums, params, store, item)
        return sums


def _references(held_out, training):
    if training.action_sizes:
        return _accuracies(held_out, training.most_frequent_action())
    mean_A, constant, copied = training.mean_action(), 0.0, 0.0
    for start, length in zip(held_out.starts, held_out.lengths, strict=True):
        actions_TxA = held_out.actions.slice(start, start + length).astype(np.float64)
        previous_TxA = np.concatenate((mean_A[None], actions_TxA[:-1]))
        constant += np.square(actions_TxA - mean_A[None]).sum()
        copied += np.square(actions_TxA - previous_TxA).sum()
    numbers = held_out.num_steps * held_out.act_dim
    return {"mean_action": constant / numbers, "previous_action": copied / numbers}


def _accuracies(held_out, frequent_A):
    constant, copied = 0, 0
    for start, length in zip(held_out.starts, held_out.lengths, strict=True):
        actions_TxA = held_out.actions.slice(start, start + length)
        previous_TxA = np.concatenate((frequent_A[None], actions_TxA[:-1]))
        constant += (actions_TxA == frequent_A[None]).sum()
        copied += (actions_TxA == previous_TxA).sum()
    numbers = held_out.num_steps * len(frequent_A)
    return {
        "most_frequent_action": float(constant / numbers),
        "previous_action": float(copied / numbers),
    }

# SPDX-License-Identifier: Apache-2.0
"""The flat store on a device, from which the train call gathers its batches.

In go trajectories of NumPy, out comes a `Store`; row numbers make a `Batch` of it.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Sharding

from dt_jax.data.segments import ACTION_PADDING, Batch, SegmentSampler, normalize
from dt_jax.data.trajectories import Trajectories

STORE_DTYPES = ("float32", "bfloat16")
BLOCK_BYTES = 1 << 28  # of the store that are sent at once


class Store(NamedTuple):
    """The flat store on a device: NxS, NxA, N and N float32, returns-to-go scaled;
    discrete actions NxM int32. Returns-to-go of several kinds stand one after another.

    It lies there row by row, as `gather_resident` reads it. States in bfloat16 are
    normalised by `state_mean` and `state_std` (S): of raw money its eight bits would
    keep nothing that matters.
    """

    states: jax.Array
    state_mean: jax.Array
    state_std: jax.Array
    actions: jax.Array
    rewards: jax.Array
    returns_to_go: jax.Array


def make_store(
    trajectories: Trajectories,
    returns_to_go: np.ndarray,
    store_dtype: str,
    everywhere: Sharding,
) -> Store:
    """Send it block by block: host and device never hold a second copy of it.

    Args:
      returns_to_go: N float32 scaled, or those of several kinds one after another.
      store_dtype: of the states. everywhere: over all local devices, whole on each.
    """
    state_mean, state_std = trajectories.state_mean, trajectories.state_std
    shapes = shapes_of(trajectories, store_dtype, everywhere)

    def send(rows, shape):
        @partial(jax.jit, donate_argnums=0, out_shardings=shape.format)
        def fill(whole_NxW, block_MxW, offset):
            if whole_NxW.dtype == jnp.bfloat16:
                block_MxW = normalize(block_MxW, state_mean, state_std)
            block_MxW = block_MxW.astype(whole_NxW.dtype)
            return jax.lax.dynamic_update_slice(whole_NxW, block_MxW, (offset, 0))

        zeros = partial(jnp.zeros, shape.shape, shape.dtype)
        whole_NxW = jax.jit(zeros, out_shardings=shape.format)()
        at_once = max(1, BLOCK_BYTES // (4 * shape.shape[1]))
        for offset, piece in zip(rows.offsets, rows.pieces, strict=False):
            for start in range(0, len(piece), at_once):
                # The last block overlaps the one before: all have the same shape.
                start = max(0, min(start, len(piece) - at_once))
                block_MxW = piece[start : start + at_once]
                block_MxW = block_MxW.astype(rows.dtype, copy=False)
                block_MxW = jax.device_put(block_MxW, everywhere)
                whole_NxW = fill(whole_NxW, block_MxW, int(offset) + start)
                jax.block_until_ready(whole_NxW)  # else all blocks would lie there
        return whole_NxW

    return Store(
        states=send(trajectories.states, shapes.states),
        state_mean=jax.device_put(state_mean, everywhere),
        state_std=jax.device_put(state_std, everywhere),
        actions=send(trajectories.actions, shapes.actions),
        rewards=jax.device_put(trajectories.rewards, everywhere),
        returns_to_go=jax.device_put(returns_to_go, everywhere),
    )


def store_shapes(
    num_rows: int,
    state_dim: int,
    action_width: int,
    store_dtype: str,
    action_dtype: np.dtype,
    sharding: Sharding | None = None,
) -> Store:
    """The arrays of a `Store`: shapes, dtypes, and with a sharding where and how.

    Left to itself a TPU keeps a matrix of 3,941 columns column by column, which pads
    less; each call would copy the whole store into rows before it gathers any.
    """

    def array(*shape, dtype=jnp.float32):
        by_rows = sharding and Format(Layout(tuple(range(len(shape)))), sharding)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=by_rows)

    return Store(
        states=array(num_rows, state_dim, dtype=store_dtype),
        state_mean=array(state_dim),
        state_std=array(state_dim),
        actions=array(num_rows, action_width, dtype=action_dtype),
        rewards=array(num_rows),
        returns_to_go=array(num_rows),
    )


def shapes_of(
    trajectories: Trajectories, store_dtype: str, sharding: Sharding | None = None
) -> Store:
    """`store_shapes` of these trajectories."""
    states, actions = trajectories.states, trajectories.actions
    widths = *states.shape, actions.shape[1]
    return store_shapes(*widths, store_dtype, actions.dtype, sharding)


class Segments(NamedTuple):
    """Where the rows of a batch lie in a `Store`: BxK int32 each, and the mask."""

    rows: jax.Array
    timesteps: jax.Array
    attention_mask: jax.Array


def segments(
    sampler: SegmentSampler, episodes_B: np.ndarray, starts_B: np.ndarray
) -> Segments:
    """What `gather_resident` needs of a batch, in the place of its steps."""
    layout = sampler.layout(episodes_B, starts_B)
    return Segments(*(part.astype(np.int32) for part in layout))


def gather_resident(
    store: Store, segments: Segments, kind: jax.Array | None = None
) -> Batch:
    """What `SegmentSampler.gather` does, on the device; `kind`: of returns-to-go."""
    valid_BxK = segments.attention_mask > 0
    valid_BxKx1 = valid_BxK[..., None]
    rows_BxK = segments.rows
    returns_BxK = rows_BxK if kind is None else rows_BxK + kind * len(store.rewards)
    states_BxKxS = store.states[rows_BxK]
    if states_BxKxS.dtype != jnp.float32:
        mean, std = store.state_mean[None, None], store.state_std[None, None]
        states_BxKxS = states_BxKxS * std + mean
    return Batch(
        states=jnp.where(valid_BxKx1, states_BxKxS, 0.0),
        actions=jnp.where(valid_BxKx1, store.actions[rows_BxK], ACTION_PADDING),
        rewards=jnp.where(valid_BxK, store.rewards[rows_BxK], 0.0)[..., None],
        returns_to_go=jnp.where(valid_BxK, store.returns_to_go[returns_BxK], 0.0)[
            ..., None
        ],
        timesteps=segments.timesteps,
        attention_mask=valid_BxK.astype(jnp.float32),
    )

# SPDX-License-Identifier: Apache-2.0
"""The vectorised segment sampler: (seed, step) -> a left-padded NumPy `Batch`.

The one owner of padding, return scale, normalisation and scaled actions, for training
and for acting. Only NumPy; `Batch`, `normalize` and `scale_actions` also carry JAX
arrays.
"""

from typing import NamedTuple

import numpy as np

from dt_jax.data.trajectories import Trajectories
from dt_jax.system.text import check_choice

ACTION_PADDING = -10  # what HF's collator puts there; everything else pads with 0
WEIGHTINGS = ("length", "uniform")


class Batch(NamedTuple):
    """B segments of K steps; the fields are the arguments of HF's model.

    states BxKxS, actions BxKxA, rewards BxKx1, returns_to_go BxKx1 float32; timesteps
    BxK int32; attention_mask BxK float32, 1 at valid steps. States and actions are as
    stored: `normalize` and `scale_actions` (where actions are discrete, BxKxM int32,
    `one_hot` of model/choices.py) are applied where they are used.
    """

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    returns_to_go: np.ndarray
    timesteps: np.ndarray
    attention_mask: np.ndarray

    def __repr__(self) -> str:
        fields = zip(self._fields, self, strict=True)
        shapes = (f"{name} {'x'.join(map(str, x.shape))}" for name, x in fields)
        return f"Batch({', '.join(shapes)})"


def normalize(states, state_mean, state_std):
    """(states - mean) / std over the last axis; NumPy or JAX, whichever comes in."""
    shape = (1,) * (states.ndim - 1) + (-1,)
    return (states - state_mean.reshape(shape)) / state_std.reshape(shape)


def action_scaling(low_A: np.ndarray, high_A: np.ndarray) -> tuple:
    """Center and half-width, A float32 each: `low` becomes -1 and `high` becomes 1.

    A dimension that never changes becomes 0.
    """
    low_A, high_A = np.asarray(low_A, np.float64), np.asarray(high_A, np.float64)
    half_A = np.where(high_A > low_A, (high_A - low_A) / 2, 1.0)
    return ((high_A + low_A) / 2).astype(np.float32), half_A.astype(np.float32)


def scale_actions(actions, scaling):
    """(actions - center) / half-width over the last axis; NumPy or JAX. Without a
    `scaling` (None) actions are as they came."""
    if scaling is None:
        return actions
    return normalize(actions, *scaling)


def unscale_actions(scaled, scaling):
    """What `scale_actions` makes `scaled` of."""
    if scaling is None:
        return scaled
    shape = (1,) * (scaled.ndim - 1) + (-1,)
    center_A, half_A = scaling
    return scaled * half_A.reshape(shape) + center_A.reshape(shape)


class SegmentSampler:
    """Draws segments as HF's collator does, all rows of a batch at once.

    A trajectory is drawn with replacement, a start uniformly in [0, length), and up to
    `context_length` steps are read from it; the rest is padded on the left.

    Args:
      trajectories: what to draw from. kept, an attribute: those that are drawn.
      batch_size: B. context_length: K.
      max_ep_len: timesteps count from the start of the trajectory and stop at
        `max_ep_len - 1`.
      return_scale: returns-to-go are divided by it.
      weighting: 'length' draws trajectories in proportion to their length, 'uniform'
        all alike.
      seed: with the step it determines a batch; there is no other state.
      keep_best: only `trajectories.best(keep_best)` are drawn.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        *,
        batch_size: int,
        context_length: int,
        max_ep_len: int,
        return_scale: float,
        weighting: str,
        seed: int,
        keep_best: float = 1.0,
    ):
        for key, value in (
            ("batch_size", batch_size),
            ("context_length", context_length),
            ("max_ep_len", max_ep_len),
        ):
            if value < 1:
                raise ValueError(f"{key}={value}: expected at least 1")
        if not 0 < return_scale < np.inf:
            raise ValueError(f"return_scale={return_scale}: expected above 0")
        check_choice("weighting", weighting, WEIGHTINGS)
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed}: expected 0 to 2**32 - 1")
        self.trajectories = trajectories
        self.batch_size = batch_size
        self.context_length = context_length
        self.max_ep_len = max_ep_len
        self.return_scale = return_scale
        self.returns_to_go = (trajectories.returns_to_go / return_scale).astype(
            np.float32
        )
        self._weighting = weighting
        self.seed = seed
        self.keep_best = keep_best
        self.kept = trajectories.best(keep_best)
        self._lengths = trajectories.lengths[self.kept]
        self._ends = np.cumsum(self._lengths)

    def __repr__(self) -> str:
        return (
            f"SegmentSampler({self.trajectories!r}, batch_size={self.batch_size}, "
            f"context_length={self.context_length})"
        )

    def batch(self, step: int) -> Batch:
        """The batch of update `step`, counted from 0."""
        return self.gather(*self.draw(step))

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The trajectories and the starts in them, B int64 each, of update `step`."""
        generator = np.random.Generator(
            np.random.Philox(key=self.seed, counter=[0, 0, 0, step])
        )
        lengths, size = self._lengths, self.batch_size
        if self._weighting == "length":
            # A uniform step of all steps is a trajectory by length and a uniform start.
            steps_B = generator.integers(self._ends[-1], size=size)
            drawn_B = np.searchsorted(self._ends, steps_B, side="right")
            return self.kept[drawn_B], steps_B - (self._ends - lengths)[drawn_B]
        drawn_B = generator.integers(len(lengths), size=size)
        return self.kept[drawn_B], generator.integers(lengths[drawn_B])

    def gather(self, episodes_B: np.ndarray, starts_B: np.ndarray) -> Batch:
        """The segments that begin at these starts of these trajectories."""
        rows_BxK, timesteps_BxK, mask_BxK = self.layout(episodes_B, starts_B)
        blocks = rows_BxK[:, 0], mask_BxK.sum(axis=1), self.context_length
        states_BxKxS = self.trajectories.states.gather(*blocks, 0.0)
        actions_BxKxA = self.trajectories.actions.gather(*blocks, ACTION_PADDING)
        return Batch(
            states=states_BxKxS,
            actions=actions_BxKxA,
            rewards=np.where(mask_BxK, self.trajectories.rewards[rows_BxK], 0.0)[
                ..., None
            ],
            returns_to_go=np.where(mask_BxK, self.returns_to_go[rows_BxK], 0.0)[
                ..., None
            ],
            timesteps=timesteps_BxK,
            attention_mask=mask_BxK.astype(np.float32),
        )

    def layout(self, episodes_B: np.ndarray, starts_B: np.ndarray):
        """Where a segment's steps lie: rows BxK int64, timesteps BxK int32, mask BxK.

        Padded places name the segment's first row, so that a gather stays in bounds.
        """
        taken_B = np.minimum(
            self.trajectories.lengths[episodes_B] - starts_B, self.context_length
        )
        offsets_BxK = np.arange(self.context_length)[None] - (
            self.context_length - taken_B[:, None]
        )
        mask_BxK = offsets_BxK >= 0
        offsets_BxK = np.maximum(offsets_BxK, 0)
        first_B = self.trajectories.starts[episodes_B] + starts_B
        timesteps_BxK = np.minimum(starts_B[:, None] + offsets_BxK, self.max_ep_len - 1)
        return (
            first_B[:, None] + offsets_BxK,
            (timesteps_BxK * mask_BxK).astype(np.int32),
            mask_BxK,
        )

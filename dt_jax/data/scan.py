# SPDX-License-Identifier: Apache-2.0
"""One pass over all stored steps: ranges, digests; what is not finite is found.

Many threads, a block each. Rows and where each trajectory lies come in, small arrays go
out; what trajectories are is `trajectories.py`'s to say.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import xxhash

from dt_jax.data.rows import Rows

BLOCK_BYTES = 8 << 20  # what one thread scans at a time: small enough for the cache


class Scan(NamedTuple):
    """Of NxW rows: the range of each column, W float64; E uint64, a digest of each
    trajectory."""

    minimum: np.ndarray
    maximum: np.ndarray
    digests: np.ndarray


def scan(
    rows: Rows,
    starts_E: np.ndarray,
    lengths_E: np.ndarray,
    visit: Callable[[np.ndarray, int], None] | None = None,
) -> Scan:
    """Read everything once.

    Args:
      visit: is called with each block of whole trajectories, when it is in the cache,
        and the row that it begins with; by many threads.
    """
    digests_E = np.empty(len(starts_E), np.uint64)

    def scan_run(run):
        members, start, stop = run
        block_NxW = rows.slice(start, stop)
        for trajectory in members:
            offset = starts_E[trajectory] - start
            digests_E[trajectory] = xxhash.xxh3_64_intdigest(
                block_NxW[offset : offset + lengths_E[trajectory]]
            )
        if visit is not None:
            visit(block_NxW, start)
        return block_NxW.min(axis=0), block_NxW.max(axis=0)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        minima, maxima = zip(
            *pool.map(scan_run, blocks(rows, starts_E, lengths_E)), strict=True
        )
    return Scan(
        np.min(minima, axis=0).astype(np.float64),
        np.max(maxima, axis=0).astype(np.float64),
        digests_E,
    )


def is_finite(values: np.ndarray) -> np.ndarray:
    """Bools of the same shape: finite, and small enough for the float32 of a batch."""
    with np.errstate(over="ignore"):
        return np.isfinite(np.asarray(values, np.float32))


def blocks(
    rows: Rows, starts_E: np.ndarray, lengths_E: np.ndarray
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Trajectories that lie one behind the other, in blocks for one thread each: their
    numbers, the first row and the one after the last."""
    order = np.argsort(starts_E, kind="stable")
    start, stop = starts_E[order], (starts_E + lengths_E)[order]
    row_bytes = rows.nbytes // rows.shape[0]
    block = start * row_bytes // BLOCK_BYTES
    piece = rows.piece_of(start)
    follows = (
        (start[1:] == stop[:-1]) & (block[1:] == block[:-1]) & (piece[1:] == piece[:-1])
    )
    bounds = np.concatenate(([0], np.flatnonzero(~follows) + 1, [len(order)]))
    for first, last in pairwise(bounds):
        yield order[first:last], int(start[first]), int(stop[last - 1])


def check_finite(values: np.ndarray, trajectory: int, name: str) -> None:
    """Raise ValueError, naming the first, where a value of this column is not finite.

    Args:
      values: T or TxW, of one trajectory.
    """
    bad = np.argwhere(~is_finite(values))
    if len(bad):
        step, *feature = bad[0]
        place = f"step {step}" + "".join(f", feature {index}" for index in feature)
        raise ValueError(
            f"trajectory {trajectory}: column {name!r} holds {values[tuple(bad[0])]} "
            f"at {place}; expected a finite float32"
        )


def combine(
    state_digests_E: np.ndarray,
    action_digests_E: np.ndarray,
    rewards_N: np.ndarray,
    starts_E: np.ndarray,
    lengths_E: np.ndarray,
) -> np.ndarray:
    """E uint64: one digest a trajectory, of states, actions, rewards and length."""
    nothing_E = np.zeros_like(state_digests_E)
    parts = np.stack([state_digests_E, action_digests_E, nothing_E], axis=1)
    for trajectory, (start, length) in enumerate(zip(starts_E, lengths_E, strict=True)):
        parts[trajectory, 2] = xxhash.xxh3_64_intdigest(
            rewards_N[start : start + length]
        )
    return np.array([xxhash.xxh3_64_intdigest(line) for line in parts], np.uint64)

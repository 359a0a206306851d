# SPDX-License-Identifier: Apache-2.0
"""Mean and std of the states: computed, or compared with what a dataset says they are.

The comparison looks at a sample of the rows while all of them are read anyway. Where it
finds a difference, both are computed, so that what is right is never found wrong.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple

import numpy as np

from dt_jax.data.rows import Rows
from dt_jax.data.scan import blocks

STD_EPSILON = 1e-6  # Hugging Face's collator adds it to the population std
SAMPLED_ROWS = 1 << 16  # about; of less than twice as many, all
STANDARD_ERRORS = 6
TOLERANCE = 0.1
LARGE_SPAN = 100
LARGEST = 1e12  # in std; what is larger counts as this, so that no sum is infinite


class Misfit(NamedTuple):
    """Stored statistics that are not those of the data.

    features: how many. worst: the index of one, and what is stored and found for it.
    """

    features: int
    worst: int
    stored_mean: float
    stored_std: float
    found_mean: float
    found_std: float


def mean_and_std(
    rows: Rows, starts_E: np.ndarray, lengths_E: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """W float64 each: population mean, std + 1e-6, in one pass (Chan et al., 1979)."""

    def moments(run):
        _, start, stop = run
        block_NxW = rows.slice(start, stop).astype(np.float64)
        mean = block_NxW.mean(axis=0)
        return len(block_NxW), mean, np.square(block_NxW - mean[None]).sum(axis=0)

    count, mean, square = 0, 0.0, 0.0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for n, block_mean, block_square in pool.map(
            moments, blocks(rows, starts_E, lengths_E)
        ):
            delta = block_mean - mean
            total = count + n
            mean = mean + delta * (n / total)
            square = square + block_square + np.square(delta) * (count * n / total)
            count = total
    return mean, np.sqrt(square / count) + STD_EPSILON


class Comparison:
    """Compares the stored mean and std, S each, of NxS states in E trajectories.

    Give `visit` to `scan`, then ask for the `misfit`.
    """

    def __init__(
        self,
        rows: Rows,
        starts_E: np.ndarray,
        lengths_E: np.ndarray,
        mean: np.ndarray,
        std: np.ndarray,
    ):
        self._states = rows, starts_E, lengths_E
        self._mean, self._std = mean.astype(np.float64), std.astype(np.float64)
        # A row of each stretch of equal length, at a place that never comes round
        # again (multiples of the golden ratio), however regular the trajectories are.
        stretch = max(1, int(lengths_E.sum()) // SAMPLED_ROWS)
        first = np.arange(0, rows.shape[0], stretch)
        place = np.arange(len(first)) * 0.6180339887498949 % 1.0
        self._sampled = first + (place * stretch).astype(np.int64)
        self._sorted_starts_E = np.sort(starts_E)
        self._sums, self._lock = None, Lock()

    def visit(self, block_NxS: np.ndarray, start: int) -> None:
        """Add up the sampled rows of a block, the trajectories kept apart."""
        bounds = np.searchsorted(self._sampled, (start, start + len(block_NxS)))
        rows = self._sampled[slice(*bounds)]
        if not len(rows):
            return
        with np.errstate(all="ignore"):  # of values that are refused later
            values_NxS = (block_NxS[rows - start] - self._mean[None]) / self._std[None]
            values_NxS = values_NxS.clip(-LARGEST, LARGEST)
        moments_Nx2S = np.concatenate([values_NxS, np.square(values_NxS)], axis=1)
        owner = np.searchsorted(self._sorted_starts_E, rows, "right")
        first = np.flatnonzero(np.diff(owner, prepend=0))
        counts_C = np.diff(first, append=len(rows))
        sums_Cx2S = np.add.reduceat(moments_Nx2S, first)
        sums = (
            len(counts_C),
            counts_C.sum(),
            np.square(counts_C).sum(),
            sums_Cx2S.sum(axis=0),
            np.square(sums_Cx2S).sum(axis=0),
            counts_C @ sums_Cx2S,
        )
        with self._lock:
            before = self._sums or [0] * len(sums)
            self._sums = [a + b for a, b in zip(before, sums, strict=True)]

    def misfit(self, minimum: np.ndarray, maximum: np.ndarray) -> Misfit | None:
        """What does not fit, if anything; minimum, maximum: S, of the states.

        In units of the stored std a mean may be off by 0.1, and a variance by 0.2,
        besides six standard errors, for the data may be a part of what its statistics
        are of; trajectories are the independent samples. Few of them tell little, but
        a std above 2 where the data spans more than 100 is a fault in any case. A
        feature that never changes may have any std.
        """
        if not self._sums:
            return None
        clusters, count, squares, sums_2S, square_sums_2S, cross_2S = self._sums
        means_2S = sums_2S / count
        spread_2S = square_sums_2S - 2 * means_2S * cross_2S + means_2S**2 * squares
        degrees = (clusters - 1) / clusters or np.nan  # of one trajectory: no error
        errors_2S = np.sqrt(spread_2S.clip(0) / degrees) / count
        mean_error, variance_error = STANDARD_ERRORS * errors_2S.reshape(2, -1)
        rounding = 2 * np.spacing(np.abs(self._mean).astype(np.float32)) / self._std
        span = (maximum - minimum) / self._std

        def wrong(shift, scale):
            return (
                (np.abs(shift) > TOLERANCE + mean_error + rounding)
                | (np.abs(scale**2 - 1) > 2 * TOLERANCE + variance_error) & (span > 0)
                | (scale > 2) & (span > LARGE_SPAN)
            )

        shift, square = means_2S.reshape(2, -1)
        scale = np.sqrt((square - shift**2).clip(0)) + STD_EPSILON / self._std
        if not wrong(shift, scale).any():
            return None
        mean, std = mean_and_std(*self._states)
        shift = (mean.astype(np.float32) - self._mean) / self._std
        scale = std / self._std
        features = wrong(shift, scale)
        if not features.any():
            return None
        badness = np.max([np.abs(shift), scale, 1 / scale], axis=0)
        worst = int(np.argmax(np.where(features, badness, -1.0)))
        found = (self._mean[worst], self._std[worst], mean[worst], std[worst])
        return Misfit(int(features.sum()), worst, *map(float, found))

# SPDX-License-Identifier: Apache-2.0
"""Mean and std of the states: computed, or compared with what a dataset says they are.

The comparison looks at a sample of the rows while all of them are read anyway. Where it
finds a difference, both are computed, so that what is right is never found wrong.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from dt_jax.data.rows import Rows
from dt_jax.data.scan import blocks

STD_EPSILON = 1e-6  # Hugging Face's collator adds it to the population std
SAMPLED_ROWS = 1 << 12  # about; of less than twice as many, all
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
        sampled = first + (place * stretch).astype(np.int64)
        order = np.argsort(starts_E)
        owner = order[np.searchsorted(starts_E[order], sampled, "right") - 1]
        is_inside = (starts_E[owner] <= sampled) & (
            sampled < (starts_E + lengths_E)[owner]
        )
        self._sampled, self._owner = sampled[is_inside], owner[is_inside]
        size = len(self._sampled), rows.shape[1]
        self._sample = np.zeros(size, rows.pieces[0].dtype)

    def visit(self, block_NxS: np.ndarray, start: int) -> None:
        """Keep the sampled rows of a block."""
        bounds = np.searchsorted(self._sampled, (start, start + len(block_NxS)))
        here = slice(*bounds)
        self._sample[here] = block_NxS[self._sampled[here] - start]

    def misfit(self, minimum: np.ndarray, maximum: np.ndarray) -> Misfit | None:
        """What does not fit, if anything; minimum, maximum: S, of the states.

        In units of the stored std a mean may be off by 0.1, and a variance by 0.2,
        besides six standard errors, for the data may be a part of what its statistics
        are of; trajectories are the independent samples, and few of them tell little
        (Student's t). A std above 2 where the data spans more than 100 is a fault in
        any case. A feature that never changes may have any std.
        """
        if not len(self._sampled):
            return None
        shift, scale, mean_error, variance_error = self._estimate()
        rounding = 2 * np.spacing(np.abs(self._mean).astype(np.float32)) / self._std
        span = (maximum - minimum) / self._std

        def wrong(shift, scale):
            return (
                (np.abs(shift) > TOLERANCE + mean_error + rounding)
                | (np.abs(scale**2 - 1) > 2 * TOLERANCE + variance_error) & (span > 0)
                | (scale > 2) & (span > LARGE_SPAN)
            )

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

    def _estimate(self):
        """By the sample: how far means are off, the stds, and how far means and
        variances may be off by chance, S each, in units of the stored std."""
        values_NxS = self._sample.astype(np.float64)
        values_NxS -= self._mean[None]
        values_NxS /= self._std[None]
        np.clip(values_NxS, -LARGEST, LARGEST, out=values_NxS)
        count = len(self._sampled)
        first = np.flatnonzero(np.diff(self._owner, prepend=-1))
        counts_C = np.diff(first, append=count)
        degrees = len(first) - 1 or np.nan  # of one trajectory nothing is known
        # Student's t, nearly, at what is six standard errors where they are many.
        factor = np.sqrt(degrees * np.expm1(STANDARD_ERRORS**2 / degrees))
        means, errors = [], []
        for moments_NxS in (values_NxS, np.square(values_NxS)):
            sums_CxS = np.add.reduceat(moments_NxS, first)
            mean = sums_CxS.sum(axis=0) / count
            off_CxS = sums_CxS - counts_C[:, None] * mean[None]
            variance = np.square(off_CxS).sum(axis=0) * len(first) / degrees
            means.append(mean)
            errors.append(factor * np.sqrt(variance) / count)
        variance = (means[1] - np.square(means[0])).clip(0)
        return means[0], np.sqrt(variance) + STD_EPSILON / self._std, *errors

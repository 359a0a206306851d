# SPDX-License-Identifier: Apache-2.0
"""D4RL's HDF5: flat arrays of all steps, cut where an episode ends.

A file of D4RL's own says by its name which environment it is of.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dt_jax.data.episodes import Source

NAME = "D4RL's HDF5"
COLUMNS = ("observations", "actions", "rewards")
ENDS = ("terminals", "timeouts")
SIGNATURE = b"\x89HDF\r\n\x1a\n"
BLOCK_BYTES = 32 << 20  # steps are read in blocks of about this size


class Known(NamedTuple):
    """Of an environment of D4RL: its steps, the returns that count as 0 and 100, and
    its name today ('': none whose observations and rewards are the same)."""

    horizon: int
    score_range: tuple[float, float]
    environment: str = ""


# By the beginning of a file's name; the scores are those that D4RL has published.
KNOWN = {
    "halfcheetah": Known(1000, (-280.178953, 12135.0), "HalfCheetah-v4"),
    "hopper": Known(1000, (-20.272305, 3234.3), "Hopper-v4"),
    "walker2d": Known(1000, (1.629008, 4592.3), "Walker2d-v4"),
    "ant": Known(1000, (-325.6, 3879.7)),
    "maze2d-umaze": Known(300, (23.85, 161.86)),
    "maze2d-medium": Known(600, (13.13, 277.39)),
    "maze2d-large": Known(800, (6.7, 273.99)),
    "antmaze-umaze": Known(700, (0.0, 1.0)),
    "antmaze-medium": Known(1000, (0.0, 1.0)),
    "antmaze-large": Known(1000, (0.0, 1.0)),
    "pen": Known(100, (96.262799, 3076.8331017826877)),
    "hammer": Known(200, (-274.856578, 12794.134825156867)),
    "door": Known(200, (-56.512833, 2880.5693087298737)),
    "relocate": Known(200, (-6.425911, 4233.877797728884)),
    "kitchen": Known(280, (0.0, 4.0)),
}
KNOWN |= {
    f"bullet-{name}": Known(
        1000, scores, f"pybullet_envs_gymnasium:{environment}BulletEnv-v0"
    )
    for name, environment, scores in (
        ("halfcheetah", "HalfCheetah", (-1275.766996, 2381.6725)),
        ("hopper", "Hopper", (20.058972, 1441.8059623430963)),
        ("ant", "Ant", (373.705955, 2650.495)),
        ("walker2d", "Walker2D", (16.523877, 1623.6476303317536)),
    )
}
# What may follow that beginning, beside a version. D4RL's scores of maze2d are of the
# sparse reward, so 'dense' may not.
DATASETS = (
    "random|medium|expert|mixed|medium-replay|full-replay|medium-expert|random-expert|"
    "human|cloned|demos-clipped|expert-clipped|demos|bc-combined|complete|partial|play|"
    "diverse|sparse"
)


def files(path: Path, split: str) -> list[Path]:
    """Any HDF5: `read` says what is missing in one that no other format has taken."""
    return [path] if is_hdf5(path) else []


def read(files: list[Path]) -> Source:
    path = files[0]
    known, about = known_by_name(path.stem), {}
    if known:
        about["score_range"] = list(known.score_range)
    if known and known.environment:
        about |= {"environment": known.environment, "environment_kwargs": "{}"}
    with open_hdf5(path) as file:
        steps = _check(file)
        ends = _ends(file, steps, known and known.horizon)
    rest = steps - (int(ends[-1]) if len(ends) else 0)
    if rest == steps:
        raise ValueError(
            f"none of its {steps:,} steps ends an episode; expected one set in "
            f"{' or '.join(ENDS)}, or a name of D4RL, such as hopper-medium-v2.hdf5, "
            "which says how long an episode is"
        )
    if rest:
        about["left_out"] = f"the last {rest:,} steps, an episode without end"
    return Source(about, len(ends), _episodes(path, ends))


def known_by_name(name: str) -> Known | None:
    """What D4RL says of the environment of a dataset called so."""
    name = name.lower().replace("_", "-")
    for start, known in KNOWN.items():
        if re.fullmatch(rf"{start}(-({DATASETS}|v\d+))+", name):
            return known
    return None


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


@contextmanager
def open_hdf5(path: Path) -> Iterator:
    """An `h5py.File`; what it cannot read is a ValueError.

    Raises:
      ValueError: h5py is not installed, or the file is broken.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError(
            "HDF5 needs the package h5py: pip install h5py (the extra dt-jax[hdf5])"
        ) from None
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:  # h5py raises all of them
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"not a readable HDF5 file ({told})") from None


def _check(file) -> int:
    """How many steps all of its columns have."""
    missing = [name for name in COLUMNS if name not in file]
    if missing:
        found = list(file)
        shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
        raise ValueError(
            f"found {shown or 'nothing'} in the file, expected {', '.join(COLUMNS)} "
            f"and {' or '.join(ENDS)} (D4RL), or observations_0, ... (d3rlpy)"
        )
    steps = {n: len(file[n]) for n in (*COLUMNS, *ENDS) if n in file}
    for name, count in steps.items():
        if count != steps[COLUMNS[0]]:
            raise ValueError(
                f"column {name!r} has {count:,} steps, but column {COLUMNS[0]!r} has "
                f"{steps[COLUMNS[0]]:,}; all must be equally long"
            )
    return steps[COLUMNS[0]]


def _ends(file, steps, horizon):
    """Where episodes end: the number of the step after the last of each."""
    flags = [file[name] for name in ENDS if name in file]
    found = [np.zeros(0, np.int64)]
    for start in range(0, steps, BLOCK_BYTES):
        block = slice(start, start + BLOCK_BYTES)
        done = [np.asarray(flag[block]).reshape(-1).astype(bool) for flag in flags]
        if done:
            found.append(start + 1 + np.flatnonzero(np.any(done, axis=0)))
    ends = np.concatenate(found)
    if ENDS[1] in file or not horizon:
        return ends
    # No timeouts are stored: between two ends the environment's limit has cut.
    starts = np.concatenate(([0], ends))
    stops = np.append(ends, steps)
    cuts = [
        np.arange(start + horizon, stop + 1, horizon)
        for start, stop in zip(starts, stops, strict=True)
    ]
    return np.unique(np.concatenate([ends, *cuts]))


def _episodes(path, ends):
    with open_hdf5(path) as file:
        columns = {name: file[name] for name in COLUMNS}
        step_bytes = sum(
            column.dtype.itemsize * int(np.prod(column.shape[1:], dtype=np.int64))
            for column in columns.values()
        )
        starts = np.concatenate(([0], ends[:-1]))
        first = 0
        while first < len(ends):
            limit = starts[first] + max(1, BLOCK_BYTES // step_bytes)
            last = max(first + 1, int(np.searchsorted(ends, limit, "right")))
            begin = starts[first]
            block = {n: column[begin : ends[last - 1]] for n, column in columns.items()}
            for start, stop in zip(starts[first:last], ends[first:last], strict=True):
                steps = slice(start - begin, stop - begin)
                yield {name: values[steps] for name, values in block.items()}
            first = last

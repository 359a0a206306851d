# SPDX-License-Identifier: Apache-2.0
"""d3rlpy's HDF5, as `ReplayBuffer.dump` writes it: arrays of their own an episode."""

from pathlib import Path

from dt_jax.data.episodes import Source
from dt_jax.data.formats.d4rl import is_hdf5, open_hdf5

NAME = "d3rlpy's HDF5"
COLUMNS = ("observations", "actions", "rewards")


def files(path: Path, split: str) -> list[Path]:
    if not is_hdf5(path):
        return []
    with open_hdf5(path) as file:
        return [path] if {"columns", "num_episodes"} <= set(file) else []


def read(files: list[Path]) -> Source:
    with open_hdf5(files[0]) as file:
        count = int(file["num_episodes"][()])
        if "observations_0_0" in file:
            raise ValueError(
                "its observations are tuples of arrays; expected one array a step, "
                "as dt_jax.save_trajectories writes them"
            )
    return Source({}, count, _episodes(files[0], count))


def _episodes(path, count):
    with open_hdf5(path) as file:
        for number in range(count):
            yield {name: file[f"{name}_{number}"][()] for name in COLUMNS}

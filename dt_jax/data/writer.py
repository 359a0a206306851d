# SPDX-License-Identifier: Apache-2.0
"""Episodes to a dataset on disk, in the notebook's layout.

Episodes are checked, written and forgotten one by one; no number becomes a Python
object. What is written is whole or not there.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dt_jax.data.episodes import (
    ACTIONS,
    ENDS,
    REWARDS,
    STATES,
    STATISTICS,
    STRUCT,
    is_discrete,
    read_episodes,
)
from dt_jax.data.statistics import STD_EPSILON
from dt_jax.system.files import scratch

WRITE_BYTES = 64 << 20  # trajectories are written in batches of about this size


def save_trajectories(
    path: str | os.PathLike,
    episodes: Iterable[Mapping],
    *,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write episodes to `path` in the notebook's layout, streaming, all or nothing.

    Args:
      path: a folder that does not exist yet.
      episodes: as `Trajectories.from_episodes` takes them. States, rewards and
        continuous actions are written as float32, discrete actions as int32; an
        episode without `dones` is done at its last step. With at least S episodes the
        columns `state_mean` and `state_std` are written too (shorter columns cannot
        hold them, and a reader computes them).
      about: where they come from, for JSON; `Trajectories.about` gives it back.

    Raises:
      ValueError: `path` exists, or an episode is at fault.
    """
    import datasets  # takes seconds, which reading can do without

    path = Path(path).expanduser()
    if path.exists():
        raise ValueError(f"{path} exists already; choose a folder that does not")
    folder = path.with_name(f".{path.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir(parents=True)
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with scratch(folder):
            mean, std = _stream(folder / "rows.arrow", episodes)
            dataset = datasets.Dataset.from_file(str(folder / "rows.arrow"))
            if len(dataset) >= len(mean):
                padding = (0, len(dataset) - len(mean))
                columns = [np.pad(column, padding) for column in (mean, std)]
                statistics = pa.table(columns, names=list(STATISTICS))
                dataset = datasets.concatenate_datasets(
                    [dataset, datasets.Dataset(statistics)], axis=1
                )
            dataset.info.description = json.dumps(about) if about else ""
            dataset.save_to_disk(folder / "dataset")
            os.replace(folder / "dataset", path)
    finally:
        if not bars:
            datasets.enable_progress_bars()


def _stream(path, episodes):
    """Write the struct column batch by batch; return the states' mean and std."""
    writer, batch, batch_bytes = None, [], 0
    count, total, squares, shift = 0, 0.0, 0.0, None

    def flush():
        nonlocal writer
        columns = {key: [e[key] for e in batch] for key in batch[0]}
        struct = pa.StructArray.from_arrays(
            [_lists(column) for column in columns.values()], names=list(columns)
        )
        rows = pa.record_batch([struct], names=[STRUCT])
        writer = writer or pa.ipc.new_stream(str(path), rows.schema)
        writer.write_batch(rows)
        batch.clear()

    for episode in read_episodes(episodes):
        dones = episode.dones
        if dones is None:
            dones = np.arange(len(episode.rewards)) == len(episode.rewards) - 1
        batch.append(
            {
                STATES[0]: np.asarray(episode.states, np.float32),
                ACTIONS: np.asarray(
                    episode.actions,
                    np.int32 if is_discrete(episode.actions) else np.float32,
                ),
                REWARDS: np.asarray(episode.rewards, np.float32),
                ENDS[0]: dones,
            }
        )
        states_TxS = batch[-1][STATES[0]].astype(np.float64)
        shift = states_TxS[0].copy() if shift is None else shift
        states_TxS -= shift  # sums of squares about a typical state keep their digits
        count += len(states_TxS)
        total = total + states_TxS.sum(axis=0)
        squares = squares + np.square(states_TxS).sum(axis=0)
        batch_bytes += sum(array.nbytes for array in batch[-1].values())
        if batch_bytes > WRITE_BYTES:
            flush()
            batch_bytes = 0
    if batch:
        flush()
    if writer is None:
        raise ValueError("found no episodes to write, expected at least one")
    writer.close()
    mean = total / count
    std = np.sqrt(squares / count - np.square(mean)) + STD_EPSILON
    return (mean + shift).astype(np.float32), std.astype(np.float32)


def _lists(arrays):
    """Arrays of T or TxW to an Arrow list (of lists) array, without Python numbers."""
    offsets = np.cumsum([0] + [len(array) for array in arrays], dtype=np.int32)
    values = np.concatenate(arrays)
    inner = pa.array(values.reshape(-1))
    if values.ndim == 2:
        width = values.shape[1]
        steps = np.arange(0, values.size + 1, width, dtype=np.int32)
        inner = pa.ListArray.from_arrays(steps, inner)
    return pa.ListArray.from_arrays(offsets, inner)

# SPDX-License-Identifier: Apache-2.0
"""Datasets on disk to `Trajectories`, and the notebook's layout back to disk.

The only file that knows column names. Arrow buffers are viewed, memory-mapped, chunk
by chunk; no number ever becomes a Python object, and chunks are never combined (32-bit
list offsets would overflow).
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dt_jax.data.scan import STD_EPSILON
from dt_jax.data.trajectories import Trajectories, check_lengths
from dt_jax.system.files import scratch

if TYPE_CHECKING:
    import datasets

SPLIT = "train"  # of a DatasetDict
STRUCT = "train"  # the notebook keeps a trajectory in one struct column of this name
STATES, ACTIONS, REWARDS, DONES = "observations", "actions", "rewards", "dones"
STATISTICS = ("state_mean", "state_std")
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # the last bytes of an Arrow stream
WRITE_BYTES = 64 << 20  # trajectories are written in batches of about this size


def load_trajectories(
    path: "str | os.PathLike | datasets.Dataset | datasets.DatasetDict",
    *,
    split_on_dones: bool = False,
    discount: float = 1.0,
    wait: bool = True,
) -> Trajectories:
    """Open a dataset saved by `save_to_disk` (or one already open) without copying it.

    Two layouts, a trajectory a row: the notebook's, with a struct column `train` of
    `observations` and `actions` (lists of lists of numbers), `rewards` and `dones`, and
    scalar columns `state_mean` and `state_std`; and HF's gym-replay layout, with the
    same four as plain columns. Of a `DatasetDict` the split `train` is read. Rows
    chosen by `select` or `shuffle` are honoured. float32 and float64 alike.

    Args:
      split_on_dones, discount, wait: see `Trajectories.from_arrays`.

    Raises:
      FileNotFoundError: there is no dataset at `path`.
      ValueError: a column is missing, of another type, or holds faulty values.
    """
    table, chosen, source = _open(path)
    with _naming(source):
        trajectories = _read(
            table, chosen, split_on_dones=split_on_dones, discount=discount, wait=wait
        )

    def facts():
        with _naming(source):
            return trajectories.facts()

    return replace(trajectories, facts=facts)


@contextmanager
def _naming(source):
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def save_trajectories(path: str | os.PathLike, episodes: Iterable[Mapping]) -> None:
    """Write episodes to `path` in the notebook's layout, streaming, all or nothing.

    Args:
      path: a folder that does not exist yet.
      episodes: mappings with `observations`: TxS, `actions`: TxA, `rewards`: T and
        `dones`: T; floating-point columns are written as float32. With at least S
        episodes the columns `state_mean` and `state_std` are written too (shorter
        columns cannot hold them, and a reader computes them).
    """
    import datasets  # takes seconds, which reading can do without

    path = Path(path)
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
            dataset.save_to_disk(folder / "dataset")
            os.replace(folder / "dataset", path)
    finally:
        if not bars:
            datasets.enable_progress_bars()


def _open(path):
    """The table of an open or a saved dataset, the rows chosen of it (None: all of
    them), and what errors call it."""
    if isinstance(path, str | os.PathLike):
        source = f"path={os.fspath(path)}"
        if not os.path.isdir(path):
            found = "found a file" if os.path.exists(path) else "no such folder"
            raise FileNotFoundError(
                f"{source}: {found}; expected a dataset saved by save_to_disk"
            )
        return _saved_table(Path(path), source), None, source
    dataset, source = path, "dataset"
    if isinstance(dataset, Mapping):  # a DatasetDict
        _check_splits(list(dataset), source)
        dataset = dataset[SPLIT]
    chosen = dataset._indices
    return dataset.data.table, chosen and chosen.column(0).to_numpy(), source


def _saved_table(folder, source) -> pa.Table:
    """What `save_to_disk` has written, memory-mapped.

    Not by `datasets.load_from_disk`: to import it, and pandas with it, takes longer
    than all else, and it does not say which file is broken.
    """
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        _check_splits(_saved_json(splits, source, lambda x: list(x["splits"])), source)
        folder /= SPLIT
    names = _saved_json(
        folder / "state.json",
        source,
        lambda x: [file["filename"] for file in x["_data_files"]],
    )
    shards = [_saved_shard(folder / name, source) for name in names]
    if not shards:
        raise ValueError(f"{source}: found no rows, expected at least one trajectory")
    return pa.concat_tables(shards)


def _saved_json(file, source, part):
    try:
        return part(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise _not_whole(file, source) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_readable(file, source, error) from None


def _saved_shard(file, source):
    try:
        with pa.memory_map(str(file)) as stream:
            table = pa.ipc.open_stream(stream).read_all()
            # One cut off between two record batches would read as a shorter one.
            stream.seek(stream.size() - len(END_OF_STREAM))
            if stream.read() == END_OF_STREAM:
                return table
    except FileNotFoundError:
        raise _not_whole(file, source) from None
    except (OSError, pa.ArrowException) as error:
        raise _not_readable(file, source, error) from None
    raise ValueError(
        f"{source}: {file.name} ends before its end mark, so rows are missing; save it "
        "again with save_to_disk"
    )


def _not_whole(file, source):
    return FileNotFoundError(
        f"{source}: not a whole dataset (no {file.name}); expected one saved by "
        "save_to_disk"
    )


def _not_readable(file, source, error):
    told = " ".join(str(error).split())[:200]
    return ValueError(
        f"{source}: not a readable dataset ({file.name}: {told}); save it again with "
        "save_to_disk"
    )


def _check_splits(splits, source):
    if SPLIT not in splits:
        raise ValueError(
            f"{source}: found the splits {', '.join(splits)}, expected {SPLIT!r}"
        )


def _read(table, chosen, **options):
    columns = _columns(table)
    states, state_lengths = _matrices(columns[STATES], STATES)
    actions, action_lengths = _matrices(columns[ACTIONS], ACTIONS)
    rewards, reward_lengths = _vectors(columns[REWARDS], REWARDS)
    lengths = {
        STATES: state_lengths,
        ACTIONS: action_lengths,
        REWARDS: reward_lengths,
    }
    dones = None
    if DONES in columns:
        dones, lengths[DONES] = _vectors(columns[DONES], DONES)
        dones = dones.astype(bool)
    check_lengths(lengths)
    starts = np.cumsum(state_lengths) - state_lengths
    if chosen is not None:
        starts, state_lengths = starts[chosen], state_lengths[chosen]
    mean, std = _statistics(table, states[0].shape[1])
    return Trajectories.from_arrays(
        states,
        actions,
        rewards,
        starts=starts,
        lengths=state_lengths,
        dones=dones,
        state_mean=mean,
        state_std=std,
        names=(STATES, ACTIONS, REWARDS),
        **options,
    )


def _columns(table) -> dict[str, list[pa.Array]]:
    """The chunks of each of our columns, from either layout; empty chunks left out."""
    names = table.column_names
    if STRUCT in names and pa.types.is_struct(table.schema.field(STRUCT).type):
        chunks = [chunk for chunk in table.column(STRUCT).chunks if len(chunk)]
        fields = [field.name for field in table.schema.field(STRUCT).type]
        columns = {name: [c.field(name) for c in chunks] for name in fields}
        found = f"the fields {', '.join(fields)} in column {STRUCT!r}"
        if table.column(STRUCT).null_count:
            row = table.column(STRUCT).is_null().to_numpy().argmax()
            raise ValueError(f"trajectory {row}: column {STRUCT!r} is empty (null)")
    else:
        columns = {
            name: [chunk for chunk in table.column(name).chunks if len(chunk)]
            for name in names
        }
        found = f"the columns {', '.join(names)}"
    for name in (STATES, ACTIONS, REWARDS):
        if name not in columns:
            raise ValueError(
                f"found {found}; expected {STATES}, {ACTIONS}, {REWARDS} (and "
                f"{DONES}), or a struct column {STRUCT!r} of them"
            )
    if not columns[STATES]:
        raise ValueError("found no rows, expected at least one trajectory")
    return columns


def _matrices(chunks, name):
    """Chunks of trajectories x steps x numbers to a matrix each, and the lengths."""
    matrices, lengths, width = [], [], 0
    for chunk in chunks:
        first = sum(map(len, lengths))  # the trajectory this chunk begins with
        lengths_E, steps = _unnest(chunk, name, first, np.arange(1, len(chunk) + 1))
        ends_E = np.cumsum(lengths_E)
        widths_N, numbers = _unnest(steps, name, first, ends_E)
        width = width or int(widths_N[:1].sum())
        wrong = np.flatnonzero(widths_N != width)
        if len(wrong):
            row = first + np.searchsorted(ends_E, wrong[0], "right")
            raise ValueError(
                f"trajectory {row}: column {name!r} has a row of {widths_N[wrong[0]]} "
                f"numbers, but the first row has {width}; all must be equally wide"
            )
        values = _numbers(numbers, name, first, ends_E * width)
        lengths.append(lengths_E)
        matrices.append(values.reshape(len(widths_N), width))
    # A chunk of nothing but empty trajectories has no rows, and knows no width.
    filled = [matrix for matrix in matrices if len(matrix)]
    return filled or matrices[:1], np.concatenate(lengths)


def _vectors(chunks, name):
    """Chunks of trajectories x numbers to one vector, and the lengths."""
    vectors, lengths = [], []
    for chunk in chunks:
        first = sum(map(len, lengths))
        lengths_E, numbers = _unnest(chunk, name, first, np.arange(1, len(chunk) + 1))
        lengths.append(lengths_E)
        vectors.append(_numbers(numbers, name, first, np.cumsum(lengths_E)))
    return np.concatenate(vectors), np.concatenate(lengths)


def _unnest(array, name, first, ends_E):
    """Take one level of lists off; `ends_E` is where each trajectory ends in it."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if not (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    ):
        raise ValueError(
            f"column {name!r} holds {kind} where a list was expected "
            "(a trajectory a row; states and actions are lists of lists of numbers)"
        )
    _refuse_nulls(array, name, first, ends_E)
    if pa.types.is_fixed_size_list(kind):
        offsets = (array.offset + np.arange(len(array) + 1)) * kind.list_size
    else:
        offsets = _view(array.offsets).astype(np.int64)
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    return np.diff(offsets), values


def _numbers(array, name, first, ends_E):
    kind = array.type
    if not (_is_number(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"column {name!r} holds {kind}, expected numbers")
    _refuse_nulls(array, name, first, ends_E)
    return _view(array)


def _is_number(kind):
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _view(array) -> np.ndarray:
    """Numbers without nulls as they lie; booleans, packed in bits, must be copied.

    Arrow's own `to_numpy` and `flatten` import pandas, half a second of a start.
    """
    if not pa.types.is_boolean(array.type):
        return np.from_dlpack(array)
    bytes_ = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    bits = np.unpackbits(bytes_, count=array.offset + len(array), bitorder="little")
    return bits[array.offset :].astype(bool)


def _refuse_nulls(array, name, first, ends_E):
    """A null would shift all that follows it; name the trajectory that has it."""
    if array.null_count:
        place = array.is_null().to_numpy(zero_copy_only=False).argmax()
        row = first + np.searchsorted(ends_E, place, "right")
        raise ValueError(
            f"trajectory {row}: column {name!r} has an empty (null) value or list"
        )


def _statistics(table, state_dim):
    """The dataset's own mean and std: the first `state_dim` rows of two columns."""
    if not set(STATISTICS) <= set(table.column_names):
        return None, None
    if len(table) < state_dim:
        raise ValueError(
            f"columns state_mean and state_std have {len(table)} rows, but states have "
            f"{state_dim} numbers; remove the two columns to have them computed"
        )
    mean, std = (_statistic(table.column(n)[:state_dim], n) for n in STATISTICS)
    if (std <= 0).any():
        raise ValueError(
            f"column 'state_std' holds {std.min()} for feature {std.argmin()}, "
            "expected a positive number; if rows were shuffled or cut since it was "
            "written, remove state_mean and state_std to have them computed"
        )
    return mean, std


def _statistic(column, name):
    if not _is_number(column.type):
        raise ValueError(f"column {name!r} holds {column.type}, expected numbers")
    if column.null_count:
        raise ValueError(f"column {name!r} has an empty (null) value")
    with np.errstate(over="ignore"):
        values_S = np.concatenate([_view(x) for x in column.chunks]).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values_S))
    if len(bad):
        raise ValueError(
            f"column {name!r} holds {column[bad[0]]} for feature {bad[0]}, expected a "
            "finite float32"
        )
    return values_S


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

    for episode in episodes:
        batch.append(
            {
                STATES: np.asarray(episode[STATES], np.float32),
                ACTIONS: np.asarray(episode[ACTIONS], np.float32),
                REWARDS: np.asarray(episode[REWARDS], np.float32),
                DONES: np.asarray(episode[DONES], bool),
            }
        )
        states_TxS = batch[-1][STATES].astype(np.float64)
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

# SPDX-License-Identifier: Apache-2.0
"""Datasets on disk to `Trajectories`.

Arrow buffers are viewed, memory-mapped, chunk by chunk; no number ever becomes a Python
object, and chunks are never combined (32-bit list offsets would overflow).
"""

import json
import os
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dt_jax.data.conversion import mapped_folder
from dt_jax.data.episodes import STATISTICS, STRUCT, Columns, count_steps, name_columns
from dt_jax.data.scan import is_finite
from dt_jax.data.trajectories import Trajectories
from dt_jax.system.text import check_choice

if TYPE_CHECKING:
    import datasets

CACHE = "converted"  # by default, in the current folder
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # the last bytes of an Arrow stream


def load_trajectories(
    path: "str | os.PathLike | datasets.Dataset | datasets.DatasetDict",
    *,
    split: str = "train",
    cache: str | os.PathLike = CACHE,
    statistics: str = "stored",
    split_on_dones: bool = False,
    discount: float = 1.0,
    wait: bool = True,
) -> Trajectories:
    """Open a dataset saved by `save_to_disk` (or one already open) without copying it.

    One of another format (Minari, by its id too; D4RL's or d3rlpy's HDF5; Parquet) is
    converted first, into a folder of `cache`, and mapped from there ever after.

    Two layouts, a trajectory a row: the notebook's, with a struct column `train` of
    `observations` and `actions` (lists of lists of numbers), `rewards` and `dones`, and
    scalar columns `state_mean` and `state_std`; and HF's gym-replay layout, with the
    same four as plain columns. They may have the names and shapes that
    `Trajectories.from_episodes` takes. Rows chosen by `select` or `shuffle` are
    honoured. float32 and float64 alike.

    Args:
      split: which one of a `DatasetDict`, or of Parquet files with splits, is read.
      cache: the folder for what is converted.
      statistics: 'stored', the two scalar columns are taken where there are any, or
        'computed', from the states in any case.
      split_on_dones, discount, wait: see `Trajectories.from_arrays`.

    Raises:
      FileNotFoundError: there is no dataset at `path`.
      ValueError: a column is missing, of another type, or holds faulty values.
    """
    check_choice("statistics", statistics, ("stored", "computed"))
    given = path
    if isinstance(path, str | os.PathLike):
        given = Path(path).expanduser()
        path = mapped_folder(given, split=split, cache=cache)
    table, chosen, source = _open(path, split, given)
    options = {"split_on_dones": split_on_dones, "discount": discount, "wait": wait}
    with _naming(source):
        trajectories = _read(table, chosen, statistics == "stored", **options)

    def facts():
        with _naming(source):
            return trajectories.facts()

    return replace(trajectories, facts=facts, about=_about(path, split))


def _about(path, split):
    """What `save_trajectories` was told of the dataset, {} for all others."""
    if isinstance(path, Path):
        folder = path / split if (path / "dataset_dict.json").is_file() else path
        with suppress(OSError, ValueError, KeyError, TypeError):
            text = (folder / "dataset_info.json").read_text(encoding="utf-8")
            return dict(json.loads(json.loads(text)["description"]))
        return {}
    with suppress(ValueError, TypeError, AttributeError):
        dataset = path[split] if isinstance(path, Mapping) else path
        return dict(json.loads(dataset.info.description))
    return {}


@contextmanager
def _naming(source):
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _open(path, split, given):
    """The table of an open or a saved dataset, the rows chosen of it (None: all of
    them), and what errors call it."""
    if isinstance(path, str | os.PathLike):
        source = f"path={os.fspath(given)}"
        if not os.path.isdir(path):
            found = "found a file" if os.path.exists(path) else "no such folder"
            raise FileNotFoundError(
                f"{source}: {found}; expected a dataset saved by save_to_disk, or of "
                "another format of docs/data.md"
            )
        return _saved_table(Path(path), split, source), None, source
    dataset, source = path, "dataset"
    if isinstance(dataset, Mapping):  # a DatasetDict
        _check_splits(list(dataset), split, source)
        dataset = dataset[split]
    chosen = dataset._indices
    return dataset.data.table, chosen and chosen.column(0).to_numpy(), source


def _saved_table(folder, split, source) -> pa.Table:
    """What `save_to_disk` has written, memory-mapped.

    Not by `datasets.load_from_disk`: to import it, and pandas with it, takes longer
    than all else, and it does not say which file is broken.
    """
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        found = _saved_json(splits, source, lambda x: list(x["splits"]))
        _check_splits(found, split, source)
        folder /= split
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


def _check_splits(splits, split, source):
    if split not in splits:
        raise ValueError(
            f"{source}: found the splits {', '.join(splits)}, expected {split!r}"
        )


def _read(table, chosen, stored, **options):
    chunks, names = _columns(table)
    lengths = {}
    states, lengths[names.states] = _matrices(chunks, names.states)
    actions, lengths[names.actions] = _matrices(chunks, names.actions)
    rewards, lengths[names.rewards] = _vectors(chunks, names.rewards)
    ends = []
    for name in names.ends:
        values, lengths[name] = _vectors(chunks, name)
        ends.append(_flags(values, lengths[name], name))
    dones = np.any(ends, axis=0) if ends else None
    steps_E, rows_E = count_steps(lengths), lengths[names.states]
    starts = np.cumsum(rows_E) - rows_E
    if (steps_E < rows_E).any():
        acted_N = np.ones(rows_E.sum(), bool)
        acted_N[(starts + steps_E)[steps_E < rows_E]] = False
        actions = [_beside_states(np.concatenate(actions), acted_N)]
        rewards = _beside_states(rewards, acted_N)
        dones = None if dones is None else _beside_states(dones, acted_N)
    if chosen is not None:
        starts, steps_E = starts[chosen], steps_E[chosen]
    mean, std = _statistics(table, states[0].shape[1]) if stored else (None, None)
    return Trajectories.from_arrays(
        states,
        actions,
        rewards,
        starts=starts,
        lengths=steps_E,
        dones=dones,
        state_mean=mean,
        state_std=std,
        names=names[:3],
        **options,
    )


def _beside_states(values, acted_N):
    """A copy with a row for each of the states: zeros after the last action."""
    rows = np.zeros((len(acted_N), *values.shape[1:]), values.dtype)
    rows[acted_N] = values
    return rows


def _columns(table) -> tuple[dict[str, list[pa.Array]], Columns]:
    """The chunks of every column, from either layout, and what ours are called; empty
    chunks are left out."""
    names = table.column_names
    if STRUCT in names and pa.types.is_struct(table.schema.field(STRUCT).type):
        chunks = [chunk for chunk in table.column(STRUCT).chunks if len(chunk)]
        fields = [field.name for field in table.schema.field(STRUCT).type]
        columns = {name: [c.field(name) for c in chunks] for name in fields}
        found = f"found the fields {', '.join(fields)} in column {STRUCT!r}"
        if table.column(STRUCT).null_count:
            row = table.column(STRUCT).is_null().to_numpy().argmax()
            raise ValueError(f"trajectory {row}: column {STRUCT!r} is empty (null)")
    else:
        columns = {
            name: [chunk for chunk in table.column(name).chunks if len(chunk)]
            for name in names
        }
        found = f"found the columns {', '.join(names)}"
    where = f", as columns or in a struct column {STRUCT!r}"
    ours = name_columns(columns, found, where)
    if not columns[ours.states]:
        raise ValueError("found no rows, expected at least one trajectory")
    return columns, ours


def _matrices(columns, name):
    """Chunks of trajectories x steps x numbers to a matrix each, and the lengths.

    Where a step is a number and no list, the matrices are one wide.
    """
    matrices, lengths, width = [], [], 0
    for chunk in columns[name]:
        first = sum(map(len, lengths))  # the trajectory this chunk begins with
        lengths_E, steps = _unnest(chunk, name, first, np.arange(1, len(chunk) + 1))
        ends_E = np.cumsum(lengths_E)
        widths_N, numbers = np.ones(len(steps), np.int64), steps
        if _is_list(steps):
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


def _vectors(columns, name):
    """Chunks of trajectories x numbers (or x 1) to one vector, and the lengths."""
    matrices, lengths_E = _matrices(columns, name)
    width = matrices[0].shape[1]
    if len(matrices[0]) and width != 1:
        raise ValueError(f"column {name!r} has rows of {width} numbers, expected 1")
    return np.concatenate(matrices).reshape(-1), lengths_E


def _flags(values, lengths_E, name):
    bad = np.flatnonzero(~is_finite(values))
    if len(bad):
        row = np.searchsorted(np.cumsum(lengths_E), bad[0], "right")
        raise ValueError(
            f"trajectory {row}: column {name!r} holds {values[bad[0]]}, expected "
            "true or false"
        )
    return values.astype(bool)


def _is_list(array):
    kind = array.type
    return (
        isinstance(array, pa.ExtensionArray)
        or pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    )


def _unnest(array, name, first, ends_E):
    """Take one level of lists off; `ends_E` is where each trajectory ends in it."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if not _is_list(array):
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
            f"{state_dim} numbers; statistics=computed has them computed"
        )
    mean, std = (_statistic(table.column(n)[:state_dim], n) for n in STATISTICS)
    if (std <= 0).any():
        raise ValueError(
            f"column 'state_std' holds {std.min()} for feature {std.argmin()}, "
            "expected a positive number; if rows were shuffled or cut since it was "
            "written, statistics=computed has both computed"
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

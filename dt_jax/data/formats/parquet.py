# SPDX-License-Identifier: Apache-2.0
"""Parquet, a trajectory a row: a file, or a folder as the Hub converts datasets.

There a file is called `<split>/0000.parquet` or `<split>-00000-of-00001.parquet`.
"""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dt_jax.data.episodes import STRUCT, Source

NAME = "Parquet"
ROWS = 16  # read at once; a row is a whole trajectory
SHARD = re.compile(r"(\w[\w.-]*)-\d+-of-\d+")


def files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    # No deeper: it may be a folder of anything.
    depths = ("*.parquet", "*/*.parquet", "*/*/*.parquet")
    found = sorted(file for depth in depths for file in path.glob(depth))
    splits = {file: _split_of(file, path) for file in found}
    named = sorted({name for name in splits.values() if name})
    if not named:
        return found
    if split not in named:
        raise ValueError(f"found the splits {', '.join(named)}, expected {split!r}")
    return [file for file in found if splits[file] == split]


def read(files: list[Path]) -> Source:
    count = sum(_open(file).metadata.num_rows for file in files)
    return Source({}, count, _episodes(files))


def _split_of(file, folder):
    """The split that a file says it is of, '' where it says nothing."""
    if shard := SHARD.fullmatch(file.stem):
        return shard[1]
    in_folder = file.stem.isdigit() and file.parent != folder
    return file.parent.name if in_folder else ""


def _open(file):
    try:
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    except (OSError, pa.ArrowException) as error:
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"not a readable Parquet file ({file.name}: {told})") from None


def _episodes(files):
    row = 0
    for file in files:
        with _open(file) as opened:
            for batch in opened.iter_batches(batch_size=ROWS, use_threads=False):
                columns = _columns(batch)
                for place in range(len(batch)):
                    yield {n: _array(c[place], n, row) for n, c in columns.items()}
                    row += 1


def _columns(batch):
    """The columns of lists, which may be the fields of the notebook's one struct."""
    columns = {name: batch.column(name) for name in batch.schema.names}
    if STRUCT in columns and pa.types.is_struct(columns[STRUCT].type):
        struct = columns[STRUCT]
        columns = {field.name: struct.field(field.name) for field in struct.type}
    lists = {name: column for name, column in columns.items() if _is_list(column.type)}
    if not lists:
        raise ValueError(
            f"found the columns {', '.join(columns)}, none of lists; expected a "
            "trajectory a row"
        )
    return lists


def _array(scalar, name, row):
    """One trajectory of a column: T or TxW."""
    where = f"trajectory {row}: column {name!r}"
    shape, values = [], scalar.values
    if values is None:
        raise ValueError(f"{where} has an empty (null) value or list")
    while True:
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        if values.null_count:
            raise ValueError(f"{where} has an empty (null) value or list")
        if not _is_list(values.type):
            break
        shape.append(len(values))
        widths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(widths) > 1:
            raise ValueError(f"{where} has rows of unequal widths")
        values = values.flatten()
    array = values.to_numpy(zero_copy_only=False)
    if not shape:
        return array
    return array.reshape(shape[0], -1) if shape[0] else np.zeros((0, 1))


def _is_list(kind):
    if isinstance(kind, pa.ExtensionType):
        kind = kind.storage_type
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    )

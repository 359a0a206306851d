# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are whole or not there, however the process ends."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCRATCH = set()  # what `clear_away` would remove now


@contextmanager
def scratch(path: Path) -> Iterator[None]:
    """`path`, a file or a folder, is gone after the block, however it ends."""
    _SCRATCH.add(path)
    try:
        yield
    finally:
        _remove(path)
        _SCRATCH.discard(path)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """The name to write to instead: it becomes `path` when the block ends well."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    with scratch(partial):
        yield partial
        os.replace(partial, path)


def clear_away() -> None:
    """Remove what stands in a `scratch` block: the process ends without leaving it."""
    for path in tuple(_SCRATCH):
        _remove(path)


def _remove(path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

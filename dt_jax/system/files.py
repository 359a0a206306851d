# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are whole or not there, however the process ends.

Also JSON objects in files, and the lock that keeps a second run out of a workdir.
"""

import fcntl
import itertools
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import logging

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


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keep a second run out of the workdir; the lock ends with its process.

    Raises:
      ValueError: another process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / ".lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{workdir} is in use by process {file.read()}; wait for its end, or "
                f"{another(workdir)}"
            ) from None
        except OSError as error:
            logging.warning("no lock on %s (%s): start no second run", workdir, error)
        if not os.fstat(file.fileno()).st_nlink:  # the run before has just removed it
            raise ValueError(f"{workdir} was in use a moment ago; try again")
        file.truncate(0)
        print(os.getpid(), "on", socket.gethostname(), end="", file=file, flush=True)
        with scratch(path):
            yield


def free_folder(path: Path) -> Path:
    """The first of `path`-1, `path`-2, ... that does not exist."""
    numbered = (path.with_name(f"{path.name}-{n}") for n in itertools.count(1))
    return next(folder for folder in numbered if not folder.exists())


def another(workdir: Path) -> str:
    """What to do where a workdir is taken: choose another one, which is named."""
    # 1e-5 ends in no number of a run.
    name = re.sub(r"(?<!\de)-\d+$", "", workdir.name)
    free = free_folder(workdir.with_name(name))
    return f"choose another --workdir, such as {free}"


def read_json(file: Path) -> dict:
    """The file's one object; a fault of it is named with the file."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: found {type(found).__name__}, expected an object")
    return found


def write_json(path: Path, value: dict) -> None:
    """Write an object, whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n")


def clear_away() -> None:
    """Remove what stands in a `scratch` block: the process ends without leaving it."""
    for path in tuple(_SCRATCH):
        _remove(path)


def _remove(path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

# SPDX-License-Identifier: Apache-2.0
"""Datasets of other formats become folders that are memory-mapped, once.

In goes the path of a dataset, out comes that of a folder in our layout, whose name has
the digest of what it was made of: changed files are converted anew.
"""

import fcntl
import importlib
import os
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

import xxhash

from dt_jax.data.writer import save_trajectories
from dt_jax.system.progress import progress

VERSION = "1"  # of what is made of a format; another one has all converted anew
PICKLES = {
    **dict.fromkeys((".pkl", ".pickle", ".p"), "pickle.load(open({0!r}, 'rb'))"),
    ".npy": "np.load({0!r}, allow_pickle=True)",
    ".npz": "np.load({0!r}, allow_pickle=True)['arr_0']",
}
READ_BYTES = 1 << 22


def mapped_folder(path: Path, *, split: str, cache: str | os.PathLike) -> Path:
    """`path` if it is no dataset of another format, else what `cache` has of it.

    Where it has nothing yet the dataset is converted, whole or not at all. Of several
    processes one converts, and the others wait.

    Raises:
      ValueError, FileNotFoundError: as `convert`.
    """
    found = _find(path, split)
    if found is None:
        return path
    format_, files = found
    name = path.stem if path.is_file() else path.name or path.resolve().name
    if not path.exists():  # it is an id
        name = str(path).replace("/", "-")
    folder = Path(cache).expanduser() / f"{name}-{_digest(format_, files, name)}"
    if not folder.exists():
        with _alone(folder.parent):
            if not folder.exists():
                _write(folder, format_, files, path)
    return folder


def convert(path: Path, folder: Path, *, split: str) -> None:
    """Write the dataset at `path` to `folder`, which must not exist, in our layout.

    Raises:
      ValueError: it is a faulty one or of no known format, needs a package that is not
        installed, or is a pickle.
      FileNotFoundError: there is none.
    """
    found = _find(path, split)
    if found is None:
        if not path.exists():
            raise FileNotFoundError(f"path={path}: no such file or folder")
        names = ", ".join(format_.NAME for format_ in _formats())
        raise ValueError(
            f"path={path}: nothing to convert; expected one of {names} (what "
            "save_to_disk has written is read as it is)"
        )
    with _alone(folder.parent):
        _write(folder, *found, path)


def _find(path, split) -> tuple[ModuleType, list[Path]] | None:
    """The format of a dataset and its files; None of a folder of save_to_disk."""
    if any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        return None
    if path.suffix in PICKLES and path.is_file():
        load = PICKLES[path.suffix].format(str(path))
        raise ValueError(
            f"path={path}: a Python pickle is never loaded, since it may run any code; "
            "if you trust it, convert it in Python: import pickle, numpy as np, "
            f"dt_jax; episodes = {load}; "
            f"dt_jax.save_trajectories({str(path.with_suffix(''))!r}, episodes)"
        )
    for format_ in _formats():
        with _naming(path):
            if files := format_.files(path, split):
                return format_, files
    return None


def _formats() -> list[ModuleType]:
    """In the order of their names: D4RL's takes the HDF5 that d3rlpy's leaves."""
    folder = Path(__file__).with_name("formats")
    names = sorted(module.name for module in pkgutil.iter_modules([str(folder)]))
    return [importlib.import_module(f"dt_jax.data.formats.{name}") for name in names]


def _digest(format_, files, name):
    """Of every byte, and of the names, which may say what the bytes are."""
    digest = xxhash.xxh3_64(f"{VERSION} {format_.NAME} {name}".encode())
    common = os.path.commonpath([file.parent for file in files])
    buffer = memoryview(bytearray(READ_BYTES))
    for file in files:
        digest.update(f"{file.relative_to(common)} {file.stat().st_size}\n".encode())
        with file.open("rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                digest.update(buffer[:count])
    return digest.hexdigest()


def _write(folder, format_, files, path):
    with _naming(path):
        source = format_.read(files)
        about = {"format": format_.NAME, "source": str(path), **source.about}
        episodes = progress(
            source.episodes,
            total=source.num_episodes,
            desc=f"converting {path.name}",
            unit=" episodes",
        )
        with episodes:
            save_trajectories(folder, episodes, about=about)


@contextmanager
def _naming(path) -> Iterator[None]:
    """Errors of the block begin with the path; the commands make it a key."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if isinstance(error, FileNotFoundError) and error.filename:
            raise
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(f"path={path}: {error}") from None


@contextmanager
def _alone(cache) -> Iterator[None]:
    """No other process converts into the cache; one left empty is removed."""
    cache.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(cache, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):
            cache.rmdir()

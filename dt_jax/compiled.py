# SPDX-License-Identifier: Apache-2.0
"""What XLA has compiled, kept in a folder for the next start."""

import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock


def keep_compiled() -> None:
    """To be called before JAX is imported, which reads the folder's name then."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dt_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(1 << 30))
    with suppress(OSError):  # of a folder that cannot be written: a start is slower
        _mend(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))


def _mend(folder) -> None:
    """Remove what a kill cut short: JAX would try and fail to read it for ever.

    It writes `<key>-cache`, then `<key>-atime`: one without the other may be half.
    """
    if not folder.is_dir():
        return
    with FileLock(folder / ".lockfile", timeout=1):  # as JAX does while it writes
        for entry in folder.glob("*-cache"):
            if not entry.with_name(entry.name.removesuffix("cache") + "atime").exists():
                entry.unlink()

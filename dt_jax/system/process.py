# SPDX-License-Identifier: Apache-2.0
"""What a process needs of its system: memory, a folder, and how XLA computes.

Before JAX is imported: huge pages, the folder in which what XLA has compiled is kept
for the next start, and XLA's flags. Now and then: freed memory goes back.
"""

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

# glibc asks Linux for pages of 2 MB: an update's temporaries, allocated anew by every
# call, then cost 60 page faults and not 3,900. A twentieth of an update on a CPU.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

# Without it some sums on a GPU are in any order, and each process tries anew which
# algorithms are the fastest: either changes the last bits.
DETERMINISTIC = "xla_gpu_deterministic_ops"


def use_huge_pages() -> None:
    """Start this process again with huge pages: glibc reads its settings only then.

    To be called first of all. Settings that the user has made stand.
    """
    if sys.platform == "linux" and HUGE_PAGES.keys().isdisjoint(os.environ):
        os.environ.update(HUGE_PAGES)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def give_back_memory() -> None:
    """Return to the system what has been freed, where the allocator is glibc's.

    It keeps that for later: a seventh of the memory of a training on a CPU.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_compiled() -> None:
    """To be called before JAX is imported, which reads the folder's name then."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return  # the user's folder, perhaps other programs' too
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dt_jax"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(1 << 30))
    with suppress(OSError):  # of a folder that cannot be written: a start is slower
        _mend(cache)


def compute_deterministically() -> None:
    """Have XLA compute the same bits each time, on a GPU too.

    To be called before JAX starts, which reads the flags then. Flags that the user has
    set stand. On a CPU and on a TPU it changes nothing: they always do.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if DETERMINISTIC not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{DETERMINISTIC}=true".lstrip()


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

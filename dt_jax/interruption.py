# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT: the process ends with status 128 + the signal's number.

At once where there is nothing to save, which is everywhere but in the loop of updates.
While the main thread is in C++ (it compiles, say) no handler of Python's runs, and an
exception raised by one may be lost in a callback: so nothing is raised, and a thread
watches that the end comes in time. What it cuts short costs what SIGKILL costs: the
updates since the last checkpoint, and before the first update nothing.
"""

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from dt_jax.files import clear_away

NUMBERS = (signal.SIGTERM, signal.SIGINT)
GRACE = 20.0  # seconds for the call that runs and for saving what it gives
PATIENCE = 1.0  # seconds in which the main thread clears away, if it is not in C++

# A forked worker that is terminated would write into its parent's pipe.
os.register_at_fork(after_in_child=partial(signal.set_wakeup_fd, -1))


def watch() -> None:
    """From now on a signal ends the process at once, and scratch files with it."""
    _listen(_leave, PATIENCE)


@contextmanager
def postponed() -> Iterator[list[int]]:
    """Within, a signal is noted in the list that this gives; a second ends at once.

    Raises:
      SystemExit: at the end of the block, if there was one.
    """
    caught = []
    writer, outer, handlers = _listen(caught.append, GRACE)
    try:
        yield caught
    finally:
        if not caught:  # else the process is ending, and that is watched
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(outer)
            os.close(writer)
    if caught:
        raise SystemExit(128 + caught[0])


def _listen(note: Callable[[int], None], grace: float):
    """Returns what undoes it: our pipe, the pipe and the handlers before."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watcher = threading.Thread(target=_watch, args=(reader, grace), daemon=True)
    watcher.start()
    outer = signal.set_wakeup_fd(writer)
    handlers = {
        number: signal.signal(number, lambda number, _: note(number))
        for number in NUMBERS
    }
    return writer, outer, handlers


def _watch(reader, grace) -> None:
    """Python's C handler writes the numbers of signals, whatever a thread does."""
    while (byte := os.read(reader, 1)) and byte[0] not in NUMBERS:
        pass  # of another signal that has a handler
    if not byte:  # the end of `postponed`
        os.close(reader)
        return
    if grace == GRACE:
        name = signal.Signals(byte[0]).name
        told = f"\n{name}: saving, at most {GRACE:.0f} s; once more: ends at once\n"
        os.write(2, told.encode())
    select.select([reader], [], [], grace)
    _leave(byte[0])


def _leave(number) -> None:
    clear_away()
    os._exit(128 + number)

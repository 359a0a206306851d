# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT: the process ends with status 128 + the signal's number.

At once where there is nothing to save, which is everywhere but in the loop of updates.
While the main thread is in C++ (it compiles, say) no handler of Python's runs, and an
exception raised by one may be lost in a callback: so nothing is raised, and a thread
makes sure that the end comes in time. That costs what SIGKILL costs: the updates since
the last checkpoint, and before the first update nothing.

A process that is not ours to end, such as a notebook's, is never watched: there Ctrl-C
saves and raises KeyboardInterrupt.
"""

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from dt_jax.system.files import clear_away

NUMBERS = (signal.SIGTERM, signal.SIGINT)
GRACE = 20.0  # seconds for the call that runs and for saving what it gives
PATIENCE = 1.0  # seconds in which the main thread clears away, if it is not in C++

_watched = False  # whether `watch` was called

# A forked worker that is terminated would write into its parent's pipe.
os.register_at_fork(after_in_child=partial(signal.set_wakeup_fd, -1))


def watch() -> None:
    """From now on a signal ends the process at once, and scratch files with it."""
    global _watched
    _watched = True
    _listen(_leave, PATIENCE, "")


@contextmanager
def postponed() -> Iterator[list[int]]:
    """In the block a signal is noted in the list given; a second one ends at once.

    Raises:
      SystemExit: at the end of the block, if there was a signal. In a process that is
        not watched: KeyboardInterrupt, and only SIGINT is looked for.
    """
    caught = []
    if not _watched:
        with _noted(caught):
            yield caught
        if caught:
            raise KeyboardInterrupt
        return
    words = f"saving, at most {GRACE:.0f} s; a second signal ends at once"
    writer, outer, handlers = _listen(caught.append, GRACE, words)
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


@contextmanager
def _noted(caught: list[int]) -> Iterator[None]:
    """The first SIGINT is noted, the second raises as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread handle signals
        return

    def note(number, frame):
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _listen(note: Callable[[int], None], grace: float, words: str):
    """Returns what undoes it: our pipe, the pipe and the handlers before."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watcher = partial(_watch, reader, grace, words)
    threading.Thread(target=watcher, name="interruption", daemon=True).start()
    outer = signal.set_wakeup_fd(writer)
    handlers = {
        number: signal.signal(number, lambda number, _: note(number))
        for number in NUMBERS
    }
    return writer, outer, handlers


def _watch(reader, grace, words) -> None:
    """Python's C handler writes the numbers of signals, whatever a thread does."""
    while (byte := os.read(reader, 1)) and byte[0] not in NUMBERS:
        pass  # of another signal that has a handler
    if not byte:  # the end of `postponed`
        os.close(reader)
        return
    if words:
        os.write(2, f"\n{signal.Signals(byte[0]).name}: {words}\n".encode())
    select.select([reader], [], [], grace)
    _leave(byte[0])


def _leave(number) -> None:
    clear_away()
    os._exit(128 + number)

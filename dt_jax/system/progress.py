# SPDX-License-Identifier: Apache-2.0
"""How far something is: a moving bar on a terminal, whole lines in a log."""

import sys
import time
from contextlib import suppress

from tqdm.auto import tqdm

from dt_jax.system.text import fit

SECONDS = 30.0  # between two lines in a log, at most, while anything moves
LINE = "{desc}: {n_fmt}/{total_fmt}{postfix}, {rate_noinv_fmt}, {remaining} left"
LINE_WITHOUT_END = "{desc}: {n_fmt}{unit}{postfix}, {rate_noinv_fmt}"


def progress(*args, **options) -> tqdm:
    """A `tqdm`, made with the same arguments.

    Where stderr is no terminal each of its states is a line with the time of day, at
    least every 30 seconds and whenever `refresh` is called.
    """
    if is_live():
        return tqdm(*args, mininterval=0.1, **options)
    how = {"mininterval": SECONDS, "miniters": 1, "bar_format": LINE_WITHOUT_END}
    if options.get("total"):
        how |= {"bar_format": LINE, "unit": ""}  # for which there is no room
    return tqdm(*args, file=_Lines(), **options | how)


def is_live() -> bool:
    """Whether a bar moves where it is shown: on a terminal or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class _Lines:
    """What tqdm draws, over and over in one place, as lines."""

    def __init__(self):
        self._last = ""

    def write(self, text):
        text = " ".join(text.split())
        # A bar says 0 as it begins.
        if text and text != self._last and ": 0/" not in text and ": 0 " not in text:
            with suppress(OSError):  # a log that is full ends no run
                sys.stderr.write(fit(f"{time.strftime('%H:%M:%S')} {text}") + "\n")
        self._last = text or self._last

    def flush(self):
        with suppress(OSError):
            sys.stderr.flush()

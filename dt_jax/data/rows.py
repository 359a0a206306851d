# SPDX-License-Identifier: Apache-2.0
"""Many rows of numbers that lie in pieces, in memory or in a memory map, read as one.

Blocks of rows are copied out at the speed of memory: by several threads, into memory
that is used again, and read ahead where a disk is behind them.
"""

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from operator import getitem

import numpy as np

THREAD_BYTES = 4 << 20  # one more thread for each so many bytes to copy
READ_AHEAD_BYTES = 1 << 28  # less than this stays in the page cache once it is read
HAS_MADVISE = hasattr(mmap, "MADV_WILLNEED")  # Windows has not

_copiers = ThreadPoolExecutor(os.cpu_count(), "rows")
_spare_memory = {}  # bytes: [memory maps of so many bytes that nothing refers to]


class Rows:
    """N rows of W numbers in one or more pieces, read as if they were one NxW array."""

    def __init__(self, pieces: Sequence[np.ndarray]):
        self.pieces = tuple(pieces)
        self.offsets = np.cumsum([0] + [len(piece) for piece in pieces])
        self.shape = (int(self.offsets[-1]), self.pieces[0].shape[1])
        self.nbytes = sum(piece.nbytes for piece in pieces)
        # Of what is gathered; four bytes either way.
        is_whole = np.issubdtype(self.pieces[0].dtype, np.integer)
        self.dtype = np.dtype(np.int32 if is_whole else np.float32)

    def __repr__(self) -> str:
        size, width = self.shape
        return f"Rows({size:,} x {width:,}, pieces: {len(self.pieces)})"

    def piece_of(self, rows: np.ndarray) -> np.ndarray:
        """The index of the piece that holds each of the given rows."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop, which must lie in one piece, without a copy."""
        piece = int(self.piece_of(start))
        offset = self.offsets[piece]
        return self.pieces[piece][start - offset : stop - offset]

    def gather(
        self, first_B: np.ndarray, taken_B: np.ndarray, length: int, padding: float
    ) -> np.ndarray:
        """Blocks of rows, padded on the left: B x length x W, float32, or of whole
        numbers int32.

        Args:
          first_B, taken_B: where a block begins, and its 1 to `length` rows, which must
            lie in one piece.
        """
        out_BxKxW = _scratch((len(first_B), length, self.shape[1]), self.dtype)
        padding_KxW = np.full(out_BxKxW.shape[1:], padding, self.dtype)
        piece_B = self.piece_of(first_B)
        start_B = first_B - self.offsets[piece_B]
        self._read_ahead(piece_B, start_B, taken_B)
        # `map` makes the views without a line of Python for each.
        blocks = map(
            getitem,
            map(self.pieces.__getitem__, piece_B.tolist()),
            map(slice, start_B.tolist(), (start_B + taken_B).tolist()),
        )
        paddings = map(
            padding_KxW.__getitem__, map(slice, taken_B.tolist(), repeat(None))
        )
        parts = list(chain.from_iterable(zip(paddings, blocks, strict=True)))

        def copy(first, last):
            # One call of NumPy for many blocks: threads hardly wait for each other.
            out_NxW = out_BxKxW[first:last].reshape(-1, self.shape[1])
            these = parts[2 * first : 2 * last]
            np.concatenate(these, out=out_NxW, casting="same_kind")

        threads = min(
            os.cpu_count(), 1 + out_BxKxW.nbytes // THREAD_BYTES, len(first_B)
        )
        if threads == 1:
            copy(0, len(first_B))
        else:
            bounds = np.linspace(0, len(first_B), threads + 1).astype(int)
            list(_copiers.map(copy, bounds[:-1], bounds[1:]))
        return out_BxKxW

    def _read_ahead(self, piece_B, start_B, taken_B):
        """Ask the disk for all blocks at once: page faults would come one by one."""
        if self.nbytes < READ_AHEAD_BYTES or not HAS_MADVISE:
            return
        row_bytes = np.array([piece.strides[0] for piece in self.pieces])[piece_B]
        address = np.array([piece.ctypes.data for piece in self.pieces])[piece_B]
        first_B = address + start_B * row_bytes
        page_B = first_B // mmap.PAGESIZE * mmap.PAGESIZE
        nbytes_B = first_B + taken_B * row_bytes - page_B
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        advice = repeat(mmap.MADV_WILLNEED)
        list(map(madvise, page_B.tolist(), nbytes_B.tolist(), advice))


def _scratch(shape, dtype) -> np.ndarray:
    """An empty array of four-byte numbers, whose memory is used again once nothing
    refers to it.

    Fresh pages cost as much as what is copied into them. Being aligned to pages, the
    array can be taken over by JAX on a CPU without a copy.
    """
    nbytes = 4 * int(np.prod(shape))
    spare = _spare_memory.setdefault(nbytes, [])
    memory = spare.pop() if spare else mmap.mmap(-1, nbytes)
    array = np.frombuffer(memory, dtype)
    # Views of it, and JAX's arrays that took one over, keep this very object alive.
    weakref.finalize(array, spare.append, memory).atexit = False
    return array.reshape(shape)

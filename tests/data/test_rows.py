# SPDX-License-Identifier: Apache-2.0
"""Blocks of rows out of pieces: by plain indexing, and what their memory does."""

import gc

import jax
import numpy as np
import pytest

from dt_jax.data import rows as rows_module
from dt_jax.data.rows import Rows


def test_blocks_on_paper():
    rows = Rows([np.array([[1.0], [2.0]]), np.array([[3.0], [4.0], [5.0]])])
    assert rows.shape == (5, 1)
    blocks_BxKxW = rows.gather(np.array([0, 2, 4]), np.array([2, 3, 1]), 3, -10.0)
    assert blocks_BxKxW.dtype == np.float32
    assert blocks_BxKxW[..., 0].tolist() == [[-10, 1, 2], [3, 4, 5], [-10, -10, 5]]


@pytest.mark.parametrize(
    "dtypes",
    [["f4"], ["f8"], ["f4", "f4"], ["f4", "f8", "i4"], ["f2", "f4"]],
    ids="-".join,
)
@pytest.mark.parametrize("thread_bytes", [1 << 20, 64], ids=["alone", "threads"])
def test_blocks_are_those_of_plain_indexing(dtypes, thread_bytes, monkeypatch):
    monkeypatch.setattr(rows_module, "THREAD_BYTES", thread_bytes)
    monkeypatch.setattr(rows_module, "READ_AHEAD_BYTES", 0)
    draw = np.random.default_rng(3)
    pieces = [(9 * draw.normal(size=(n, 4))).astype(t) for n, t in enumerate(dtypes, 8)]
    rows = Rows(pieces)
    whole_NxW = np.concatenate([piece.astype(np.float32) for piece in pieces])
    assert rows.nbytes == sum(piece.nbytes for piece in pieces)
    piece_B = draw.integers(len(pieces), size=50)
    taken_B = draw.integers(1, 7, size=50)
    sizes = np.array([len(piece) for piece in pieces])
    first_B = draw.integers(sizes[piece_B] - taken_B + 1)
    first_B += (np.cumsum(sizes) - sizes)[piece_B]
    expected_BxKxW = np.full((50, 6, 4), 7.0, np.float32)
    for block_KxW, first, taken in zip(expected_BxKxW, first_B, taken_B, strict=True):
        block_KxW[6 - taken :] = whole_NxW[first : first + taken]
    for lines in (slice(None), slice(1), piece_B == 0):
        found_BxKxW = rows.gather(first_B[lines], taken_B[lines], 6, 7.0)
        np.testing.assert_array_equal(found_BxKxW, expected_BxKxW[lines])


def test_memory_is_used_again_only_when_nothing_refers_to_it():
    rows = Rows([np.arange(12, dtype=np.float32).reshape(6, 2)])

    def gather(first):
        return rows.gather(np.array([first]), np.array([3]), 3, 0.0)

    def address(array):
        return array.__array_interface__["data"][0]

    first = gather(0)
    view_W, where = first[0, 0], address(first)
    del first
    gc.collect()
    second = gather(3)
    assert address(second) != where
    assert view_W.tolist() == [0.0, 1.0]
    taken_over = jax.device_put(second)
    second_where = address(second)
    del second, view_W
    gc.collect()
    third, fourth = gather(1), gather(2)
    assert address(third) == where
    assert second_where not in (address(third), address(fourth))
    assert taken_over[0, 0].tolist() == [6.0, 7.0]


def test_jax_takes_a_block_over_without_a_copy():
    rows = Rows([np.ones((6, 2), np.float32)])
    block_BxKxW = rows.gather(np.array([1]), np.array([2]), 3, 0.0)
    taken_over = jax.device_put(block_BxKxW, jax.devices()[0])
    address = block_BxKxW.__array_interface__["data"][0]
    assert taken_over.unsafe_buffer_pointer() == address

# SPDX-License-Identifier: Apache-2.0
"""A file is whole, old or new, and what was scratch is gone."""

import pytest

from dt_jax.system.files import another, clear_away, free_folder, replacing, scratch


def test_a_file_is_replaced_when_the_block_ends_well(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("old")
    with replacing(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(UnicodeEncodeError), replacing(path) as unfinished:
        unfinished.write_text("half \ud800", "utf-8")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_scratch_just_then_is_cleared_away(tmp_path):
    before, folder, file = (tmp_path / name for name in ("before", "folder", "file"))
    with scratch(before):
        before.touch()
    before.touch()  # is not scratch any more
    with scratch(folder), scratch(file):
        folder.mkdir()
        (folder / "inside").touch()
        file.touch()
        clear_away()
        assert list(tmp_path.iterdir()) == [before]


def test_a_folder_that_is_free_has_the_next_number(tmp_path):
    assert free_folder(tmp_path / "base") == tmp_path / "base-1"
    for name in ("base", "base-1", "base-3", "lr-1e-5"):
        (tmp_path / name).mkdir()
    assert free_folder(tmp_path / "base") == tmp_path / "base-2"
    for taken, free in (("base-1", "base-2"), ("lr-1e-5", "lr-1e-5-1")):
        told = another(tmp_path / taken)
        assert told == f"choose another --workdir, such as {tmp_path / free}"

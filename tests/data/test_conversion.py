# SPDX-License-Identifier: Apache-2.0
"""What is converted is converted once, again when it changes, or not at all."""

import os
import pickle
import threading

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_readers import as_dataset, assert_holds, make_columns, make_episodes

from dt_jax.data import conversion
from dt_jax.data.conversion import convert, mapped_folder
from dt_jax.data.readers import load_trajectories
from dt_jax.data.writer import save_trajectories


@pytest.fixture
def count(monkeypatch):
    """The folders that were written, in turn."""
    written = []

    def save(folder, *args, **options):
        written.append(folder)
        save_trajectories(folder, *args, **options)

    monkeypatch.setattr(conversion, "save_trajectories", save)
    return written


def write(path, seed=0):
    plain = {"compression": "none", "use_dictionary": False}
    pq.write_table(pa.table(make_columns(make_episodes(seed=seed))), path, **plain)
    return path


def test_it_is_converted_once_and_again_when_it_changes(tmp_path, count):
    path, cache = write(tmp_path / "mine.parquet"), tmp_path / "cache"
    first = load_trajectories(path, cache=cache)
    assert_holds(first, make_episodes())
    assert first.about == {"format": "Parquet", "source": str(path)}
    assert_holds(load_trajectories(path, cache=cache), make_episodes())
    assert [folder.name[:5] for folder in count] == ["mine-"]
    assert os.listdir(cache) == [count[0].name]
    # The same size and the same time of change: only the content tells.
    before = path.stat()
    write(path, seed=1)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert_holds(load_trajectories(path, cache=cache), make_episodes(seed=1))
    assert len(count) == 2
    write(path)
    assert_holds(load_trajectories(path, cache=cache), make_episodes())
    # A name may say what the data is of: another one is another dataset.
    load_trajectories(path.rename(tmp_path / "yours.parquet"), cache=cache)
    assert len(count) == 3


def test_of_several_at_once_one_converts(tmp_path, count):
    path, found = write(tmp_path / "mine.parquet"), []

    def read():
        options = {"split": "train", "cache": tmp_path / "cache"}
        found.append(mapped_folder(path, **options))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == len(count) == 1


def test_a_failure_leaves_nothing(tmp_path):
    episodes = make_episodes()
    episodes[4]["rewards"][1] = np.nan
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table(make_columns(episodes)), path)
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match=r"parquet: trajectory 4: .*nan at step 1"):
        load_trajectories(path, cache=cache)
    assert os.listdir(tmp_path) == ["mine.parquet"]
    with pytest.raises(ValueError, match="trajectory 4"):
        convert(path, tmp_path / "new" / "data", split="train")
    assert os.listdir(tmp_path) == ["mine.parquet"]


def test_what_can_be_mapped_is_not_converted(tmp_path, count):
    datasets.disable_progress_bars()
    parts = {"train": make_episodes(), "test": make_episodes((2, 5), seed=1)}
    of_parts = {name: as_dataset(make_columns(part)) for name, part in parts.items()}
    of_parts = datasets.DatasetDict(of_parts)
    of_parts.save_to_disk(tmp_path / "both")
    for split, episodes in parts.items():
        assert_holds(load_trajectories(of_parts, split=split), episodes)
        assert_holds(load_trajectories(tmp_path / "both", split=split), episodes)
    with pytest.raises(ValueError, match="splits train, test, expected 'valid'"):
        load_trajectories(tmp_path / "both", split="valid")
    assert not count
    with pytest.raises(ValueError, match="nothing to convert; expected one of d3rlpy"):
        convert(tmp_path / "both", tmp_path / "new", split="train")
    with pytest.raises(FileNotFoundError, match="none: no such file or folder"):
        convert(tmp_path / "none", tmp_path / "new", split="train")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("name", ["a.pkl", "a.pickle", "a.p", "a.npz", "a.npy"])
def test_pickles_are_never_loaded(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"never loaded.*save_trajectories") as caught:
        load_trajectories(tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    # What it says to do is code that runs.
    told = str(caught.value).partition("in Python: ")[2]
    episodes = make_episodes()
    with (tmp_path / name).open("wb") as file:
        if name.startswith("a.np"):
            array = np.array(episodes, object)
            (np.savez if name == "a.npz" else np.save)(file, array)
        else:
            pickle.dump(episodes, file)
    exec(told, {})
    assert_holds(load_trajectories("a"), episodes)

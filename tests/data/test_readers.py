# SPDX-License-Identifier: Apache-2.0
"""Datasets on disk become the same trajectories, uncopied; bad ones a clear line."""

import os
import tempfile
import tracemalloc

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from test_segments import SETTINGS, assert_same_bits, collate

from dt_jax.data import statistics
from dt_jax.data.readers import load_trajectories
from dt_jax.data.segments import Batch, SegmentSampler
from dt_jax.data.trajectories import Trajectories
from dt_jax.data.writer import save_trajectories

LENGTHS = (3, 1, 7, 4, 2, 7)
S, A = 3, 2
MEAN, STD = np.float32([1, -2, 0.1]), np.float32([2, 0.5, 0.1])


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def make_episodes(lengths=LENGTHS, dtype=np.float32, seed=0):
    draw = np.random.default_rng(seed).normal
    return [
        {
            "observations": draw(3, 2, size=(n, S)).astype(dtype),
            "actions": draw(size=(n, A)).astype(dtype),
            "rewards": draw(size=n).astype(dtype),
            "dones": np.arange(n) == n - 1,
        }
        for n in lengths
    ]


def make_columns(episodes=None):
    """The columns as lists, to be changed and made a dataset of."""
    episodes = episodes or make_episodes()
    return {key: [e[key].tolist() for e in episodes] for key in episodes[0]}


def as_dataset(columns, layout="gym", kinds=None, statistics=()):
    """A dataset of whole columns, or of the notebook's struct column and statistics."""
    if layout == "notebook":
        rows = zip(*columns.values(), strict=True)
        columns = {"train": [dict(zip(columns, row, strict=True)) for row in rows]}
        kinds = kinds and {"train": kinds}
    dataset = Dataset.from_dict(columns, features=kinds and datasets.Features(kinds))
    for name, column in zip(("state_mean", "state_std"), statistics, strict=False):
        padding = [0.0] * (len(dataset) - len(column))
        dataset = dataset.add_column(name, [*column, *padding])
    return dataset


def one_chunk_a_row(dataset):
    """The same rows, each in a record batch that is a slice of a larger one."""
    return datasets.concatenate_datasets(
        [dataset.select([row]) for row in range(len(dataset))]
    )


def kinds_of(kind, dtype="float32"):
    """The features of one way to write lists of lists."""
    number = datasets.Value(dtype)

    def matrix(width):
        return {
            "list": datasets.List(datasets.List(number)),
            "large_list": datasets.LargeList(datasets.LargeList(number)),
            "fixed-size list": datasets.List(datasets.List(number, length=width)),
            "Array2D": datasets.Array2D((None, width), dtype),
        }[kind]

    vector = datasets.LargeList if kind == "large_list" else datasets.List
    return {
        "observations": matrix(S),
        "actions": matrix(A),
        "rewards": vector(number),
        "dones": vector(datasets.Value("bool")),
    }


def fault_of(source, kind=ValueError):
    """The one line that says why the source cannot be read."""
    with pytest.raises(kind) as caught:
        load_trajectories(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_holds(store, episodes):
    assert store.lengths.tolist() == [len(e["rewards"]) for e in episodes]
    for start, episode in zip(store.starts, episodes, strict=True):
        stop = start + len(episode["rewards"])
        found = {
            "observations": store.states.slice(start, stop),
            "actions": store.actions.slice(start, stop),
            "rewards": store.rewards[start:stop],
            "dones": store.dones[start:stop],
        }
        for name, values in found.items():
            np.testing.assert_array_equal(values, episode[name], err_msg=name)


@pytest.mark.parametrize("split", [False, True], ids=["Dataset", "DatasetDict"])
@pytest.mark.parametrize("saved", [False, True], ids=["open", "saved"])
@pytest.mark.parametrize("layout", ["gym", "notebook"])
def test_both_layouts_are_read(tmp_path, layout, saved, split):
    dataset = as_dataset(make_columns(), layout, kinds_of("list"), (MEAN, STD))
    if split:
        dataset = DatasetDict(test=dataset.select([0]), train=dataset)
    if saved:
        dataset.save_to_disk(tmp_path / "data")
    for source in (tmp_path / "data", str(tmp_path / "data")) if saved else (dataset,):
        store = load_trajectories(source)
        assert_holds(store, make_episodes())
        np.testing.assert_array_equal(store.state_mean, MEAN)
        np.testing.assert_array_equal(store.state_std, STD)


@pytest.mark.parametrize("layout", ["gym", "notebook"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["list", "large_list", "fixed-size list", "Array2D"])
def test_lists_of_every_kind_are_read_in_their_precision(kind, dtype, layout):
    episodes = make_episodes(dtype=dtype)
    dataset = as_dataset(make_columns(episodes), layout, kinds_of(kind, dtype))
    for view in (dataset, one_chunk_a_row(dataset), dataset.select(range(1, 5))):
        store = load_trajectories(view)
        expected = episodes[1:5] if len(view) == 4 else episodes
        rounded = [e | {"rewards": np.float32(e["rewards"])} for e in expected]
        assert_holds(store, rounded)
        assert store.states.pieces[0].dtype == store.actions.pieces[0].dtype == dtype


def test_dones_may_be_numbers_or_missing():
    episodes = make_episodes(dtype="float64")
    columns = make_columns(episodes)
    columns["dones"] = [[2.0 * done for done in row] for row in columns["dones"]]
    dones = np.concatenate([episode["dones"] for episode in episodes])
    store = load_trajectories(as_dataset(columns))
    assert store.dones.dtype == bool
    np.testing.assert_array_equal(store.dones, dones)
    del columns["dones"]
    assert load_trajectories(as_dataset(columns)).dones is None


@pytest.mark.parametrize("layout", ["gym", "notebook"])
@pytest.mark.parametrize(
    "sharding", [{"num_shards": 1}, {"num_shards": 4}, {"max_shard_size": 1}]
)
def test_shards_and_record_batches_change_nothing(tmp_path, layout, sharding):
    dataset = as_dataset(make_columns(), layout, kinds_of("list"))
    expected = load_trajectories(dataset)
    assert len(expected.states.pieces) == 1
    chunked = one_chunk_a_row(dataset)
    chunked.save_to_disk(tmp_path / "data", **sharding)
    shards = load_trajectories(tmp_path / "data")
    num_files = len(list((tmp_path / "data").glob("*.arrow")))
    assert len(shards.states.pieces) == num_files >= sharding.get("num_shards", 5)
    # Empty record batches, too, are of no consequence.
    batches = chunked.data.table.to_batches()
    empty = pa.Table.from_batches([batches[0][:0], *batches, batches[0][:0]])
    for store in (shards, load_trajectories(Dataset(empty))):
        assert_holds(store, make_episodes())
        assert store.fingerprint() == expected.fingerprint()


@pytest.mark.parametrize(
    "select",
    [
        lambda rows: rows.select([4, 0, 4]),
        lambda rows: rows.select(range(2, 5)),
        lambda rows: rows.shuffle(seed=1),
        lambda rows: rows.select(range(1, 6)).shuffle(seed=1).select(range(3)),
        lambda rows: rows.shard(2, 1, contiguous=False),
        lambda rows: rows.filter(lambda row: row["row"] % 2 == 1),
    ],
)
@pytest.mark.parametrize("chunks", [1, len(LENGTHS)])
def test_chosen_rows_are_honoured_in_their_order(tmp_path, select, chunks):
    dataset = as_dataset(make_columns(), kinds=kinds_of("list"))
    dataset = select(dataset.add_column("row", range(len(dataset))))
    if chunks > 1 and dataset._indices is None:
        dataset = one_chunk_a_row(dataset)
    expected = [make_episodes()[row] for row in dataset["row"]]
    assert_holds(load_trajectories(dataset), expected)
    dataset.save_to_disk(tmp_path / "data", num_shards=min(chunks, len(dataset)))
    assert_holds(load_trajectories(tmp_path / "data"), expected)


def cut_after_dones(episode):
    """The parts of an episode, each up to a done or the end."""
    first = 0
    for last, done in enumerate(episode["dones"]):
        if done or last + 1 == len(episode["dones"]):
            yield {key: column[first : last + 1] for key, column in episode.items()}
            first = last + 1


def sum_from_behind(rewards, discount):
    returns, later = [], 0.0
    for reward in reversed(rewards.tolist()):
        later = reward + discount * later
        returns.insert(0, later)
    return returns


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    data=st.data(),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    widths=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    layout=st.sampled_from(["gym", "notebook"]),
    kind=st.sampled_from(["list", "large_list"]),
    dtype=st.sampled_from(["float32", "float64"]),
    shards=st.integers(0, 4),  # 0: the dataset is given open
    split=st.booleans(),
    discount=st.sampled_from([1.0, 0.9]),
)
def test_any_ragged_dataset_gives_what_plain_loops_give(
    data, lengths, widths, layout, kind, dtype, shards, split, discount
):
    draw = np.random.default_rng(len(lengths)).normal
    state_dim, act_dim = widths
    episodes = [
        {
            "observations": draw(size=(n, state_dim)).astype(dtype),
            "actions": draw(size=(n, act_dim)).astype(dtype),
            "rewards": draw(size=n).astype(dtype),
            "dones": np.array(
                data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
            ),
        }
        for n in lengths
    ]
    chosen = st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8)
    rows = data.draw(st.none() | chosen)
    dataset = as_dataset(make_columns(episodes), layout, kinds_of(kind, dtype))
    if rows is not None:
        dataset, episodes = dataset.select(rows), [episodes[row] for row in rows]
    if split:
        episodes = [part for e in episodes for part in cut_after_dones(e)]

    with tempfile.TemporaryDirectory() as folder:
        source = dataset
        if shards:
            source = os.path.join(folder, "data")
            dataset.save_to_disk(source, num_shards=min(shards, len(dataset)))
        store = load_trajectories(source, split_on_dones=split, discount=discount)
        assert_holds(
            store, [e | {"rewards": np.float32(e["rewards"])} for e in episodes]
        )
        for start, episode in zip(store.starts, episodes, strict=True):
            found = store.returns_to_go[start : start + len(episode["rewards"])]
            assert found.tolist() == sum_from_behind(episode["rewards"], discount)

        options = SETTINGS | {"max_ep_len": 6}
        sampler = SegmentSampler(store, **options)
        batch = sampler.batch(0)
    if discount == 1.0:
        collated = [
            collate(
                episodes[i] | {"states": episodes[i]["observations"]}, start, **options
            )
            for i, start in zip(*sampler.draw(0), strict=True)
        ]
        assert_same_bits(batch, Batch(*map(np.stack, zip(*collated, strict=True))))


def test_faults_matter_in_chosen_rows_alone_and_are_named_by_their_order():
    columns = make_columns()
    columns["observations"][3][1][0] = np.nan
    columns["rewards"][5][2] = np.inf
    for name in columns:
        columns[name][0] = []
    dataset = one_chunk_a_row(as_dataset(columns))
    store = load_trajectories(dataset.select([4, 1, 2]))
    assert store.lengths.tolist() == [2, 1, 7]
    for rows, message in (
        ([4, 5, 3], "trajectory 2: column 'observations' holds nan at step 1"),
        ([4, 5, 1, 2], "trajectory 1: column 'rewards' holds inf at step 2"),
        ([4, 0], "trajectory 1: column 'observations' has no steps"),
    ):
        assert message in fault_of(dataset.select(rows))


def test_dones_of_nan_are_refused():
    columns = make_columns()
    columns["dones"] = [[float(done) for done in row] for row in columns["dones"]]
    columns["dones"][2][5] = np.nan
    fault = "trajectory 2: column 'dones' holds nan, expected true or false"
    assert fault in fault_of(as_dataset(columns))


def test_states_and_actions_are_views_of_the_file(tmp_path, monkeypatch):
    # So many rows are copied, however many there are, to check the statistics.
    monkeypatch.setattr(statistics, "SAMPLED_ROWS", 20)
    episodes = make_episodes([30] * 300)
    for episode in episodes:
        episode["observations"] = np.repeat(episode["observations"], 80, axis=1)
    save_trajectories(tmp_path / "data", episodes)
    load_trajectories(tmp_path / "data")  # imports and thread pools are paid before
    arrow_bytes = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        dataset = datasets.load_from_disk(tmp_path / "data")
        store = load_trajectories(dataset)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert store.states.nbytes == 300 * 30 * 240 * 4
    assert max(peak, pa.total_allocated_bytes() - arrow_bytes) < store.nbytes / 8
    chunk = dataset.data.table.column("train").chunk(0)
    for rows, name in ((store.states, "observations"), (store.actions, "actions")):
        flat = chunk.field(name).flatten().flatten().to_numpy()
        assert np.shares_memory(rows.pieces[0], flat)
        assert not rows.pieces[0].flags.writeable


def test_one_more_observation_is_dropped_and_states_are_still_views():
    columns = make_columns()
    for row, states in enumerate(columns["observations"]):
        if row != 2:
            states.append([np.nan] * S)  # of no step: whatever it is
    dataset = one_chunk_a_row(as_dataset(columns, kinds=kinds_of("list")))
    assert_holds(load_trajectories(dataset), make_episodes())
    store = load_trajectories(dataset.select([4, 2, 0]), split_on_dones=True)
    assert_holds(store, [make_episodes()[row] for row in (4, 2, 0)])
    flat = dataset.data.table.column("observations").chunk(1).values.values
    numbers = np.from_dlpack(flat)
    assert any(np.shares_memory(piece, numbers) for piece in store.states.pieces)


@pytest.mark.parametrize("statistics", [(), (MEAN,)])
def test_statistics_are_computed_when_the_dataset_lacks_them(statistics):
    store = load_trajectories(as_dataset(make_columns(), statistics=statistics))
    states_NxS = np.concatenate([e["observations"] for e in make_episodes()])
    states_NxS = states_NxS.astype(np.float64)
    # Computed in double precision; the results are rounded to float32 once.
    close = {"rtol": 2e-7, "atol": 0}
    np.testing.assert_allclose(store.state_mean, states_NxS.mean(0), **close)
    np.testing.assert_allclose(store.state_std, states_NxS.std(0) + 1e-6, **close)


def test_statistics_stay_in_place_under_a_shuffle_but_not_once_it_is_saved(tmp_path):
    dataset = as_dataset(make_columns(), statistics=(MEAN, STD)).shuffle(seed=1)
    np.testing.assert_array_equal(load_trajectories(dataset).state_std, STD)
    dataset.save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match=r"holds 0\.0 .* if rows were shuffled or cut"):
        load_trajectories(tmp_path / "data")


def test_options_are_handed_on():
    episodes = make_episodes()
    episodes[2]["dones"][3] = True
    options = {"split_on_dones": True, "discount": 0.5}
    store = load_trajectories(as_dataset(make_columns(episodes)), **options)
    assert store.lengths.tolist() == [3, 1, 4, 3, 4, 2, 7]
    expected = Trajectories.from_episodes(episodes, **options)
    np.testing.assert_array_equal(store.returns_to_go, expected.returns_to_go)


NUM = len(LENGTHS)
NULL = "has an empty (null) value or list"
FAULTS = [
    # column, place in it (trajectory, step, feature), what is put there, what is said
    ("observations", (3,), None, NULL),
    ("observations", (3, 1), None, NULL),
    ("actions", (3, 3, 1), None, NULL),
    ("rewards", (4,), None, NULL),
    ("rewards", (4, 0), None, NULL),
    ("dones", (4, 1), None, NULL),
    ("observations", (3, 1), [1.0], "has a row of 1 numbers, but the first row has 3"),
    ("actions", (0, 1), [1.0], "has a row of 1 numbers, but the first row has 2"),
    ("observations", (3,), [[1.0] * 4] * 4, "has a row of 4 numbers, but the first"),
    ("actions", (3,), [], "has 0 steps, but column 'observations' has 4"),
    ("rewards", (3,), [1.0], "has 1 steps, but column 'observations' has 4"),
    ("dones", (3,), [True] * 5, "has 5 steps, but column 'observations' has 4"),
    ("observations", (3, 1, 2), np.nan, "holds nan at step 1, feature 2"),
    ("actions", (5, 6, 0), -np.inf, "holds -inf at step 6, feature 0"),
    ("rewards", (1, 0), np.inf, "holds inf at step 0"),
    ("rewards", (), [["a"]] * NUM, "holds string, expected numbers"),
    ("rewards", (), ["a"] * NUM, "holds string where a list was expected"),
    ("actions", (), [[["a"]]] * NUM, "holds string, expected numbers"),
    ("observations", (), [1.0] * NUM, "holds double where a list was expected"),
    ("rewards", (), [[[1.0, 2.0]]] * NUM, "has rows of 2 numbers, expected 1"),
    ("rewards", (), [[[[1.0]]]] * NUM, "holds list<item: double>, expected numbers"),
    ("observations", (), None, "(or states), actions, rewards (and dones), as columns"),
    ("rewards", (), None, "expected observations (or states), actions, rewards (and"),
]


@pytest.mark.parametrize(
    ("kept", "layout"), [("whole", "gym"), ("chunks", "notebook"), ("shards", "gym")]
)
@pytest.mark.parametrize(("column", "place", "value", "said"), FAULTS)
def test_faults_are_named_in_one_line(
    tmp_path, column, place, value, said, kept, layout
):
    columns = make_columns()
    target, last = columns, column
    for index in place:
        target, last = target[last], index
    target[last] = value
    expected = f"column {column!r} {said}"
    if place:
        expected = f": trajectory {place[0]}: {expected}"
    elif value is None:
        del columns[column]
        expected = said
    kinds = kinds_of("list", "float64")
    dataset = as_dataset(columns, layout, kinds if place else None)
    if kept != "whole":
        dataset = one_chunk_a_row(dataset)
    if kept == "shards":
        dataset.save_to_disk(tmp_path / "data", num_shards=3)
        dataset = tmp_path / "data"
    fault = fault_of(dataset)
    assert expected in fault
    assert fault.startswith("dataset: " if kept != "shards" else f"path={dataset}")


def test_rows_of_no_numbers_are_refused():
    columns = make_columns() | {"actions": [[[]] * length for length in LENGTHS]}
    dataset = as_dataset(columns, kinds=kinds_of("list"))
    assert "column 'actions' has rows of 0 numbers" in fault_of(dataset)


@pytest.mark.parametrize("layout", ["gym", "notebook"])
@pytest.mark.parametrize("empty", [[2], [2, 3], range(NUM)])
def test_a_trajectory_needs_a_step(layout, empty):
    columns = make_columns()
    for name in columns:
        for row in empty:
            columns[name][row] = []
    dataset = as_dataset(columns, layout, kinds_of("list"), (MEAN, STD))
    message = f"trajectory {empty[0]}: column 'observations' has no steps"
    for view in (dataset, one_chunk_a_row(dataset)):
        assert message in fault_of(view)


@pytest.mark.parametrize("layout", ["gym", "notebook"])
def test_a_dataset_needs_rows(layout):
    dataset = as_dataset(make_columns(), layout).select([])
    assert "found no rows, expected at least one trajectory" in fault_of(dataset)


def test_a_null_row_is_refused():
    rows = [*as_dataset(make_columns(), "notebook")["train"], None]
    dataset = one_chunk_a_row(Dataset.from_dict({"train": rows}))
    message = f"trajectory {NUM}: column 'train' is empty (null)"
    assert message in fault_of(dataset)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (MEAN, STD * [1, 0, 1], "column 'state_std' holds 0.0 for feature 1"),
        (MEAN, STD * [1, 1, -1], "column 'state_std' holds -0.1"),
        (MEAN, STD * [1, np.inf, 1], "column 'state_std' holds inf for feature 1"),
        (MEAN * np.nan, STD, "column 'state_mean' holds nan for feature 0"),
        (["a"] * NUM, STD, "column 'state_mean' holds string, expected numbers"),
        (MEAN, [[1.0]] * NUM, "column 'state_std' holds list<"),
    ],
)
def test_faulty_statistics_are_refused(mean, std, message):
    assert message in fault_of(as_dataset(make_columns(), statistics=(mean, std)))


def test_statistics_shorter_than_a_state_are_refused():
    columns = make_columns(make_episodes(LENGTHS[:2]))
    dataset = as_dataset(columns, statistics=(MEAN[:2], STD[:2]))
    message = "state_mean and state_std have 2 rows, but states have 3 numbers"
    assert message in fault_of(dataset)


def test_folders_without_a_whole_dataset_are_refused(tmp_path):
    path = tmp_path / "data"
    assert "no such folder" in fault_of(path, FileNotFoundError)
    path.write_text("a file")
    assert f"path={path}: found a file" in fault_of(path, FileNotFoundError)
    path.unlink()
    path.mkdir()
    assert "not a whole dataset" in fault_of(path, FileNotFoundError)
    dataset = as_dataset(make_columns())
    DatasetDict(test=dataset).save_to_disk(path)
    assert "found the splits test, expected 'train'" in fault_of(path)

    dataset.save_to_disk(tmp_path / "cut", num_shards=2)
    shard = tmp_path / "cut" / "data-00001-of-00002.arrow"
    os.truncate(shard, shard.stat().st_size - 200)
    assert "not a readable dataset" in fault_of(tmp_path / "cut")
    os.truncate(shard, 0)
    assert "not a readable dataset" in fault_of(tmp_path / "cut")
    schema = dataset.data.table.schema
    with pa.OSFile(str(shard), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        stream.write_table(dataset.data.table)
        size = file.tell()
    os.truncate(shard, size)  # whole record batches, but are they all?
    assert f"{shard.name} ends before its end mark" in fault_of(tmp_path / "cut")
    shard.unlink()
    assert shard.name in fault_of(tmp_path / "cut", FileNotFoundError)
    (tmp_path / "cut" / "state.json").write_text("{")
    assert "not a readable dataset" in fault_of(tmp_path / "cut")

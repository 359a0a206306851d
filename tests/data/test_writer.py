# SPDX-License-Identifier: Apache-2.0
"""What is written can be read, whatever the episodes are shaped and called like."""

import os
import tempfile

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_readers import LENGTHS, S, assert_holds, make_episodes

from dt_jax.data import writer
from dt_jax.data.readers import load_trajectories
from dt_jax.data.trajectories import Trajectories
from dt_jax.data.writer import save_trajectories


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.parametrize("write_bytes", [1, 300, 64 << 20])
@pytest.mark.parametrize("lengths", [LENGTHS, (4, 1, 2), (5,)])
def test_saved_trajectories_come_back(tmp_path, monkeypatch, write_bytes, lengths):
    monkeypatch.setattr(writer, "WRITE_BYTES", write_bytes)
    episodes = make_episodes(lengths)
    for episode in episodes:  # a constant feature, and one with a large offset
        episode["observations"] = (episode["observations"] + [0, 1e6, 0]) * [1, 1, 0]
    save_trajectories(tmp_path / "new" / "data", iter(episodes))
    assert os.listdir(tmp_path / "new") == ["data"]
    store = load_trajectories(tmp_path / "new" / "data")
    rounded = [e | {"observations": np.float32(e["observations"])} for e in episodes]
    assert_holds(store, rounded)
    dataset = datasets.load_from_disk(tmp_path / "new" / "data")
    num_columns = 3 if len(lengths) >= S else 1  # a column holds a mean of S numbers
    assert dataset.column_names == ["train", "state_mean", "state_std"][:num_columns]
    assert dataset[0]["train"]["rewards"] == episodes[0]["rewards"].tolist()
    states_NxS = np.concatenate([e["observations"] for e in rounded]).astype(float)
    # The sums are in double precision about a shift; float32 holds the results.
    close = {"rtol": 2e-7, "atol": 1e-12}
    np.testing.assert_allclose(store.state_mean, states_NxS.mean(0), **close)
    np.testing.assert_allclose(store.state_std, states_NxS.std(0) + 1e-6, **close)


def test_a_failing_or_empty_source_of_episodes_leaves_nothing_behind(tmp_path):
    def failing():
        yield from make_episodes()
        raise RuntimeError("the simulator fell over")

    with pytest.raises(RuntimeError, match="fell over"):
        save_trajectories(tmp_path / "data", failing())
    with pytest.raises(ValueError, match="found no episodes"):
        save_trajectories(tmp_path / "data", [])
    assert not list(tmp_path.iterdir())
    save_trajectories(tmp_path / "data", make_episodes())
    before = load_trajectories(tmp_path / "data").fingerprint()
    with pytest.raises(ValueError, match="exists already"):
        save_trajectories(tmp_path / "data", make_episodes(seed=1))
    assert load_trajectories(tmp_path / "data").fingerprint() == before


ENDS = st.sampled_from(
    [
        (),
        ("dones",),
        ("terminals",),
        ("terminations",),
        ("truncations",),
        ("terminals", "timeouts"),
        ("terminations", "truncations"),
    ]
)


@st.composite
def ragged_episodes(draw):
    """Episodes of one name for each column, each of any shape that it may have."""
    ends, states = draw(ENDS), draw(st.sampled_from(["observations", "states"]))
    state_dim, act_dim = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    # What a column of a dataset has in all rows: lists of numbers, or lists of lists.
    flat_states = state_dim == 1 and draw(st.booleans())
    flat_actions = act_dim == 1 and draw(st.booleans())
    tall = {name: draw(st.booleans()) for name in ("rewards", *ends)}
    numbers = np.random.default_rng(draw(st.integers(0, 99)))
    episodes = []
    for steps in draw(st.lists(st.integers(1, 5), min_size=1, max_size=5)):
        one_more = draw(st.booleans())
        columns = {
            states: numbers.normal(size=(steps + one_more, state_dim)),
            "actions": numbers.normal(size=(steps, act_dim)),
            "rewards": numbers.normal(size=steps),
            **{name: numbers.random(steps) < 0.3 for name in ends},
        }
        columns[states] = columns[states].reshape(
            -1 if flat_states else (-1, state_dim)
        )
        if flat_actions:
            columns["actions"] = columns["actions"][:, 0]
        for name, is_tall in tall.items():
            if is_tall:
                columns[name] = columns[name][:, None]
        episodes.append(columns)
    return episodes


def plain(episodes):
    """In the one form: by hand, not by our own code."""
    for episode in episodes:
        ends = [np.ravel(v) for k, v in episode.items() if np.asarray(v).dtype == bool]
        states = episode.get("states", episode.get("observations"))
        steps = len(episode["actions"])
        yield {
            "states": states.reshape(len(states), -1)[:steps],
            "actions": episode["actions"].reshape(steps, -1),
            "rewards": np.ravel(episode["rewards"]),
            **({"dones": np.any(ends, axis=0)} if ends else {}),
        }


def assert_alike(found, expected, dtype):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, values in other.items():
            kind = {"rewards": np.float32, "dones": bool}.get(name, dtype)
            np.testing.assert_array_equal(one[name].astype(kind), values.astype(kind))


# Few examples: each makes two datasets.
@settings(deadline=None, derandomize=True, max_examples=25)
@given(episodes=ragged_episodes(), split=st.booleans())
def test_episodes_in_any_shape_are_the_same_from_memory_and_from_disk(episodes, split):
    has_ends = any(name.startswith(("d", "t")) for name in episodes[0])
    options = {"split_on_dones": split and has_ends}
    whole = Trajectories.from_episodes(episodes)
    assert_alike(whole, list(plain(episodes)), np.float64)
    expected = Trajectories.from_episodes(episodes, **options)
    with tempfile.TemporaryDirectory() as folder:
        mine, theirs = os.path.join(folder, "mine"), os.path.join(folder, "theirs")
        save_trajectories(mine, iter(episodes))
        ours = load_trajectories(mine, **options)
        if not has_ends:
            for number, episode in enumerate(ours):
                last = ours.lengths[number] - 1
                assert np.flatnonzero(episode["dones"]).tolist() == [last]
        common = [{name: e[name] for name in expected[0]} for e in ours]
        assert_alike(common, expected, np.float32)
        rows = [{k: np.asarray(v).tolist() for k, v in e.items()} for e in episodes]
        datasets.Dataset.from_list(rows).save_to_disk(theirs)
        notebook = datasets.Dataset.from_list([{"train": row} for row in rows])
        for source in (theirs, notebook):
            found = load_trajectories(source, **options)
            assert_alike(found, expected, np.float64)
            assert found.fingerprint() == expected.fingerprint()


def test_discrete_actions_stay_whole_numbers(tmp_path):
    episode = {"states": [[0.0], [1.0]], "actions": [[0, 3], [1, 0]], "rewards": [0, 0]}
    save_trajectories(tmp_path / "data", [episode])
    read = load_trajectories(tmp_path / "data")
    assert read[0]["actions"].dtype == np.int32
    assert read[0]["actions"].tolist() == episode["actions"]
    assert read.action_sizes == (2, 4)

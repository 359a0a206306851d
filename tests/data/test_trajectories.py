# SPDX-License-Identifier: Apache-2.0
"""The store of ragged episodes: what it holds, sums, splits, measures and refuses."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dt_jax.data import scan, trajectories
from dt_jax.data.trajectories import Trajectories

LENGTHS = (3, 1, 7, 2, 7)


def make_episodes(lengths=LENGTHS, dtype=np.float32, seed=0):
    """Episodes of 3 state and 2 action features; only their last steps are done."""
    draw = np.random.default_rng(seed).normal
    return [
        {
            "states": draw(size=(n, 3)).astype(dtype),
            "actions": draw(size=(n, 2)).astype(dtype),
            "rewards": draw(size=n).astype(dtype),
            "dones": np.arange(n) == n - 1,
        }
        for n in lengths
    ]


def from_rewards(rewards, dones=None, **options):
    """Trajectories of which only the rewards (and dones) matter."""
    episodes = [
        {"states": np.ones((len(r), 1)), "actions": np.ones((len(r), 1)), "rewards": r}
        for r in rewards
    ]
    if dones is not None:
        episodes = [e | {"dones": d} for e, d in zip(episodes, dones, strict=True)]
    return Trajectories.from_episodes(episodes, **options)


def from_flat(episodes, bounds, **options):
    """The same store, its states and actions cut in pieces before these episodes."""
    flat = {key: np.concatenate([e[key] for e in episodes]) for key in episodes[0]}
    lengths = np.array([len(e["rewards"]) for e in episodes])
    starts = np.cumsum(lengths) - lengths
    return Trajectories.from_arrays(
        np.split(flat["states"], starts[list(bounds)]),
        np.split(flat["actions"], starts[list(bounds)]),
        flat["rewards"],
        **{"starts": starts, "lengths": lengths, "dones": flat["dones"]} | options,
    )


@pytest.mark.parametrize("key", ["states", "observations"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_episodes_lie_end_to_end_as_they_are(key, dtype):
    episodes = make_episodes(dtype=dtype)
    store = Trajectories.from_episodes([{key: e.pop("states"), **e} for e in episodes])
    assert store.lengths.tolist() == list(LENGTHS)
    assert store.starts.tolist() == [0, 3, 4, 11, 13]
    assert (store.num_trajectories, store.num_steps) == (5, 20)
    assert (store.state_dim, store.act_dim) == (3, 2)
    assert store.nbytes == 20 * 5 * dtype().nbytes
    found = {
        "states": store.states.slice(0, 20),
        "actions": store.actions.slice(0, 20),
        "rewards": store.rewards,
        "dones": store.dones,
    }
    for name, values in found.items():
        flat = np.concatenate([e[name] for e in make_episodes(dtype=dtype)])
        kept = flat.astype(np.float32) if name == "rewards" else flat
        assert values.dtype == kept.dtype
        np.testing.assert_array_equal(values, kept)


def test_dones_are_optional_but_for_all_or_none():
    episodes = make_episodes()
    del episodes[2]["dones"]
    assert Trajectories.from_episodes(episodes).dones is None


@pytest.mark.parametrize(
    ("discount", "expected"),
    [
        (1.0, [6, 5, 3, 10, -4, -4]),
        (0.5, [2.75, 3.5, 3, 10, -2, -4]),
        (0.0, [1, 2, 3, 10, 0, -4]),
    ],
)
def test_returns_to_go_on_paper(discount, expected):
    store = from_rewards([[1, 2, 3], [10], [0, -4]], discount=discount)
    assert store.returns_to_go.tolist() == expected


@pytest.mark.parametrize("discount", [1.0, 0.99, 0.3])
def test_returns_to_go_equal_a_plain_loop(discount):
    episodes = make_episodes(np.random.default_rng(1).integers(1, 60, size=40))
    expected = []
    for episode in episodes:
        returns = [0.0]
        for reward in reversed(episode["rewards"].tolist()):
            returns.append(reward + discount * returns[-1])
        expected += returns[:0:-1]
    store = Trajectories.from_episodes(episodes, discount=discount)
    # Equal to the bit: the same double-precision operations in the same order.
    np.testing.assert_array_equal(store.returns_to_go, expected)


def test_returns_to_go_relative_to_their_timestep_on_paper():
    # Returns-to-go of 6, 5, 3; 3, 1; 9; and of one that is not chosen.
    store = from_rewards([[1, 2, 3], [2, 1], [9], [50, 50, 50, 50]])
    chosen = store.select([2, 0, 1])
    assert chosen.mean_returns_to_go(9).tolist() == [6, 3, 3]
    # With the timesteps from 1 on read as one.
    assert chosen.mean_returns_to_go(2).tolist() == [6, 3]
    assert chosen.mean_returns_to_go(1).tolist() == [27 / 6]
    relative = store.relative_to(np.array([6.0, 3.0, 2.0]))
    assert relative.returns_to_go.tolist() == [0, 2, 1, -3, -2, 3, 194, 147, 98, 48]
    assert store.returns_to_go[0] == 6
    assert relative.rewards is store.rewards


def test_split_on_dones_by_hand():
    rewards = [[1, 2, 4, 8], [16], [32, 64], [128, 256]]
    dones = [[0, 1, 0, 0], [1], [1, 1], [0, 0]]
    whole = from_rewards(rewards, dones)
    assert whole.lengths.tolist() == [4, 1, 2, 2]
    split = from_rewards(rewards, dones, split_on_dones=True)
    assert split.starts.tolist() == [0, 2, 4, 5, 6, 7]
    assert split.lengths.tolist() == [2, 2, 1, 1, 1, 2]
    assert split.returns_to_go.tolist() == [3, 2, 12, 8, 16, 32, 64, 384, 256]


@settings(deadline=None, derandomize=True)
@given(
    dones=st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1),
    data=st.data(),
)
def test_split_on_dones_equals_a_plain_loop_in_any_order(dones, data):
    lengths = np.array([len(done) for done in dones])
    starts = np.cumsum(lengths) - lengths
    chosen = np.array(
        data.draw(st.lists(st.integers(0, len(dones) - 1), min_size=1, max_size=9))
    )
    expected = []
    for trajectory in chosen:
        first = starts[trajectory]
        for step, done in enumerate(dones[trajectory], start=starts[trajectory]):
            if done or step == starts[trajectory] + lengths[trajectory] - 1:
                expected.append((first, step + 1 - first))
                first = step + 1
    num_steps = lengths.sum()
    store = Trajectories.from_arrays(
        [np.ones((num_steps, 1), np.float32)],
        [np.ones((num_steps, 1), np.float32)],
        np.ones(num_steps),
        starts=starts[chosen],
        lengths=lengths[chosen],
        dones=np.concatenate(dones),
        split_on_dones=True,
    )
    assert list(zip(store.starts, store.lengths, strict=True)) == expected


def repeats(counts):
    """Trajectories of one step; trajectory i comes counts[i] times."""
    return from_rewards([[number] for number, n in enumerate(counts) for _ in range(n)])


def rewards_of(store):
    return sorted(store.rewards[store.starts].tolist())


def test_selected_trajectories_share_the_rows():
    store = Trajectories.from_episodes(make_episodes())
    chosen = store.select([3, 1])
    assert (chosen.num_trajectories, chosen.num_steps) == (2, 3)
    assert chosen.starts.tolist() == [11, 3]
    assert chosen.facts().digests.tolist() == store.facts().digests[[3, 1]].tolist()
    assert chosen.states is store.states
    assert chosen.returns_to_go is store.returns_to_go
    actions_NxA = np.concatenate([make_episodes()[i]["actions"] for i in (3, 1)])
    # Both in double precision.
    np.testing.assert_allclose(
        chosen.mean_action(), actions_NxA.astype(np.float64).mean(axis=0), rtol=1e-12
    )


@settings(deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(1, 5), min_size=2, max_size=12),
    fraction=st.floats(0.01, 0.99),
    data=st.data(),
)
def test_a_split_keeps_repeats_together_in_any_order(counts, fraction, data):
    store = repeats(counts)
    order = data.draw(st.permutations(range(store.num_trajectories)))
    try:
        training, held_out = store.split(fraction)
    except ValueError:
        with pytest.raises(ValueError, match=r"^validation_fraction"):
            store.select(order).split(fraction)
        return
    sides = rewards_of(training), rewards_of(held_out)
    assert set(sides[0]).isdisjoint(sides[1])
    assert sorted(sides[0] + sides[1]) == rewards_of(store)
    shuffled = store.select(order).split(fraction)
    assert tuple(map(rewards_of, shuffled)) == sides
    # Moving a group of n over brings the share nearer only if it is out by above n / 2.
    out = abs(held_out.num_trajectories - fraction * store.num_trajectories)
    assert out <= max(counts) / 2


def test_splits_on_paper():
    assert [s.num_trajectories for s in repeats([1] * 20).split(0.25)] == [15, 5]
    # Nine tenths are one trajectory: wherever its digest stands, it is trained on.
    for number in range(5):
        counts = [1] * 11
        counts[number] = 90
        training, held_out = repeats(counts).split(0.1)
        assert set(rewards_of(training)) == {number}
        assert held_out.num_trajectories == 10
    store = repeats([1, 2])
    assert store.split(0.0) == (store, None)
    assert store.split(0.0)[0] is store


def test_the_best_on_paper():
    # Returns 3, 9, 1, 9, 5 in 2, 1, 3, 1 and 3 of 10 steps.
    rewards = [[1, 2], [9], [1, 0, 0], [9], [0, 0, 5]]
    episodes = [
        {"states": np.full((len(r), 1), n), "actions": np.zeros((len(r), 1))}
        | {"rewards": r}
        for n, r in enumerate(rewards)
    ]
    store = Trajectories.from_episodes(episodes, discount=0.5)
    first = 1 if store.facts().digests[1] < store.facts().digests[3] else 3
    for share, expected in (
        (0.1, [first]),
        (0.11, [1, 3]),
        (0.2, [1, 3]),
        (0.21, [1, 3, 4]),
        (0.7, [0, 1, 3, 4]),
        (0.71, [0, 1, 2, 3, 4]),
        (1.0, [0, 1, 2, 3, 4]),
    ):
        assert store.best(share).tolist() == expected
    # In another order the same trajectories are the best.
    turned = store.select([4, 3, 2, 1, 0])
    assert turned.best(0.1).tolist() == [4 - first]


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (-0.1, "=-0.1: expected 0 to 1, 1 excluded"),
        (1.0, "=1.0: expected 0 to 1, 1 excluded"),
        (np.nan, "=nan: expected 0 to 1, 1 excluded"),
        (0.1, "=0.1 of 4 trajectories (2 different ones) leaves none to hold out; "),
        (0.9, "=0.9 of 4 trajectories (2 different ones) leaves none to train on; "),
    ],
)
def test_a_split_that_cannot_be_names_its_key(fraction, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, compared below
        repeats([2, 2]).split(fraction)
    assert str(caught.value).startswith(f"validation_fraction{message}")


@pytest.mark.parametrize("block_bytes", [8 << 20, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_statistics_are_numpys_over_the_chosen_steps(monkeypatch, block_bytes, dtype):
    monkeypatch.setattr(scan, "BLOCK_BYTES", block_bytes)
    episodes = make_episodes(np.random.default_rng(2).integers(1, 30, size=50), dtype)
    for episode in episodes:  # offsets that ruin a naive mean of squares in float32
        episode["states"] += np.array([0, 1e4, -1e5], dtype)
    lengths = np.array([len(e["rewards"]) for e in episodes])
    chosen = np.array([48, 3, 4, 5, 17])
    store = from_flat(
        episodes,
        bounds=(3, 20),
        starts=(np.cumsum(lengths) - lengths)[chosen],
        lengths=lengths[chosen],
    )
    states_NxS = np.concatenate([episodes[i]["states"] for i in chosen])
    states_NxS = states_NxS.astype(np.float64)
    actions_NxA = np.concatenate([episodes[i]["actions"] for i in chosen])
    # Computed in double precision; the results are rounded to float32 once.
    close = {"rtol": 2e-7, "atol": 0}
    np.testing.assert_allclose(store.state_mean, states_NxS.mean(0), **close)
    np.testing.assert_allclose(store.state_std, states_NxS.std(0) + 1e-6, **close)
    np.testing.assert_array_equal(store.facts().state_min, states_NxS.min(0))
    np.testing.assert_array_equal(store.facts().state_max, states_NxS.max(0))
    np.testing.assert_array_equal(store.facts().action_min, actions_NxA.min(0))
    np.testing.assert_array_equal(store.facts().action_max, actions_NxA.max(0))


def test_a_constant_feature_has_the_std_epsilon():
    store = from_rewards([[1.0, 2.0], [3.0]])
    assert store.state_mean.tolist() == [1.0]
    assert store.state_std.tolist() == [np.float32(1e-6)]


def flip_lowest_bit(episodes, key):
    """Change one number of trajectory 2 by as little as its type can show."""
    episodes[2][key].reshape(-1).view(np.uint32)[-1] ^= 1


def test_digests_are_equal_for_repeats_and_for_nothing_else():
    first, other = make_episodes((4, 4))
    same = {key: value.copy() for key, value in first.items()}
    shorter = {key: value[:3] for key, value in first.items()}
    digests = Trajectories.from_episodes([first, other, same, shorter]).facts().digests
    assert digests[0] == digests[2]
    assert len(set(digests.tolist())) == 3


@pytest.mark.parametrize("key", ["states", "actions", "rewards"])
def test_one_changed_bit_shows_in_its_digest_and_in_the_fingerprint(key):
    episodes = make_episodes()
    before = Trajectories.from_episodes(episodes)
    flip_lowest_bit(episodes, key)
    after = Trajectories.from_episodes(episodes)
    differ = before.facts().digests != after.facts().digests
    assert np.flatnonzero(differ).tolist() == [2]
    assert before.fingerprint() != after.fingerprint()


def test_fingerprint_is_of_all_that_training_reads():
    episodes = make_episodes()
    episodes[2]["dones"][3] = True
    mean, std = np.zeros(3), np.ones(3)
    stores = [
        Trajectories.from_episodes(episodes),
        Trajectories.from_episodes(episodes[::-1]),
        Trajectories.from_episodes(episodes[:-1]),
        Trajectories.from_episodes(episodes, discount=0.99),
        Trajectories.from_episodes(episodes, split_on_dones=True),
        from_flat(episodes, (), state_mean=mean, state_std=std),
        from_flat(episodes, (), state_mean=mean, state_std=2 * std),
        from_flat(episodes, (), state_mean=mean + 1, state_std=std),
    ]
    assert len({store.fingerprint() for store in stores}) == len(stores)


@pytest.mark.parametrize("bounds", [(), (2,), (1, 2, 3, 4)])
def test_fingerprint_is_not_of_the_pieces_or_the_layout_in_memory(monkeypatch, bounds):
    episodes = make_episodes()
    expected = Trajectories.from_episodes(episodes).fingerprint()
    by_columns = [{k: np.asfortranarray(v) for k, v in e.items()} for e in episodes]
    assert Trajectories.from_episodes(by_columns).fingerprint() == expected
    monkeypatch.setattr(scan, "BLOCK_BYTES", 50)
    assert from_flat(episodes, bounds).fingerprint() == expected


def drop_actions(episodes):
    for episode in episodes:
        episode["actions"] = episode["actions"][:, :0]


FAULTS = [
    # column, place in trajectory 3 (of 2 steps), what is put there, what is said
    ("states", (), [["a"] * 3] * 2, "holds <U1, expected numbers"),
    ("states", (), None, "holds object, expected numbers"),
    ("states", (), [[1, 2, 3], [1]], "has rows of unequal widths"),
    ("states", (), np.ones((2, 3, 1)), "has shape (2, 3, 1), expected (steps, width)"),
    ("states", (), np.ones((2, 4)), "has rows of 4 numbers, but those of trajectory 0"),
    ("rewards", (), [1], "has 1 steps, but column 'states' has 2"),
    ("dones", (), [1, 0, 0], "has 3 steps, but column 'states' has 2"),
    ("states", (1, 2), np.nan, "holds nan at step 1, feature 2"),
    ("actions", (1, 0), -np.inf, "holds -inf at step 1, feature 0"),
    ("rewards", (1,), np.inf, "holds inf at step 1"),
    ("states", (1, 2), 1e39, "holds 1e+39 at step 1, feature 2; expected a finite"),
    ("states", (0, 1), -1.7e308, "holds -1.7e+308 at step 0, feature 1"),
    ("rewards", (0,), 1e39, "holds 1e+39 at step 0"),
]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("column", "place", "value", "said"), FAULTS)
def test_faults_are_named_in_one_line(column, place, value, said, split):
    episodes = make_episodes(dtype=np.float64)
    episodes[2]["dones"][:3] = True  # a split moves all later numbers by three
    if place:
        episodes[3][column][place] = value
    else:
        episodes[3][column] = value
    with pytest.raises(ValueError) as caught:  # noqa: PT011, compared below
        Trajectories.from_episodes(episodes, split_on_dones=split)
    assert str(caught.value).startswith(f"trajectory 3: column {column!r} {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (list.clear, "found no episodes, expected at least one"),
        (lambda e: e[3].pop("states"), "trajectory 3: found actions, dones, rewards; "),
        (
            lambda e: e.insert(3, {key: value[:0] for key, value in e[0].items()}),
            "trajectory 3: column 'states' has no steps",
        ),
        (drop_actions, "column 'actions' has rows of 0 numbers"),
    ],
)
def test_something_must_be_there(change, message):
    episodes = make_episodes()
    change(episodes)
    with pytest.raises(ValueError, match=message):
        Trajectories.from_episodes(episodes)


@pytest.mark.parametrize("discount", [-0.1, 1.1, np.nan])
def test_discount_must_lie_between_0_and_1(discount):
    with pytest.raises(ValueError, match=r"discount=.*: expected 0 to 1"):
        from_rewards([[1.0]], discount=discount)


def test_split_on_dones_needs_dones():
    with pytest.raises(ValueError, match=r"split_on_dones=True needs .* 'dones'"):
        from_rewards([[1.0]], split_on_dones=True)


def test_a_trajectory_is_read_like_an_item_of_a_list():
    episodes = make_episodes([3, 1, 2])
    store = Trajectories.from_episodes(episodes)
    assert len(store) == 3
    assert repr(store) == (
        "Trajectories(3 trajectories, 6 steps, state_dim 3, act_dim 2)"
    )
    for found, episode in zip(store, episodes, strict=True):
        assert found.keys() == episode.keys()
        for name, values in episode.items():
            np.testing.assert_array_equal(found[name], values)
    np.testing.assert_array_equal(store[-1]["rewards"], episodes[2]["rewards"])
    again = Trajectories.from_episodes(store)
    assert again.fingerprint() == store.fingerprint()
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"^trajectory {index} of 3$"):
            store[index]


def test_values_may_be_checked_behind_the_callers_back(monkeypatch):
    episodes = make_episodes()
    store = Trajectories.from_episodes(episodes)
    begin = threading.Event()

    def scan(*args, scan=trajectories.scan):
        begin.wait(10)
        return scan(*args)

    monkeypatch.setattr(trajectories, "scan", scan)
    given = {
        "starts": store.starts,
        "lengths": store.lengths,
        "state_mean": store.state_mean,
        "state_std": store.state_std,
        "wait": False,
    }
    pieces = store.states.pieces, store.actions.pieces
    later = Trajectories.from_arrays(*pieces, store.rewards, **given)
    rewards = np.where(np.arange(store.num_steps) == 3, np.nan, store.rewards)
    faulty = Trajectories.from_arrays(*pieces, rewards, **given)
    begin.set()  # else it would have waited until now
    for found, expected in zip(later.facts(), store.facts(), strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="column 'rewards' holds nan"):
        faulty.facts()


DISCRETE = {"states": [[0.0], [1.0]], "rewards": [0, 0]}


@pytest.mark.parametrize(
    ("actions", "sizes", "dim"),
    [
        ([0, 1], (2,), 2),
        (np.uint8([[1, 4], [0, 3]]), (2, 5), 7),
        ([True, False], (2,), 2),
        ([0.0, 1.0], (), 1),
    ],
)
def test_whole_numbers_are_discrete_actions(actions, sizes, dim):
    trajectories = Trajectories.from_episodes([DISCRETE | {"actions": actions}])
    assert trajectories.action_sizes == sizes
    assert trajectories.act_dim == dim
    assert trajectories.select([0]).action_sizes == sizes


def test_choices_are_counted_in_the_chosen_trajectories():
    episodes = [{"actions": [[0, 2], [1, 2]]}, {"actions": [[1, 0], [1, 1]]}]
    trajectories = Trajectories.from_episodes(DISCRETE | each for each in episodes)
    both, last = trajectories.choice_counts(), trajectories.select([1]).choice_counts()
    assert [count.tolist() for count in both] == [[1, 3], [1, 1, 2]]
    assert [count.tolist() for count in last] == [[0, 2], [1, 1, 0]]
    assert trajectories.most_frequent_action().tolist() == [1, 2]


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([[-1, 1]], "'actions' holds whole numbers from -1 to 1; expected choices"),
        ([[0, 70000]], "'actions' holds whole numbers from 0 to 70000; expected"),
        (
            [[0, 1], [0.0, 1.0]],
            "trajectory 1: column 'actions' holds float64, but that",
        ),
        ([[0.0, 1.0], [0, 1]], "trajectory 1: column 'actions' holds int64, but that"),
    ],
)
def test_actions_that_are_neither_are_refused(actions, message):
    with pytest.raises(ValueError, match=message):
        Trajectories.from_episodes(DISCRETE | {"actions": each} for each in actions)

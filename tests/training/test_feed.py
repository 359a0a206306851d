# SPDX-License-Identifier: Apache-2.0
"""Both placements give the devices the batches of the sampler, and never hang."""

import itertools
import threading
from contextlib import closing
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.layout import Format, Layout

from dt_jax.data.segments import Batch, SegmentSampler, normalize
from dt_jax.data.trajectories import Trajectories
from dt_jax.model.decision_transformer import Prediction
from dt_jax.training import feed as feed_module
from dt_jax.training import store as store_module
from dt_jax.training.feed import Feed
from dt_jax.training.placement import (
    CALLS_AHEAD,
    best_updates_per_call,
    bytes_of_call,
    choose_placement,
    memory_plan,
    naming_memory,
)
from dt_jax.training.population import Population
from dt_jax.training.store import STORE_DTYPES, Segments, store_shapes
from dt_jax.training.train_call import make_train_call, place
from dt_jax.training.train_step import init_state

pytestmark = pytest.mark.usefixtures("compile_fast")
LENGTHS = np.array([1, 7, 2, 5, 3, 9, 4, 1])
U, G = 3, 4


def make_sampler(batch_size=8, context_length=4, state_dim=3, discrete=False, seed=5):
    """Ragged trajectories of float64 (and int64), in three pieces."""
    generator = np.random.default_rng(0)
    pieces = np.split(LENGTHS, [2, 5])
    sizes = [piece.sum() for piece in pieces]
    states = [generator.normal(size=(size, state_dim)) for size in sizes]
    actions = [generator.uniform(-1, 1, size=(size, 2)) for size in sizes]
    if discrete:
        actions = [np.round(5 + 4 * piece).astype(int) for piece in actions]
    trajectories = Trajectories.from_arrays(
        states,
        actions,
        generator.normal(size=LENGTHS.sum()),
        starts=np.cumsum(LENGTHS) - LENGTHS,
        lengths=LENGTHS,
    )
    return SegmentSampler(
        trajectories,
        batch_size=batch_size,
        context_length=context_length,
        max_ep_len=6,
        return_scale=7.0,
        weighting="length",
        seed=seed,
    )


def feed_threads():
    return [thread for thread in threading.enumerate() if thread.name == "feed"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert feed_threads() == []


@pytest.fixture(scope="module", params=["host", "device"])
def feed(request):
    return Feed(make_sampler(), request.param, "float32")


def test_a_call_gets_the_batches_of_the_sampler(feed):
    fetch = jax.jit(feed.fetch)
    calls = [(0, U), (U, U), (2 * U, 1)]
    with closing(feed.items(calls)) as items:
        for (step, num_updates), item in zip(calls, items, strict=True):
            found = fetch(feed.store, item)
            batches = [make_sampler().batch(step + u) for u in range(num_updates)]
            for field, x in found._asdict().items():
                # [U, B] -> [G, U, B/G]: the first rows of a batch go to device 0.
                whole = np.stack([getattr(batch, field) for batch in batches])
                expected = np.stack(np.split(whole, G, axis=1))
                np.testing.assert_array_equal(x, expected, field)
                assert x.dtype == expected.dtype
    masks = Batch(*found).attention_mask
    assert (masks[..., 0] == 0).any()
    assert (masks[..., -1] == 1).all()


@pytest.mark.parametrize("placement", ["host", "device"])
def test_discrete_actions_are_whole_numbers_on_a_device_too(placement):
    sampler = make_sampler(discrete=True)
    feed = Feed(sampler, placement, "bfloat16")
    with closing(feed.items([(0, 1)])) as items:
        fetch = jax.vmap(jax.vmap(feed.fetch, (None, 0)), (None, 0))
        found = fetch(feed.store, next(items)).actions
    assert found.dtype == jnp.int32
    expected = sampler.batch(0).actions
    assert {-10, 1, 9} <= set(expected.ravel().tolist())
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_each_device_holds_its_own_share(feed):
    with closing(feed.items([(0, U)])) as items:
        item = next(items)
    for leaf in jax.tree.leaves(item):
        shards = [(s.device, s.index[0].start) for s in leaf.addressable_shards]
        assert shards == list(zip(jax.local_devices(), range(G), strict=True))


@pytest.mark.parametrize("state_dim", [3, 128, 130])
@pytest.mark.parametrize("rows_at_once", [1, 4, 1000])
def test_a_store_sent_in_blocks_is_the_rows_of_the_sampler(
    monkeypatch, state_dim, rows_at_once
):
    monkeypatch.setattr(store_module, "BLOCK_BYTES", 4 * state_dim * rows_at_once)
    sampler = make_sampler(state_dim=state_dim)
    store = Feed(sampler, "device", "float32").store
    expected = np.concatenate(sampler.trajectories.states.pieces).astype(np.float32)
    np.testing.assert_array_equal(store.states, expected)


def test_a_store_lies_as_its_shapes_say(monkeypatch):
    """Row by row, which is what a CPU does anyway: so here the other way round."""

    def by_columns(*dims):
        order = Layout(major_to_minor=(1, 0))
        return store_shapes(*dims)._replace(
            states=jax.ShapeDtypeStruct(
                (32, 3), dims[3], sharding=Format(order, dims[5])
            )
        )

    expected = Feed(make_sampler(), "device", "float32").store
    assert expected.states.format.layout.major_to_minor == (0, 1)
    monkeypatch.setattr(store_module, "store_shapes", by_columns)
    found = Feed(make_sampler(), "device", "float32").store
    assert found.states.format.layout.major_to_minor == (1, 0)
    np.testing.assert_array_equal(found.states, expected.states)


@pytest.mark.parametrize("num_members", [3, 5])
def test_two_processes_feed_what_one_with_all_devices_does(monkeypatch, num_members):
    """Of 3 members each device has a share of the batches, of 5 it has two places."""
    samplers = [make_sampler(seed=seed) for seed in (5, 6, 5, 7, 8)[:num_members]]
    numbers = {
        "member": np.arange(num_members),
        "rate": np.random.default_rng(0).normal(size=(num_members, 2 * U)),
    }

    def items():
        population = Population(samplers, numbers, build=None)
        parts = population.items(SegmentSampler.gather, U, U)
        return parts, population.of_places(numbers["rate"])

    whole, found = items(), []
    monkeypatch.setattr(jax, "local_device_count", lambda: G // 2)
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(items())
    (batch, given), _ = found[1]
    share, here = (2, [0, 1, 2]) if num_members == 3 else (8, [4, 4])
    assert batch.states.shape[:4] == (G // 2, U, 2, share)  # for two draws
    assert (given["member"] == np.array(here)).all()
    both = jax.tree.map(lambda *halves: np.concatenate(halves), *found)
    jax.tree.map(np.testing.assert_array_equal, both, whole)


def linear_model(variables, states, actions, returns_to_go, timesteps, **_):
    """In the place of a model, quick to compile: linear in all that is fed."""
    times = timesteps[..., None].astype(states.dtype)
    inputs = jnp.concatenate((states, actions, returns_to_go, times), axis=-1)
    return Prediction(inputs @ variables["params"], None, None)


def linear_call(feed):
    """A train call of that model, and its first state."""
    optimizer = optax.sgd(0.001)
    call = make_train_call(
        SimpleNamespace(apply=linear_model, action_sizes=(), predict_return=False),
        optimizer,
        state_mean=np.ones(3, np.float32),
        state_std=np.ones(3, np.float32),
        seed=0,
        fetch=feed.fetch,
    )
    return call, place(init_state(jnp.zeros((7, 2)), optimizer))


def test_losses_do_not_depend_on_the_placement():
    losses = {}
    for placement in ("host", "device"):
        feed = Feed(make_sampler(), placement, "float32")
        call, state = linear_call(feed)
        losses[placement] = []
        with closing(feed.items([(0, U), (U, U)])) as items:
            for item in items:
                state, metrics = call(state, feed.store, item)
                losses[placement].extend(np.asarray(metrics.loss))
    # The same arithmetic on the same bits; only XLA's order of sums is free.
    np.testing.assert_allclose(losses["device"], losses["host"], rtol=1e-6)
    assert len(set(losses["host"])) == 2 * U


def test_a_fault_of_the_thread_is_raised_where_the_items_are_read(monkeypatch):
    sampler = make_sampler()

    def draw(step, whole=sampler.draw):
        if step == 2:
            raise OSError("the disk is gone")
        return whole(step)

    monkeypatch.setattr(sampler, "draw", draw)
    items = Feed(sampler, "host", "float32").items((step, 1) for step in range(4))
    next(items), next(items)
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)
    assert feed_threads() == []


@pytest.mark.parametrize("read", [1, 5])
def test_closing_ends_the_thread(feed, read):
    items = feed.items((step, 1) for step in itertools.count())
    for _ in range(read):
        next(items)
    assert len(feed_threads()) == 1
    items.close()
    assert feed_threads() == []


@pytest.mark.parametrize(("batch_size", "nearest"), [(3, "4"), (6, "4 and 8")])
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(batch_size, nearest):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared as a whole below)
        Feed(make_sampler(batch_size), "host", "float32")
    assert str(caught.value) == (
        f"batch_size={batch_size} does not divide by the 4 devices; the nearest "
        f"that do are {nearest}"
    )


def test_memory_plan_on_paper():
    sampler = make_sampler(batch_size=8, context_length=5)
    plan = memory_plan(
        sampler, updates_per_call=6, state_bytes=1000, store_dtype="float32"
    )
    steps = 4 * 6 * 5 * (8 // 4)  # calls ahead, U, K, B/G
    row = 4 * (3 + 2 + 1 + 1)  # state, action, reward and return-to-go in float32
    on_host, on_device = steps * (row + 4 + 4), steps * (4 + 4 + 4)
    assert plan == {
        "host": {"host_bytes": 4 * on_host, "device_bytes": 1000 + on_host},
        "device": {
            "host_bytes": 4 * on_device,
            # The mean and the std of the 3 features lie there too.
            "device_bytes": 1000 + on_device + 32 * row + 2 * 4 * 3,
        },
    }
    halved = memory_plan(
        sampler, updates_per_call=6, state_bytes=1000, store_dtype="bfloat16"
    )
    difference = plan["device"]["device_bytes"] - halved["device"]["device_bytes"]
    assert difference == 32 * 3 * 2


@pytest.mark.parametrize("store_dtype", STORE_DTYPES)
def test_memory_plan_counts_the_bytes_of_items_and_store(store_dtype):
    sampler = make_sampler()
    plan = memory_plan(sampler, U, state_bytes=0, store_dtype=store_dtype)
    for placement, planned in plan.items():
        feed = Feed(sampler, placement, store_dtype)
        with closing(feed.items([(0, U)])) as items:
            trees = {"item": next(items), "store": feed.store}
        found = {
            name: sum(
                x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree)
            )
            for name, tree in trees.items()
        }
        sent = CALLS_AHEAD * found["item"] + found["store"]
        assert planned["device_bytes"] == sent


@pytest.mark.parametrize(
    ("backend", "placement", "best"),
    [("cpu", "device", 10), ("gpu", "device", 40), ("tpu", "host", 10)],
)
def test_calls_are_longer_where_the_store_lies_on_an_accelerator(
    monkeypatch, backend, placement, best
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert best_updates_per_call(placement) == best
    sampler = make_sampler()
    asked, found = (memory_plan(sampler, u, 0, "float32") for u in (best, 0))
    assert found[placement] == asked[placement]


def test_on_a_tpu_the_plan_counts_rows_of_128_columns(monkeypatch):
    def planned(platform, state_dim):
        fake_device(monkeypatch, platform, None)
        sampler = make_sampler(state_dim=state_dim)
        plan = memory_plan(sampler, updates_per_call=1, state_bytes=0, **dtype)
        return plan["device"]["device_bytes"]

    dtype = {"store_dtype": "bfloat16"}
    # Of the 32 rows: bfloat16 states 3 -> 128 columns, float32 actions 2 -> 128. Mean
    # and std 3 -> 128 each, rewards and returns-to-go are 32 -> 128 numbers.
    more = 32 * (2 * 125 + 4 * 126) + 2 * 4 * 125 + 2 * 4 * 96
    assert planned("tpu", 3) - planned("gpu", 3) == more
    assert planned("tpu", 128) - planned("gpu", 128) == 32 * 4 * 126 + 2 * 4 * 96
    assert planned("tpu", 129) - planned("tpu", 128) == 32 * 2 * 128 + 2 * 4 * 128


@pytest.mark.parametrize("placement", ["host", "device"])
def test_the_compiled_call_takes_the_bytes_of_the_plan(placement):
    sampler = make_sampler()
    feed = Feed(sampler, placement, "float32")
    call, state = linear_call(feed)
    item = feed._item(0, U)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    plan = memory_plan(sampler, U, state_bytes, store_dtype="float32")[placement]
    ahead = sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(item))
    compiled = call.lower(state, feed.store, item).compile()
    memory = compiled.memory_analysis()
    planned = plan["device_bytes"] - (CALLS_AHEAD - 1) * ahead
    if placement == "device":
        # XLA drops what nothing reads: rewards and, in float32, the mean and the std.
        planned -= 4 * 32 + 2 * 4 * 3
    else:
        planned -= 4 * U * (8 // G) * 4  # the rewards again
    assert memory.argument_size_in_bytes == planned
    assert memory.alias_size_in_bytes == state_bytes  # donated
    losses = 2 * 4 * U
    temporaries = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    assert bytes_of_call(compiled) >= planned + losses + temporaries


@pytest.mark.parametrize("placement", ["host", "device"])
def test_a_call_is_refused_where_a_device_lacks_one_byte(monkeypatch, placement):
    feed = Feed(make_sampler(), placement, "float32")
    call, state = linear_call(feed)
    item = feed._item(0, U)
    ahead = sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(item))
    needed = bytes_of_call(call.lower(state, feed.store, item).compile())
    needed += (CALLS_AHEAD - 1) * ahead
    monkeypatch.setattr(feed_module, "memory_limit", lambda: needed)
    feed.compile(call, state, U)
    monkeypatch.setattr(feed_module, "memory_limit", lambda: needed - 1)
    with pytest.raises(ValueError, match=r"needs more memory than a device has: "):
        feed.compile(call, state, U)
    monkeypatch.setattr(feed_module, "memory_limit", lambda: 0)  # as a CPU
    feed.compile(call, state, U)


def test_a_compiled_call_is_not_traced_again():
    feed, traced = Feed(make_sampler(), "device", "float32"), []

    def fetch(store, item, whole=feed.fetch):
        traced.append(item)
        return whole(store, item)

    feed.fetch = fetch
    call, state = linear_call(feed)
    feed.compile(call, state, U)
    times = len(traced)
    assert times > 0
    with closing(feed.items([(0, U)])) as items:
        jax.block_until_ready(call(state, feed.store, next(items)))
    assert len(traced) == times


@pytest.mark.parametrize(
    ("placement", "ways_out"),
    [
        ("device", "placement=host or store_dtype=bfloat16 needs less"),
        ("host", "updates_per_call=1 or a smaller batch needs less"),
    ],
)
def test_exhausted_memory_is_one_line(placement, ways_out):
    with pytest.raises(ValueError) as caught, naming_memory(placement):  # noqa: PT011
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9G.\nSee")
    assert str(caught.value) == (
        f"placement={placement} needs more memory than a device has: "
        f"RESOURCE_EXHAUSTED: Out of memory: 9G.; {ways_out}"
    )
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match=r"^INTERNAL"),
        naming_memory(placement),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: another fault")


def test_a_store_in_bfloat16_keeps_the_digits_of_normalised_states():
    generator = np.random.default_rng(1)
    states_NxS = 1e6 + generator.normal(size=(40, 3)) * [1.0, 10.0, 0.0]
    trajectories = Trajectories.from_episodes(
        [
            {
                "states": states_NxS,
                "actions": states_NxS[:, :2] / 2e6,
                "rewards": [0] * 40,
            }
        ]
    )
    sampler = make_sampler()
    sampler.trajectories = trajectories
    sampler.returns_to_go = np.zeros(40, np.float32)
    feed = Feed(sampler, "device", "bfloat16")
    rows_BxK = np.arange(40, dtype=np.int32).reshape(8, 5)
    ones_BxK = np.ones((8, 5), np.float32)
    batch = feed.fetch(feed.store, Segments(rows_BxK, rows_BxK, ones_BxK))
    mean_S, std_S = trajectories.state_mean, trajectories.state_std
    z_BxKxS = normalize(batch.states, mean_S, std_S)
    expected_BxKxS = normalize(states_NxS.astype("f4").reshape(8, 5, 3), mean_S, std_S)
    # bfloat16 has 8 bits, and float32 an ulp of 1/16 at a million.
    np.testing.assert_allclose(z_BxKxS, expected_BxKxS, rtol=2**-8, atol=0.07)


def test_an_unknown_store_dtype_is_named():
    with pytest.raises(ValueError, match=r"^store_dtype='int8': expected float32"):
        memory_plan(make_sampler(), 1, 0, "int8")


def fake_device(monkeypatch, platform, stats):
    device = SimpleNamespace(platform=platform, memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])


@pytest.mark.parametrize(
    ("platform", "stats", "expected"),
    [
        ("gpu", {"bytes_limit": 1000}, "device"),  # 800 are 80 % of it
        ("gpu", {"bytes_limit": 999}, "host"),
        ("tpu", {"bytes_limit": 10**9}, "device"),
        ("cpu", {"bytes_limit": 10**9}, "host"),
        ("gpu", None, "host"),
    ],
)
def test_auto_takes_the_device_where_the_store_fits(
    monkeypatch, platform, stats, expected
):
    fake_device(monkeypatch, platform, stats)
    plan = {"host": {"device_bytes": 10**12}, "device": {"device_bytes": 800}}
    found = choose_placement("auto", plan)
    assert found.name == expected
    if stats and platform != "cpu":
        assert ("do not fit" in found.reason) == (expected == "host")
        assert found.tight == (stats["bytes_limit"] < 2 * 800)


@pytest.mark.parametrize("placement", ["host", "device"])
def test_a_placement_asked_for_is_taken(placement):
    plan = {"device": {"device_bytes": 10**15}}
    expected = placement, f"placement={placement}", plan, False
    assert choose_placement(placement, plan) == expected


def test_a_store_that_exceeds_the_memory_is_refused(monkeypatch):
    fake_device(monkeypatch, "tpu", {"bytes_limit": 15.75e9})
    plan = {"device": {"device_bytes": 17.2e9}}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared as a whole below)
        choose_placement("device", plan)
    assert str(caught.value) == (
        "placement=device needs more memory than a device has: 17.2 of 15.8 GB; "
        "placement=host or store_dtype=bfloat16 needs less"
    )
    assert choose_placement("auto", plan)[0] == "host"
    assert choose_placement("host", plan)[0] == "host"


def test_an_unknown_placement_is_named():
    with pytest.raises(ValueError, match=r"^placement='moon': expected one of "):
        choose_placement("moon", {})

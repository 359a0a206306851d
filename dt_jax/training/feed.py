# SPDX-License-Identifier: Apache-2.0
"""Batches onto the devices: the one place where NumPy and JAX meet.

Placement 'host': a thread gathers the NumPy batches of the next calls and sends them
ahead. Placement 'device': the flat store lies on every device, and only row numbers are
sent. Either way the train call makes the same `Batch` of them with `Feed.fetch`.
"""

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Sharding

from dt_jax.data.segments import ACTION_PADDING, Batch, SegmentSampler, normalize
from dt_jax.system.text import check_choice
from dt_jax.training.population import Population
from dt_jax.training.train_call import over_devices

PLACEMENTS = ("auto", "host", "device")
STORE_DTYPES = ("float32", "bfloat16")
CALLS_AHEAD = 4  # one being computed, one waiting for it, one ready, one being made
DEVICE_SHARE = 0.8  # of a device's memory that 'auto' gives to store and state
BLOCK_BYTES = 1 << 28  # of the store that are sent at once
TPU_COLUMNS = 128  # a TPU keeps rows in multiples of so many


class Placement(NamedTuple):
    """Where the store lies, 'host' or 'device', why, and what each of them takes;
    `tight`: the store on the device takes more than half of its memory."""

    name: str
    reason: str
    plan: dict
    tight: bool = False


class Store(NamedTuple):
    """The flat store on a device: NxS, NxA, N and N float32, returns-to-go scaled;
    discrete actions NxM int32. Returns-to-go of several kinds stand one after another.

    It lies there row by row, as `gather_resident` reads it. States in bfloat16 are
    normalised by `state_mean` and `state_std` (S): of raw money its eight bits would
    keep nothing that matters.
    """

    states: jax.Array
    state_mean: jax.Array
    state_std: jax.Array
    actions: jax.Array
    rewards: jax.Array
    returns_to_go: jax.Array


class Segments(NamedTuple):
    """Where the rows of a batch lie in a `Store`: BxK int32 each, and the mask."""

    rows: jax.Array
    timesteps: jax.Array
    attention_mask: jax.Array


class Feed:
    """Gives `make_train_call` its store and its items.

    Attributes:
      placement: 'host' or 'device'.
      store: the first argument of `fetch`, the same in every call.
      fetch: (store, item) -> Batch, traced into the train call. Of a population's
        item the third argument is which of its returns-to-go a member has.
      gather: (sampler, episodes_B, starts_B) -> what `fetch` makes a Batch of; for any
        sampler over the same rows.
    """

    def __init__(
        self,
        sampler: SegmentSampler,
        placement: str,
        store_dtype: str,
        population: Population | None = None,
    ):
        """`placement` is 'host' or 'device', see `choose_placement`; a store on the
        device keeps its states in `store_dtype`. Of a population the items are those of
        all its members, which share the store.

        Raises:
          ValueError: the batch does not divide by the devices, or the store does not
            fit into a device's memory.
        """
        self.placement, self._sampler = placement, sampler
        self._population, self._num_local = population, jax.local_device_count()
        if population is None or population.divides_batches:
            self._per_device = _per_device(sampler.batch_size)
            self._first = jax.process_index() * self._num_local * self._per_device
        self._split, everywhere = over_devices()
        if placement == "device":
            returns_to_go = (population or sampler).returns_to_go
            with naming_memory(placement):
                self.store = _resident(
                    sampler.trajectories, returns_to_go, everywhere, store_dtype
                )
            self.fetch = gather_resident
            self.gather = segments
        else:
            self.store = ()
            self.fetch = pick_returns
            self.gather = SegmentSampler.gather

    def items(self, calls: Iterable[tuple[int, int]]) -> Iterator:
        """For each (first step, U) the devices' items [G, U, B/G, ...], ahead of time.

        The iterator owns a thread; closing it (or leaving a `contextlib.closing`) ends
        the thread. A fault in the thread is raised here.
        """
        ready = queue.Queue(maxsize=CALLS_AHEAD - 3)
        closed = threading.Event()

        def put(entry):
            while not closed.is_set():
                try:
                    return ready.put(entry, timeout=0.1)
                except queue.Full:
                    continue

        def fill():
            try:
                for step, num_updates in calls:
                    if closed.is_set():
                        return
                    put((self._item(step, num_updates), None))
                put((None, StopIteration()))
            except Exception as error:
                put((None, error))

        thread = threading.Thread(target=fill, name="feed", daemon=True)
        thread.start()
        try:
            while True:
                item, end = ready.get()
                if isinstance(end, StopIteration):
                    return
                if end is not None:
                    raise end
                yield item
        finally:
            closed.set()
            thread.join()

    def compile(self, call: Callable, state, num_updates: int) -> None:
        """Compile a call of so many updates and see that a device has room for it.

        Nothing runs, and the call itself then finds itself compiled.

        Raises:
          ValueError: the call and the items sent ahead need more than there is.
        """
        item = self._item(0, num_updates)
        with naming_memory(self.placement):
            compiled = call.lower(state, self.store, item).compile()
            jax.block_until_ready(self.store)
        if not (limit := _memory_limit()):
            return
        needed = bytes_of_call(compiled) + (CALLS_AHEAD - 1) * sum(
            leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(item)
        )
        if needed > limit:
            raise ValueError(
                _too_large(
                    self.placement, f"{needed / 1e9:.1f} of {limit / 1e9:.1f} GB"
                )
                + self._how_many_fit(needed, limit)
            )

    def _how_many_fit(self, needed, limit):
        if self._population is None:
            return ""
        shared = sum(leaf.nbytes for leaf in jax.tree.leaves(self.store))
        share = max(0, limit - shared) / (needed - shared)
        count = int(share * self._population.places) * jax.device_count()
        return f", and so does sweep_at_once={count}: about so many members fit"

    def _item(self, step, num_updates):
        if self._population is not None:
            items = self._population.items(self.gather, step, num_updates)
            return jax.device_put(items, self._split)
        mine = slice(self._first, self._first + self._num_local * self._per_device)
        draws = [self._sampler.draw(step + update) for update in range(num_updates)]
        # [U, B] -> [G, U, B/G]: gathered in the order in which pmap and scan read.
        shape = (num_updates, self._num_local, self._per_device)
        episodes, starts = (
            np.stack([draw[part][mine] for draw in draws]).reshape(shape).swapaxes(0, 1)
            for part in (0, 1)
        )
        flat = self.gather(self._sampler, episodes.reshape(-1), starts.reshape(-1))
        return jax.tree.map(
            lambda array: jax.device_put(
                array.reshape(*episodes.shape, *array.shape[1:]), self._split
            ),
            flat,
        )


def segments(
    sampler: SegmentSampler, episodes_B: np.ndarray, starts_B: np.ndarray
) -> Segments:
    """What `gather_resident` needs of a batch, in the place of its steps."""
    layout = sampler.layout(episodes_B, starts_B)
    return Segments(*(part.astype(np.int32) for part in layout))


def pick_returns(store: tuple, batch: Batch, kind: jax.Array | None = None) -> Batch:
    """A batch from the host as it came, with one of the kinds of its returns-to-go."""
    if kind is None:
        return batch
    return batch._replace(returns_to_go=batch.returns_to_go[..., kind, None])


def gather_resident(
    store: Store, segments: Segments, kind: jax.Array | None = None
) -> Batch:
    """What `SegmentSampler.gather` does, on the device; `kind`: of returns-to-go."""
    valid_BxK = segments.attention_mask > 0
    valid_BxKx1 = valid_BxK[..., None]
    rows_BxK = segments.rows
    returns_BxK = rows_BxK if kind is None else rows_BxK + kind * len(store.rewards)
    states_BxKxS = store.states[rows_BxK]
    if states_BxKxS.dtype != jnp.float32:
        mean, std = store.state_mean[None, None], store.state_std[None, None]
        states_BxKxS = states_BxKxS * std + mean
    return Batch(
        states=jnp.where(valid_BxKx1, states_BxKxS, 0.0),
        actions=jnp.where(valid_BxKx1, store.actions[rows_BxK], ACTION_PADDING),
        rewards=jnp.where(valid_BxK, store.rewards[rows_BxK], 0.0)[..., None],
        returns_to_go=jnp.where(valid_BxK, store.returns_to_go[returns_BxK], 0.0)[
            ..., None
        ],
        timesteps=segments.timesteps,
        attention_mask=valid_BxK.astype(jnp.float32),
    )


def best_updates_per_call(placement: str) -> int:
    """Of a GPU or TPU with the store in its memory 40, else 10.

    An H200 makes 890 updates a second in calls of 10 and 980 in calls of 40; of batches
    from the host, calls of 40 would hold four times as many in memory.
    """
    return 40 if placement == "device" and jax.default_backend() != "cpu" else 10


def memory_plan(
    sampler: SegmentSampler,
    updates_per_call: int,
    state_bytes: int,
    store_dtype: str,
    population: Population | None = None,
) -> dict:
    """Bytes on one device (and on the host) for each placement.

    `updates_per_call` is 0 for `best_updates_per_call`.

    Counts what stays: the train state (`state_bytes`, of one member where there are
    many), the calls sent ahead, and the store. The temporaries of an update come on
    top: `Feed.compile`.

    Raises:
      ValueError: the batch does not divide by the devices, or no such `store_dtype`.
    """
    check_choice("store_dtype", store_dtype, STORE_DTYPES)
    trajectories = sampler.trajectories
    if population is None:
        segments = _per_device(sampler.batch_size)
    else:
        segments = population.segments
        state_bytes = state_bytes * population.places
    step_bytes = 4 * (trajectories.states.shape[1] + trajectories.actions.shape[1] + 2)
    store = _shapes_of(trajectories, store_dtype)

    def ahead(placement, step_bytes):
        updates = CALLS_AHEAD * (updates_per_call or best_updates_per_call(placement))
        return updates * sampler.context_length * segments * step_bytes

    batches, rows = ahead("host", step_bytes + 8), ahead("device", 12)
    return {
        "host": {
            "host_bytes": batches * jax.local_device_count(),
            "device_bytes": state_bytes + batches,
        },
        "device": {
            "host_bytes": rows * jax.local_device_count(),
            "device_bytes": state_bytes + rows + sum(map(_device_bytes, store)),
        },
    }


def choose_placement(placement: str, plan: dict) -> Placement:
    """What `placement` asks for.

    'auto' takes 'device' where the store fits into a device's own memory; a CPU has
    none, its 'device' would be a second copy beside the page cache.

    Raises:
      ValueError: no such `placement`, or the store on the device exceeds its memory.
    """
    check_choice("placement", placement, PLACEMENTS)
    limit, needed = _memory_limit(), plan["device"]["device_bytes"]
    if placement == "device" and limit and needed > limit:
        raise ValueError(
            _too_large(placement, f"{needed / 1e9:.1f} of {limit / 1e9:.1f} GB")
        )
    tight = bool(limit) and 2 * needed > limit
    if placement != "auto":
        return Placement(placement, f"placement={placement}", plan, tight)
    if not limit:
        return Placement("host", "a CPU reads the store where it lies", plan)
    fits = needed <= DEVICE_SHARE * limit
    return Placement(
        "device" if fits else "host",
        f"{needed / 1e9:.1f} GB {'fit' if fits else 'do not fit'} into "
        f"{DEVICE_SHARE:.0%} of the device's {limit / 1e9:.1f} GB",
        plan,
        tight,
    )


def store_shapes(
    num_rows: int,
    state_dim: int,
    action_width: int,
    store_dtype: str,
    action_dtype: np.dtype,
    sharding: Sharding | None = None,
) -> Store:
    """The arrays of a `Store`: shapes, dtypes, and with a sharding where and how.

    Left to itself a TPU keeps a matrix of 3,941 columns column by column, which pads
    less; each call would copy the whole store into rows before it gathers any.
    """

    def array(*shape, dtype=jnp.float32):
        by_rows = sharding and Format(Layout(tuple(range(len(shape)))), sharding)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=by_rows)

    return Store(
        states=array(num_rows, state_dim, dtype=store_dtype),
        state_mean=array(state_dim),
        state_std=array(state_dim),
        actions=array(num_rows, action_width, dtype=action_dtype),
        rewards=array(num_rows),
        returns_to_go=array(num_rows),
    )


def _shapes_of(trajectories, store_dtype, sharding=None) -> Store:
    states, actions = trajectories.states, trajectories.actions
    widths = *states.shape, actions.shape[1]
    return store_shapes(*widths, store_dtype, actions.dtype, sharding)


def bytes_of_call(compiled) -> int:
    """That a compiled call needs on one device while it runs."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


@contextmanager
def naming_memory(placement: str) -> Iterator[None]:
    """Within it, memory that a device does not have is a ValueError of one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        cause = str(error).splitlines()[0][:200]
        raise ValueError(_too_large(placement, cause)) from error


def _too_large(placement, cause):
    ways_out = {
        "device": "placement=host or store_dtype=bfloat16 needs less",
        "host": "updates_per_call=1 or a smaller batch needs less",
    }
    return (
        f"placement={placement} needs more memory than a device has: {cause}; "
        f"{ways_out[placement]}"
    )


def _memory_limit() -> int:
    """Bytes of a device's own memory; 0 where it has none or does not tell."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    return stats["bytes_limit"] if stats and device.platform != "cpu" else 0


def _device_bytes(array) -> int:
    *rows, columns = array.shape
    if jax.local_devices()[0].platform == "tpu":
        columns += -columns % TPU_COLUMNS
    return math.prod(rows) * columns * array.dtype.itemsize


def _per_device(batch_size) -> int:
    num_devices = jax.device_count()
    if batch_size % num_devices:
        below = batch_size // num_devices * num_devices
        nearest = [size for size in (below, below + num_devices) if size]
        raise ValueError(
            f"batch_size={batch_size} does not divide by the {num_devices} "
            f"devices; the nearest that do are {' and '.join(map(str, nearest))}"
        )
    return batch_size // num_devices


def _resident(trajectories, returns_to_go, everywhere, store_dtype) -> Store:
    """Send the store block by block: host and device never hold a second copy of it."""
    state_mean, state_std = trajectories.state_mean, trajectories.state_std
    shapes = _shapes_of(trajectories, store_dtype, everywhere)

    def send(rows, shape):
        @partial(jax.jit, donate_argnums=0, out_shardings=shape.format)
        def fill(whole_NxW, block_MxW, offset):
            if whole_NxW.dtype == jnp.bfloat16:
                block_MxW = normalize(block_MxW, state_mean, state_std)
            block_MxW = block_MxW.astype(whole_NxW.dtype)
            return jax.lax.dynamic_update_slice(whole_NxW, block_MxW, (offset, 0))

        zeros = partial(jnp.zeros, shape.shape, shape.dtype)
        whole_NxW = jax.jit(zeros, out_shardings=shape.format)()
        at_once = max(1, BLOCK_BYTES // (4 * shape.shape[1]))
        for offset, piece in zip(rows.offsets, rows.pieces, strict=False):
            for start in range(0, len(piece), at_once):
                # The last block overlaps the one before: all have the same shape.
                start = max(0, min(start, len(piece) - at_once))
                block_MxW = piece[start : start + at_once]
                block_MxW = block_MxW.astype(rows.dtype, copy=False)
                block_MxW = jax.device_put(block_MxW, everywhere)
                whole_NxW = fill(whole_NxW, block_MxW, int(offset) + start)
                jax.block_until_ready(whole_NxW)  # else all blocks would lie there
        return whole_NxW

    return Store(
        states=send(trajectories.states, shapes.states),
        state_mean=jax.device_put(state_mean, everywhere),
        state_std=jax.device_put(state_std, everywhere),
        actions=send(trajectories.actions, shapes.actions),
        rewards=jax.device_put(trajectories.rewards, everywhere),
        returns_to_go=jax.device_put(returns_to_go, everywhere),
    )

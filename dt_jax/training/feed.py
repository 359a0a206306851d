# SPDX-License-Identifier: Apache-2.0
"""Batches onto the devices: the one place where NumPy and JAX meet.

Placement 'host': a thread gathers the NumPy batches of the next calls and sends them
ahead. Placement 'device': the flat store lies on every device, and only row numbers are
sent. Either way the train call makes the same `Batch` of them with `Feed.fetch`.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from dt_jax.data.segments import Batch, SegmentSampler
from dt_jax.training.placement import (
    CALLS_AHEAD,
    bytes_of_call,
    memory_limit,
    naming_memory,
    per_device,
    too_large,
)
from dt_jax.training.population import Population
from dt_jax.training.store import gather_resident, make_store, segments
from dt_jax.training.train_call import over_devices


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
            self._per_device = per_device(sampler.batch_size)
            self._first = jax.process_index() * self._num_local * self._per_device
        self._split, everywhere = over_devices()
        if placement == "device":
            returns_to_go = (population or sampler).returns_to_go
            with naming_memory(placement):
                self.store = make_store(
                    sampler.trajectories, returns_to_go, store_dtype, everywhere
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
        if not (limit := memory_limit()):
            return
        needed = bytes_of_call(compiled) + (CALLS_AHEAD - 1) * sum(
            leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(item)
        )
        if needed > limit:
            raise ValueError(
                too_large(self.placement, f"{needed / 1e9:.1f} of {limit / 1e9:.1f} GB")
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


def pick_returns(store: tuple, batch: Batch, kind: jax.Array | None = None) -> Batch:
    """A batch from the host as it came, with one of the kinds of its returns-to-go."""
    if kind is None:
        return batch
    return batch._replace(returns_to_go=batch.returns_to_go[..., kind, None])

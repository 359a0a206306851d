# SPDX-License-Identifier: Apache-2.0
"""Many runs, the members of a population, trained as one: `train_step` under `vmap`.

In come the members' samplers and the numbers in which they differ, out come the items
and the update of all members in one call. The members are divided among the devices;
where there are fewer of them than devices, each device has all, and a share of each
member's batch.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from dt_jax.data.segments import Batch, SegmentSampler
from dt_jax.training.train_step import Metrics, TrainState, train_step

DEVICES = "devices"  # the axis over all of them


class Population:
    """P members, and where they are.

    The C devices of all processes have Q places each; where P does not divide by C, the
    last places repeat the last member, whose copies are computed in vain.

    Attributes:
      size: P. num_draws: D, how many batches a device reads for each update; members
        of one seed share theirs.
      divides_batches: each device has all members and a share of each batch.
      returns_to_go: R*N float32, all N of each kind of scaled returns-to-go.
    """

    def __init__(
        self,
        samplers: Sequence[SegmentSampler],
        numbers: dict[str, np.ndarray],
        build: Callable[[dict], dict],
    ):
        """
        Args:
          samplers: P, over the same rows.
          numbers: in what members differ, by name: P, or PxT where it is another one in
            each of T updates.
          build: the numbers of one member and update, traced -> the `model`, the
            `optimizer` and the `key` of its `train_step`.
        """
        self.size, self._samplers, self._build = len(samplers), samplers, build
        num_devices, num_local = jax.device_count(), jax.local_device_count()
        self.divides_batches = self.size < num_devices
        self._batch_size = samplers[0].batch_size  # on a device
        if self.divides_batches:
            self._batch_size //= num_devices
        if self.divides_batches:
            members_CxQ = np.tile(np.arange(self.size), (num_devices, 1))
        else:
            vain = -self.size % num_devices
            members_CxQ = np.pad(np.arange(self.size), (0, vain), mode="edge")
            members_CxQ = members_CxQ.reshape(num_devices, -1)
        flat = members_CxQ.reshape(-1).tolist()
        self._place_P = np.array([flat.index(member) for member in range(self.size)])
        self._first = jax.process_index() * num_local  # of this process's devices
        here = slice(self._first, self._first + num_local)
        self._members_GxQ = members_CxQ[here]

        draws_P = _first_equal([(each.seed, each.keep_best) for each in samplers])
        draws = [sorted({draws_P[member] for member in row}) for row in members_CxQ]
        self.num_draws = max(map(len, draws))
        draws = [row + row[:1] * (self.num_draws - len(row)) for row in draws]
        self._draws_GxD = np.array(draws)[here]
        draw_CxQ = np.array(
            [
                [of_device.index(draws_P[member]) for member in row]
                for of_device, row in zip(draws, members_CxQ, strict=True)
            ]
        )
        # Where each place has a draw of its own, no member has to look for it.
        self._own_draws = (draw_CxQ == np.arange(members_CxQ.shape[1])[None]).all()

        kinds_P = _first_equal([id(sampler.returns_to_go) for sampler in samplers])
        kinds = sorted(set(kinds_P))
        self._kinds = [samplers[kind] for kind in kinds]
        kind_P = np.int32([kinds.index(kind) for kind in kinds_P])
        self._numbers = {
            "draw": draw_CxQ[here].astype(np.int32),
            "kind": kind_P[self._members_GxQ],
            **{name: array[self._members_GxQ] for name, array in numbers.items()},
        }

    @property
    def returns_to_go(self) -> np.ndarray:
        return np.concatenate([sampler.returns_to_go for sampler in self._kinds])

    @property
    def num_kinds(self) -> int:
        """R, of returns-to-go."""
        return len(self._kinds)

    @property
    def places(self) -> int:
        """Q, how many members a device has."""
        return self._members_GxQ.shape[1]

    @property
    def segments(self) -> int:
        """How many a device reads for an update of all its members."""
        return self.num_draws * self._batch_size

    def items(self, gather: Callable, step: int, num_updates: int) -> tuple:
        """What `update` needs of the updates from `step` on: [G, U, D, B', ...] of what
        `Feed.gather` gives, and the numbers, [G, U, Q] each."""
        draws = {
            member: [self._samplers[member].draw(step + u) for u in range(num_updates)]
            for member in set(self._draws_GxD.reshape(-1).tolist())
        }

        def drawn(part):
            return np.array(
                [
                    [
                        [draws[member][update][part][share] for member in row]
                        for update in range(num_updates)
                    ]
                    for share, row in self._shares()
                ]
            )

        episodes, starts = drawn(0), drawn(1)
        flat = gather(self._kinds[0], episodes.reshape(-1), starts.reshape(-1))
        if isinstance(flat, Batch) and len(self._kinds) > 1:
            flat = self._with_all_returns(flat, episodes, starts)
        parts = jax.tree.map(lambda x: x.reshape(*episodes.shape, *x.shape[1:]), flat)
        return parts, {
            name: self._of_updates(array, step, num_updates)
            for name, array in self._numbers.items()
        }

    def _shares(self):
        """Of each device of this process, which segments of a batch and whose."""
        for device, row in enumerate(self._draws_GxD.tolist(), self._first):
            first = device * self._batch_size if self.divides_batches else 0
            yield slice(first, first + self._batch_size), row

    def _with_all_returns(self, flat, episodes, starts):
        rows, _, mask = self._kinds[0].layout(episodes.reshape(-1), starts.reshape(-1))
        returns = [np.where(mask, s.returns_to_go[rows], 0.0) for s in self._kinds]
        return flat._replace(returns_to_go=np.stack(returns, axis=-1))

    @staticmethod
    def _of_updates(array, step, num_updates):
        if array.ndim == 3:  # G, Q and all updates
            return array[..., step : step + num_updates].swapaxes(1, 2)
        return np.repeat(array[:, None], num_updates, axis=1)

    def update(
        self, state: TrainState, item: tuple, fetch: Callable, **how
    ) -> tuple[TrainState, Metrics]:
        """One `train_step` of each member of a device; the leaves have an axis Q.

        `fetch`: (part, kind of returns) -> Batch; `how`: what is the same for all.
        """
        parts, numbers = item

        def one(state, part, numbers):
            if not self._own_draws:
                draw = 0 if self.num_draws == 1 else numbers["draw"]
                part = jax.tree.map(lambda x: x[draw], part)
            return train_step(
                state,
                fetch(part, numbers["kind"] if len(self._kinds) > 1 else None),
                axis_name=DEVICES if self.divides_batches else None,
                **how,
                **self._build(numbers),
            )

        axes = 0, 0 if self._own_draws else None, 0
        return jax.vmap(one, in_axes=axes)(state, parts, numbers)

    def of_places(self, leaf: np.ndarray) -> np.ndarray:
        """[P, ...] -> [G, Q, ...], on the devices of this process."""
        return np.asarray(leaf)[self._members_GxQ]

    def collect(self, tree):
        """Within the train call: of leaves [Q, ...] those of all members, [P, ...]."""

        def of_all(leaf):
            every = jax.lax.all_gather(leaf, DEVICES)
            return every.reshape(-1, *leaf.shape[1:])[self._place_P]

        return jax.tree.map(of_all, tree)


def _first_equal(values):
    """Of each value where the first equal one stands."""
    return [values.index(value) for value in values]

# SPDX-License-Identifier: Apache-2.0
"""Members that are trained together: what a `Setup` is to a run, this is to them.

In goes the `Setup` of all and those of the members, out comes what `train` asks a
`Setup` for; the state has a first axis of P members.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import numpy as np

from dt_jax.commands.members import DROPOUT, OF_THE_RATE, OF_THE_UPDATE
from dt_jax.commands.setup import DATA_REPORT, Setup
from dt_jax.model.layers import dropout_units
from dt_jax.system.files import write_json
from dt_jax.training.feed import Feed
from dt_jax.training.metrics import PopulationMetrics
from dt_jax.training.optimizer import clipped_adamw
from dt_jax.training.placement import Placement, choose_placement, memory_plan
from dt_jax.training.population import Population
from dt_jax.training.train_call import make_gather, make_train_call, place
from dt_jax.training.train_step import TrainState
from dt_jax.training.validation import HeldOut


class Sweep:
    """Some of the members of a sweep, or all.

    Attributes:
      members: the `Setup` of each. population: what trains them.
      Others are as those of `Setup`, of all members alike.
    """

    def __init__(self, whole: Setup, members: Sequence[Setup]):
        self._whole, self.members, first = whole, members, members[0]
        self.config, self.workdir = whole.config, whole.workdir
        self.trajectories, self.sampler = first.trajectories, first.sampler
        self.total_steps, self.intervals = first.total_steps, first.intervals
        self.population = Population(
            [member.sampler for member in members], self._numbers(), self._build
        )
        self.whole = make_gather(self.population)

    def _numbers(self):
        """What differs among the members, for `_build`: numbers alone are traced."""
        configs = [member.config for member in self.members]
        numbers = {"seed": np.uint32([config.seed for config in configs])}
        for name in OF_THE_UPDATE:
            numbers[name] = np.float32([config.optimizer[name] for config in configs])
        for name in DROPOUT:
            rates = [config.model[name] for config in configs]
            numbers[name] = np.array(list(map(dropout_units, rates)))
        seeing = [config.model.condition_on == "return" for config in configs]
        numbers["condition_on"] = np.array(seeing)
        rates = {tuple(config.optimizer[n] for n in OF_THE_RATE) for config in configs}
        same = {name for name, x in numbers.items() if len(np.unique(x)) == 1}
        numbers = {name: x for name, x in numbers.items() if name not in same}
        if len(rates) > 1:
            numbers["rate"] = np.stack([member.rates() for member in self.members])
        return numbers

    def _build(self, numbers):
        """The model, the optimiser and the key of a member with these numbers."""
        first, schedule = self.members[0], self.members[0].schedule
        values = {name: first.config.optimizer[name] for name in OF_THE_UPDATE}
        values["predict_return"] = first.config.model.predict_return
        values |= {name: numbers[name] for name in OF_THE_UPDATE if name in numbers}
        if "rate" in numbers:
            schedule = partial(_constant, numbers["rate"])
        fields = (*DROPOUT, "condition_on")
        traced = {name: numbers[name] for name in fields if name in numbers}
        return {
            "model": first.model.clone(**traced),
            "optimizer": clipped_adamw(schedule, **values),
            "key": jax.random.key(numbers.get("seed", first.config.seed)),
        }

    def first_state(self) -> TrainState:
        """Leaves [P, ...] of NumPy."""
        first = self.members[0]
        states = [first.first_state(member.config.seed) for member in self.members]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *states)

    def state_shapes(self) -> TrainState:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                (len(self.members), *leaf.shape), leaf.dtype
            ),
            self.members[0].state_shapes(),
        )

    def place(self, state: TrainState) -> TrainState:
        return place(state, self.population)

    def split(self, state: TrainState, metrics: PopulationMetrics) -> tuple[list, list]:
        states = [_member(state, number) for number in range(len(self.members))]
        return states, metrics.members

    def validation_loss(self, held_outs: list[HeldOut]) -> Callable:
        return lambda params: [
            held_out.loss(_member(params, number))
            for number, held_out in enumerate(held_outs)
        ]

    def why_bad(self, metrics: PopulationMetrics, state: TrainState) -> str:
        return (
            f"all {len(self.members)} members have stopped: of each, "
            "train.max_bad_updates in a row gave a loss or gradient that is not "
            "finite; try a lower optimizer.learning_rate, or one of them alone"
        )

    def feed(self, placement: str) -> Feed:
        dtype = self.config.data.store_dtype
        return Feed(self.sampler, placement, dtype, self.population)

    def train_call(self, feed: Feed) -> Callable:
        first = self.members[0]
        return make_train_call(
            first.model,
            first.optimizer,
            seed=first.config.seed,
            fetch=feed.fetch,
            population=self.population,
            **self.statistics(),
        )

    def statistics(self) -> dict:
        return self.members[0].statistics()

    def placement(self) -> Placement:
        leaves = jax.tree.leaves(self.members[0].state_shapes())
        state_bytes = sum(x.size * x.dtype.itemsize for x in leaves)
        data, train = self.config.data, self.config.train
        plan = memory_plan(
            self.sampler,
            train.updates_per_call,
            state_bytes,
            data.store_dtype,
            self.population,
        )
        return choose_placement(data.placement, plan)

    def metrics(self, saved: list[dict] | None) -> PopulationMetrics:
        saved = saved or [None] * len(self.members)
        return PopulationMetrics(
            [
                member.metrics(one)
                for member, one in zip(self.members, saved, strict=True)
            ]
        )

    def record(self) -> dict:
        names = [member.workdir.name for member in self.members]
        return self._whole.record() | {"members": names}

    def go_on_from(self, record: dict) -> None:
        self._whole.go_on_from(record)
        for member in self.members:
            member.action_bounds = self._whole.action_bounds

    def describe_change(self, saved: Mapping, step: int) -> str:
        return self.members[0].describe_change(saved, step)

    def report_data(self, placement: Placement, *, with_memory: bool) -> None:
        self._whole.report_data(placement, with_memory=with_memory)
        facts = {}  # by what is trained on
        for member in self.members if jax.process_index() == 0 else ():
            kind = id(member.sampler.returns_to_go), member.sampler.keep_best
            if kind not in facts:
                facts[kind] = member.data_facts(placement)
            write_json(member.workdir / DATA_REPORT, facts[kind])


def _member(tree, number):
    """Of leaves [P, ...] that every device has."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0)[number], tree)


def _constant(rate, step):
    return rate

# SPDX-License-Identifier: Apache-2.0
"""The loop of updates: one call after another, records, checkpoints, a clean stop.

In come a state and everything built around it, out comes the state after the last
update. The losses of a call are read while the next one runs.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from typing import NamedTuple

import jax

from dt_jax.data.segments import SegmentSampler
from dt_jax.system import distributed
from dt_jax.system.interruption import postponed
from dt_jax.system.process import give_back_memory
from dt_jax.training.checkpoint import Checkpoints
from dt_jax.training.feed import Feed
from dt_jax.training.metrics import (
    MetricWriter,
    PopulationMetrics,
    PopulationWriter,
    RunningMetrics,
)
from dt_jax.training.train_step import TrainState, find_bad_segments


class Intervals(NamedTuple):
    """After how many updates something is due; `validates`: a record needs the state
    of its own update."""

    total_steps: int
    updates_per_call: int
    logging_steps: int
    save_steps: int
    validates: bool

    def calls(self, step: int) -> Iterator[tuple[int, int]]:
        """(first step, number of updates) of each call from `step` on.

        A save ends a call, and so does a record that validates.
        """
        while step < self.total_steps:
            to_save = self.save_steps - step % self.save_steps
            count = min(self.updates_per_call, to_save, self.total_steps - step)
            if self.validates:
                count = min(count, self.logging_steps - step % self.logging_steps)
            yield step, count
            step += count

    def saves_at(self, step: int) -> bool:
        return step % self.save_steps == 0 or step == self.total_steps

    def logs_at(self, step: int) -> bool:
        return step % self.logging_steps == 0 or step == self.total_steps


def run_updates(
    state: TrainState,
    *,
    call: Callable,
    feed: Feed,
    intervals: Intervals,
    metrics: RunningMetrics | PopulationMetrics,
    max_bad_updates: int,
    heartbeat_seconds: int,
    why_bad: Callable[[TrainState], str],
    writer: MetricWriter | PopulationWriter | None = None,
    checkpoints: Checkpoints | None = None,
    record: dict | None = None,
    validation_loss: Callable | None = None,
    whole: Callable[[TrainState], TrainState] = lambda state: state,
    saved: Callable[[TrainState, bool], None] | None = None,
    last: bool = True,
) -> TrainState:
    """Make all updates that are missing.

    Args:
      state: replicated; donated to the first call.
      call: what `make_train_call` gives.
      metrics: at the step from which to go on.
      why_bad: explains, given the last state, why the run stops.
      writer, checkpoints: of the first process; None in the others.
      record: is saved with each checkpoint, with the state of `metrics` beside it.
      validation_loss: params -> the loss on held-out data at each record, in the first
        process.
      whole: of a population, makes of the state one that every process has.
      saved: called after each save, in the first process, with what was saved and
        whether the run is interrupted there.
      last: the processes part at the end; False: they train something else after it.

    Raises:
      FloatingPointError: `max_bad_updates` in a row gave a loss or a gradient that is
        not finite; the message says why, in the first process alone.
      OSError: a record or a checkpoint could not be written.
      SystemExit, KeyboardInterrupt: after a signal (`interruption.postponed`), the
        state saved.
    """
    first = writer is not None

    def look(outcome, losses):
        if outcome is None:
            return
        with distributed.exit_if_lost():
            outcome, losses = jax.device_get((outcome, losses))
        for entry in metrics.update(*outcome, validation_loss=losses):
            if first:
                writer.write(entry)
        if first:
            writer.progress(metrics.now())
        if metrics.bad_in_a_row >= max_bad_updates:
            if last:
                distributed.leave()
            raise FloatingPointError("" if jax.process_index() else why_bad(state))

    items = feed.items(intervals.calls(metrics.step))
    stops = distributed.AgreedStop()
    beat = distributed.heartbeat(heartbeat_seconds, lambda: metrics.step)
    with postponed() as caught:
        with closing(writer) if first else nullcontext(), closing(items), beat:
            running = None, None
            for item in items:
                with distributed.exit_if_lost():
                    state, outcome = call(state, feed.store, item)
                look(*running)
                stop = stops(caught)
                reached = metrics.step + len(outcome.loss)
                saves = stop or intervals.saves_at(reached)
                validates = intervals.validates and intervals.logs_at(reached)
                with distributed.exit_if_lost():
                    seen = whole(state) if saves or validates else None
                losses = validation_loss(seen.params) if validates and first else None
                running = outcome, losses
                if not saves:
                    continue
                look(*running)
                running = None, None
                if metrics.bad_in_a_row and not (
                    stop or reached == intervals.total_steps
                ):
                    # A run about to stop must not push out its good checkpoints.
                    continue
                if checkpoints:
                    kept = record | {"meter": metrics.state()}
                    checkpoints.save(reached, {"state": seen}, kept)
                    saved(seen, bool(stop))
                give_back_memory()
                if stop:
                    break
        if checkpoints:
            checkpoints.wait()
        if caught:
            distributed.print_once(
                f"stopped at update {metrics.step:,} of {intervals.total_steps:,}, "
                "saved; the same command goes on from there"
            )
        if last or caught:
            distributed.leave()
    return whole(state)


def describe_bad_updates(
    state: TrainState, metrics: RunningMetrics, sampler: SegmentSampler, **how
) -> str:
    """Why a run stops: the first bad update, and which of its data is to blame.

    `how`: the model, the states' mean and std and the key, as `train_step` takes them.
    """
    first = metrics.step - metrics.bad_in_a_row
    episodes_B, starts_B = sampler.draw(first)
    bad_B = find_bad_segments(
        jax.device_get(state.params),
        sampler.gather(episodes_B, starts_B),
        step=first,
        **how,
    )
    if bad_B.all():
        cause = (
            "every segment does so alone: the weights have diverged, or all data is "
            "extreme; try a lower optimizer.learning_rate"
        )
    elif bad_B.any():
        of = ", ".join(
            f"trajectory {episode} from its step {start} on"
            for episode, start in zip(episodes_B[bad_B], starts_B[bad_B], strict=True)
        )
        cause = f"these do so alone: {of}; look for extreme values there"
    else:
        cause = "no segment does so alone"
    return (
        f"updates {first + 1} to {metrics.step}, train.max_bad_updates in a row, gave "
        "a loss or gradient that is not finite; in the first one's batch "
        f"{cause}; the checkpoints before it are kept"
    )

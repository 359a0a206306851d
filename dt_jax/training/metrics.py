# SPDX-License-Identifier: Apache-2.0
"""The figures of a run in progress: JSONL (the truth), a bar, what trackers get.

Losses come in as numbers, records go out as dicts of numbers; what is not finite is
null in JSON, which has no NaN. After a resume the records beyond the restored step are
dropped and made again: no gap and no double.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from absl import logging

from dt_jax.system.files import replacing
from dt_jax.system.progress import is_live, progress
from dt_jax.training.trackers import TensorBoard, WandB, by_tag


class RunningMetrics:
    """Means of the loss over each logging window and over the whole run.

    An update whose loss or gradient is not finite has been skipped: it is counted, and
    is in no mean. After `max_bad_updates` of them in a row nothing more is taken in.

    Attributes:
      step: updates taken in. bad_in_a_row: the last of them that were skipped.
    """

    def __init__(
        self,
        *,
        logging_steps: int,
        total_steps: int,
        steps_per_epoch: int,
        batch_size: int,
        learning_rate: Callable[[int], float],
        max_bad_updates: int,
        saved: dict | None = None,
        warns: bool = True,
    ):
        """Start anew, or from what `state` gave when the run was `saved`; `warns` of
        updates that are skipped."""
        if logging_steps < 1:
            raise ValueError(f"logging_steps={logging_steps}: expected at least 1")
        self._logging_steps = logging_steps
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._learning_rate = learning_rate
        self._max_bad_updates, self._warns = max_bad_updates, warns
        saved = {
            "step": 0,
            "loss_sum": 0.0,
            "skipped": 0,
            "bad_in_a_row": 0,
            "window_sum": 0.0,
            "window_accuracy": 0.0,
            "window_size": 0,
            "window_skipped": 0,
            "runtime": 0.0,
        } | (saved or {})
        self.step = saved["step"]
        self.bad_in_a_row = saved["bad_in_a_row"]
        self._skipped = saved["skipped"]
        self._loss_sum = saved["loss_sum"]
        self._window_sum = saved["window_sum"]
        self._window_accuracy = saved["window_accuracy"]
        self._window_size = saved["window_size"]
        self._window_skipped = saved["window_skipped"]
        self._loss = math.nan
        self._started = time.perf_counter() - saved["runtime"]
        self._updated = self._window_started = time.perf_counter()
        self._timed_from = self.step

    def state(self) -> dict:
        """For the checkpoint; as JSON every bit of a float survives."""
        return {
            "step": self.step,
            "loss_sum": self._loss_sum,
            "skipped": self._skipped,
            "bad_in_a_row": self.bad_in_a_row,
            "window_sum": self._window_sum,
            "window_accuracy": self._window_accuracy,
            "window_size": self._window_size,
            "window_skipped": self._window_skipped,
            "runtime": time.perf_counter() - self._started,
        }

    def update(
        self, losses, grad_norms, accuracies=None, validation_loss=None
    ) -> Iterator[dict]:
        """Take in the next updates; a record for each window that they complete.

        The loss of a record is the mean since the record before, as HF logs it, over
        the updates that were not skipped (NaN if there is none), whose number is beside
        it, and so is the accuracy, where there is one; the rest is of the window's last
        update. The last window may be a short one. `validation_loss`: of the last
        update, for its record.
        """
        measured = accuracies is not None
        accuracies = accuracies if measured else np.zeros(len(losses))
        # A call tells no times of its updates: they share its own evenly.
        now = time.perf_counter()
        share, clock = (now - self._updated) / len(losses), self._updated
        self._updated = now
        for loss, grad_norm, right in zip(losses, grad_norms, accuracies, strict=True):
            if self.bad_in_a_row >= self._max_bad_updates:
                return
            self.step += 1
            clock += share
            if math.isfinite(loss) and math.isfinite(grad_norm):
                self.bad_in_a_row = 0
                self._loss_sum += float(loss)
                self._window_sum += float(loss)
                self._window_accuracy += float(right)
                self._window_size += 1
            else:
                self.bad_in_a_row += 1
                self._skipped += 1
                self._window_skipped += 1
                if self._warns:
                    # As they came: records have no mean of them, and JSON no NaN.
                    logging.warning(
                        "update %d skipped: loss %s, gradient norm %s",
                        *(self.step, loss, grad_norm),
                    )
            if self.step % self._logging_steps and self.step != self._total_steps:
                continue
            size = self._window_size or math.nan
            self._loss = self._window_sum / size
            accuracy = self._window_accuracy / size
            rate = (self.step - self._timed_from) / (clock - self._window_started)
            yield {
                "step": self.step,
                "epoch": self.step / self._steps_per_epoch,
                "loss": self._loss,
                **({"accuracy": accuracy} if measured else {}),
                "learning_rate": float(self._learning_rate(self.step - 1)),
                "grad_norm": float(grad_norm),
                "skipped_updates": self._window_skipped,
                "steps_per_second": rate,
                "samples_per_second": rate * self._batch_size,
                "train_runtime": clock - self._started,
                **(
                    {}
                    if validation_loss is None
                    else {"validation_loss": float(validation_loss)}
                ),
            }
            self._window_sum = self._window_accuracy = 0.0
            self._window_size = self._window_skipped = 0
            self._window_started, self._timed_from = clock, self.step

    def now(self) -> dict:
        """`step`, the mean `loss` of the window so far, the last `learning_rate`."""
        size = self._window_size
        return {
            "step": self.step,
            "loss": self._window_sum / size if size else self._loss,
            "learning_rate": float(self._learning_rate(max(0, self.step - 1))),
        }

    def summary(self) -> dict:
        """The figures of a whole run under HF's names; pauses do not count."""
        runtime = time.perf_counter() - self._started
        return {
            "global_step": self.step,
            "epoch": self.step / self._steps_per_epoch,
            "train_loss": self._loss_sum / max(1, self.step - self._skipped),
            "skipped_updates": self._skipped,
            "train_runtime": runtime,
            "train_steps_per_second": self.step / runtime,
            "train_samples_per_second": self.step * self._batch_size / runtime,
        }


class PopulationMetrics:
    """Those of P members; one that has stopped takes in nothing more.

    Attributes:
      members: the `RunningMetrics` of each.
    """

    def __init__(self, members: Sequence[RunningMetrics]):
        self.members = members

    @property
    def step(self) -> int:
        return max(member.step for member in self.members)

    @property
    def bad_in_a_row(self) -> int:
        """Of the member that fares best: the others go on when one has stopped."""
        return min(member.bad_in_a_row for member in self.members)

    def update(self, *outcome_UxP, validation_loss=None) -> Iterator[dict]:
        """As that of each member; a record has the `member` it is of, from 0 on."""
        for number, member in enumerate(self.members):
            outcome = [None if x is None else x[:, number] for x in outcome_UxP]
            loss = None if validation_loss is None else validation_loss[number]
            for record in member.update(*outcome, validation_loss=loss):
                yield record | {"member": number}

    def state(self) -> list[dict]:
        return [member.state() for member in self.members]

    def now(self) -> dict:
        """`step`, and the mean `loss` over the members that have one."""
        losses = [member.now()["loss"] for member in self.members]
        losses = [loss for loss in losses if math.isfinite(loss)]
        return {"step": self.step, "loss": sum(losses) / len(losses or [math.nan])}


class MetricWriter:
    """Where the records of one run go; the first process alone has one."""

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        step: int,
        total_steps: int | None,
        trackers: Sequence[TensorBoard | WandB] = (),
    ):
        """Open the file at `step`, records beyond it dropped; `trackers` are closed
        with it. `total_steps`: of the progress bar; None: there is none."""
        workdir, self._trackers = Path(workdir), trackers
        path = workdir / "metrics.jsonl"
        kept = [record for record in read_metrics(path) if record["step"] <= step]
        with replacing(path) as unfinished:
            unfinished.write_text("".join(map(_line, kept)))
        self._file = path.open("a", encoding="utf-8")
        self._bar = None if total_steps is None else _Bar(step, total_steps)

    def write(self, record: dict) -> None:
        """`record` has the key `step`; the other values are numbers."""
        self._file.write(_line(record))
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(record["step"], by_tag(record))
        if self._bar:
            self._bar.show(record, with_line=True)

    def progress(self, now: dict) -> None:
        """Move the bar to `step`; `loss` and `learning_rate` stand beside it."""
        self._bar.show(now)

    def close(self) -> None:
        if self._bar:
            self._bar.close()
        with suppress(OSError):  # of what a write has raised already
            self._file.close()
        for tracker in self._trackers:
            tracker.close()


class PopulationWriter:
    """The records of members go to the writers of theirs; one bar is of them all."""

    def __init__(self, writers: Sequence[MetricWriter], *, step: int, total_steps: int):
        self._writers, self._bar = writers, _Bar(step, total_steps)
        self._recorded = step

    def write(self, record: dict) -> None:
        record = dict(record)
        self._writers[record.pop("member")].write(record)
        self._recorded = record["step"]

    def progress(self, now: dict) -> None:
        self._bar.show(now, with_line=now["step"] == self._recorded)

    def close(self) -> None:
        self._bar.close()
        for writer in self._writers:
            writer.close()


class _Bar:
    """The progress of the updates, on a terminal; in a log a line for each record."""

    def __init__(self, step, total_steps):
        self._bar = progress(
            initial=step, total=total_steps, desc="training", unit=" updates"
        )

    def show(self, now, *, with_line=False):
        shown = {"loss": "loss {:.4g}", "learning_rate": "lr {:.3g}"}
        texts = [text.format(now[key]) for key, text in shown.items() if key in now]
        self._bar.set_postfix_str(", ".join(texts), refresh=False)
        self._bar.update(now["step"] - self._bar.n)
        if with_line and not is_live():
            self._bar.refresh()

    def close(self):
        self._bar.close()


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The records of a metrics.jsonl, null as NaN.

    A last line cut short by a kill is left out.
    """
    path = Path(path)
    records = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        records.append({k: math.nan if v is None else v for k, v in record.items()})
    return records


def _line(record) -> str:
    finite = {k: v if math.isfinite(v) else None for k, v in record.items()}
    return json.dumps(finite) + "\n"

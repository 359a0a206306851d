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
    ):
        """Start anew, or from what `state` gave when the run was `saved`."""
        if logging_steps < 1:
            raise ValueError(f"logging_steps={logging_steps}: expected at least 1")
        self._logging_steps = logging_steps
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._learning_rate = learning_rate
        self._max_bad_updates = max_bad_updates
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

    def update(self, losses, grad_norms, accuracies=None) -> Iterator[dict]:
        """Take in the next updates; a record for each window that they complete.

        The loss of a record is the mean since the record before, as HF logs it, over
        the updates that were not skipped (NaN if there is none), whose number is beside
        it, and so is the accuracy, where there is one; the rest is of the window's last
        update. The last window may be a short one.
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


class MetricWriter:
    """Where the records of one run go; the first process alone has one."""

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        step: int,
        total_steps: int,
        trackers: Sequence[TensorBoard | WandB] = (),
    ):
        """Open the file at `step`, records beyond it dropped; `trackers` are closed
        with it."""
        workdir, self._trackers = Path(workdir), trackers
        path = workdir / "metrics.jsonl"
        kept = [record for record in read_metrics(path) if record["step"] <= step]
        with replacing(path) as unfinished:
            unfinished.write_text("".join(map(_line, kept)))
        self._file = path.open("a", encoding="utf-8")
        self._bar = progress(
            initial=step, total=total_steps, desc="training", unit=" updates"
        )

    def write(self, record: dict) -> None:
        """`record` has the key `step`; the other values are numbers."""
        self._file.write(_line(record))
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(record["step"], by_tag(record))
        self.progress(record)
        if not is_live():
            self._bar.refresh()  # a line for each record

    def progress(self, now: dict) -> None:
        """Move the bar to `step`; `loss` and `learning_rate` stand beside it."""
        shown = {"loss": "loss {:.4g}", "learning_rate": "lr {:.3g}"}
        texts = [text.format(now[key]) for key, text in shown.items() if key in now]
        self._bar.set_postfix_str(", ".join(texts), refresh=False)
        self._bar.update(now["step"] - self._bar.n)

    def close(self) -> None:
        self._bar.close()
        with suppress(OSError):  # of what a write has raised already
            self._file.close()
        for tracker in self._trackers:
            tracker.close()


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

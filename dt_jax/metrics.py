# SPDX-License-Identifier: Apache-2.0
"""What a run says while it runs: JSONL (the truth), TensorBoard, W&B, a progress bar.

Losses come in as numbers, records go out as dicts of numbers. After a resume the
records beyond the restored step are dropped and made again: no gap and no double.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm


class Meter:
    """Means of the loss over each logging window and over the whole run."""

    def __init__(
        self,
        *,
        logging_steps: int,
        total_steps: int,
        steps_per_epoch: int,
        batch_size: int,
        learning_rate: Callable[[int], float],
        saved: dict | None = None,
    ):
        """Start anew, or from what `state` gave when the run was `saved`."""
        if logging_steps < 1:
            raise ValueError(
                f"train.logging_steps={logging_steps}: expected at least 1"
            )
        self._logging_steps = logging_steps
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._learning_rate = learning_rate
        saved = saved or {
            "step": 0,
            "loss_sum": 0.0,
            "window_sum": 0.0,
            "window_size": 0,
            "runtime": 0.0,
        }
        self.step = saved["step"]
        self._loss_sum = saved["loss_sum"]
        self._window_sum = saved["window_sum"]
        self._window_size = saved["window_size"]
        self._started = time.perf_counter() - saved["runtime"]
        self._updated = self._window_started = time.perf_counter()
        self._timed_from = self.step

    def state(self) -> dict:
        """For the checkpoint; as JSON every bit of a float survives."""
        return {
            "step": self.step,
            "loss_sum": self._loss_sum,
            "window_sum": self._window_sum,
            "window_size": self._window_size,
            "runtime": time.perf_counter() - self._started,
        }

    def update(self, losses, grad_norms) -> Iterator[dict]:
        """Take in the next updates; a record for each window that they complete.

        The loss of a record is the mean since the record before, as HF logs it; the
        rest is of the window's last update. The last window may be a short one.
        """
        # A call tells no times of its updates: they share its own evenly.
        now = time.perf_counter()
        share, clock = (now - self._updated) / len(losses), self._updated
        self._updated = now
        for loss, grad_norm in zip(losses, grad_norms, strict=True):
            self.step += 1
            clock += share
            self._loss_sum += float(loss)
            self._window_sum += float(loss)
            self._window_size += 1
            if self.step % self._logging_steps and self.step != self._total_steps:
                continue
            rate = (self.step - self._timed_from) / (clock - self._window_started)
            yield {
                "step": self.step,
                "epoch": self.step / self._steps_per_epoch,
                "loss": self._window_sum / self._window_size,
                "learning_rate": float(self._learning_rate(self.step - 1)),
                "grad_norm": float(grad_norm),
                "steps_per_second": rate,
                "samples_per_second": rate * self._batch_size,
            }
            self._window_sum, self._window_size = 0.0, 0
            self._window_started, self._timed_from = clock, self.step

    def summary(self) -> dict:
        """The figures of a whole run under HF's names; pauses do not count."""
        runtime = time.perf_counter() - self._started
        return {
            "global_step": self.step,
            "epoch": self.step / self._steps_per_epoch,
            "train_loss": self._loss_sum / max(1, self.step),
            "train_runtime": runtime,
            "train_steps_per_second": self.step / runtime,
            "train_samples_per_second": self.step * self._batch_size / runtime,
        }


class MetricWriter:
    """The sinks of one run; the first process alone has one."""

    def __init__(
        self, workdir: str | os.PathLike, *, step: int, total_steps: int, wandb: bool
    ):
        """Open the sinks at `step`; records beyond it are dropped."""
        workdir = Path(workdir)
        self._wandb = None
        if wandb:
            import wandb  # not among the requirements: only who asks for it needs it

            run = "-".join(workdir.resolve().parts[1:])
            self._wandb = wandb.init(id=run, resume="allow", dir=str(workdir))
        path = workdir / "metrics.jsonl"
        kept = [record for record in read_metrics(path) if record["step"] <= step]
        scratch = path.with_suffix(".partial")
        scratch.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(scratch, path)
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self._bar = tqdm(
            initial=step,
            total=total_steps,
            desc="training",
            unit="update",
            # A log file gets a line now and then, a terminal a moving bar.
            mininterval=0.1 if sys.stderr.isatty() else 10.0,
        )

    def write(self, record: dict) -> None:
        """`record` has the key `step`; the other values are numbers."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        scalars = {key: value for key, value in record.items() if key != "step"}
        for key, value in scalars.items():
            self._events.add_scalar(f"train/{key}", value, record["step"])
        if self._wandb is not None:
            self._wandb.log(scalars, step=record["step"])
        self._bar.set_postfix_str(f"loss {record['loss']:.4g}", refresh=False)

    def progress(self, step: int) -> None:
        """Move the bar to `step`."""
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        self._bar.close()
        self._file.close()
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The records of a metrics.jsonl; a last line cut short by a kill is left out."""
    path = Path(path)
    records = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records

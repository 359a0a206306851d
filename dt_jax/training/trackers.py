# SPDX-License-Identifier: Apache-2.0
"""TensorBoard and Weights & Biases: numbers and pictures of a run, by update.

Both take `write(step, scalars, pictures)` and `close()`; tags are grouped as
train/loss, validation/loss, performance/steps_per_second, evaluation/return/...
"""

import math
import os
import secrets
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

NONE = MappingProxyType({})
FLUSH_SECONDS = 10.0  # TensorBoard's file is flushed to the disk, which takes its time
PROJECT = "dt-jax"  # of W&B, where WANDB_PROJECT names none


def open_trackers(
    workdir: str | os.PathLike,
    *,
    hparams: Mapping,
    wandb: bool,
    first_step: int | None = None,
) -> list["TensorBoard | WandB"]:
    """Those of a run's updates from `first_step` on; None: of an evaluation.

    TensorBoard never goes back to a file once there is a newer one beside it. So an
    evaluation, which may come while the run goes on, has a folder of its own.
    """
    check_wandb(wandb)
    folder = Path(workdir) / "tensorboard"
    if first_step is None:
        trackers = [TensorBoard(folder / "evaluation")]
    else:
        trackers = [TensorBoard(folder, hparams=hparams, first_step=first_step)]
    return [*trackers, WandB(workdir, hparams=hparams)] if wandb else trackers


def check_wandb(wanted: bool) -> None:
    """Raises: ValueError, if the package is wanted and is not there."""
    if wanted and not find_spec("wandb"):
        raise ValueError("log.wandb=True needs the package: pip install wandb")


def by_tag(record: Mapping) -> dict:
    """{tag: number} of a record of metrics.jsonl; what is not finite is left out."""
    return {
        _tag(key): value
        for key, value in record.items()
        if key != "step" and math.isfinite(value)
    }


def _tag(key):
    if key.startswith("validation_"):
        return key.replace("_", "/", 1)
    return f"{'performance' if key.endswith('_per_second') else 'train'}/{key}"


class TensorBoard:
    """TensorBoard's file of one start of a run.

    Not tensorboardX's SummaryWriter: that writes in a thread, which dies of a full
    disk, and then the run waits for it forever.

    Args:
      folder: made if need be.
      hparams: {key: value}, shown as hyperparameters and as a table of text.
      first_step: what earlier files have from this update on is dropped; None: nothing.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        hparams: Mapping = NONE,
        first_step: int | None = None,
    ):
        self._folder, self._hparams = Path(folder), hparams
        self._first_step = first_step
        self._writer = None
        self._flushed = -math.inf

    def write(
        self,
        step: int,
        scalars: Mapping[str, float],
        pictures: Mapping[str, bytes] = NONE,
    ) -> None:
        """Numbers and PNG pictures, by tag, of an update.

        Raises:
          OSError: the disk is full, say.
        """
        # Not before there is something: tensorboardX imports torch where it finds it.
        if self._writer is None:
            self._open()
        Summary = self._Summary
        values = [
            Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()
        ]
        for tag, png in pictures.items():
            width, height = struct.unpack(">II", png[16:24])  # the first chunk's
            image = {"width": width, "height": height, "colorspace": 4}
            image = Summary.Image(encoded_image_string=png, **image)
            values.append(Summary.Value(tag=tag, image=image))
        self._put(step, summary=Summary(value=values))

    def close(self) -> None:
        if self._writer is not None:
            with suppress(OSError):  # of what a write has raised already
                self._writer.close()

    def _open(self):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.summary import hparams, text

        self._Event, self._Summary = event_pb2.Event, summary_pb2.Summary
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(self._folder / "events"))
        if self._first_step is not None:
            started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._put(self._first_step, session_log=started)
        if self._hparams:
            plain = {
                key: value if isinstance(value, bool | int | float) else str(value)
                for key, value in self._hparams.items()
            }
            for summary in hparams(plain, {"train/loss": 0}):
                self._put(0, summary=summary)
            rows = "\n".join(f"| {key} | {value} |" for key, value in plain.items())
            self._put(0, summary=text("config", f"| key | value |\n|---|---|\n{rows}"))

    def _put(self, step, **content):
        now = time.time()
        self._writer.write_event(self._Event(step=step, wall_time=now, **content))
        if now - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = now


class WandB:
    """The run of a workdir at Weights & Biases; its id lies in the file `wandb_id`."""

    def __init__(self, workdir: str | os.PathLike, *, hparams: Mapping):
        import wandb  # not among the requirements: only who asks for it needs it

        self._Image = wandb.Image
        path = Path(workdir) / "wandb_id"
        if not path.is_file():
            path.write_text(secrets.token_hex(8))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=Path(workdir).resolve().name,
            id=path.read_text().strip(),
            resume="allow",
            config=dict(hparams),
            dir=str(workdir),
        )
        # Its own count of steps never goes back, but an evaluation may be of an update
        # before the last.
        self._run.define_metric("*", step_metric="update")

    def write(
        self,
        step: int,
        scalars: Mapping[str, float],
        pictures: Mapping[str, bytes] = NONE,
    ) -> None:
        """Numbers and PNG pictures, by tag, of an update."""
        images = {tag: self._Image(_opened(png)) for tag, png in pictures.items()}
        self._run.log({**scalars, **images, "update": step})

    def close(self) -> None:
        self._run.finish()


def _opened(png):
    from io import BytesIO

    from PIL import Image

    return Image.open(BytesIO(png))

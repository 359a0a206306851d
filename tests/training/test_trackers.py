# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's events, read back; W&B offline, where it is installed."""

import json
import math
import struct
import sys
import zlib
from contextlib import closing
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from dt_jax.training.trackers import TensorBoard, WandB, by_tag, open_trackers

HPARAMS = {"seed": 3, "data.path": "data", "eval.targets": (1.0, 2.0)}


def read_events(folder):
    """The events of TensorBoard's files: length, checksum, bytes, checksum."""
    for path in sorted(folder.glob("events.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (size,) = struct.unpack_from("<Q", data, place)
            yield Event.FromString(data[place + 12 : place + 12 + size])
            place += 12 + size + 4


def values_in(folder):
    """(step, value) of all summaries."""
    return [(e.step, v) for e in read_events(folder) for v in e.summary.value]


def png(width, height):
    """A black picture."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress((b"\0" + b"\0\0\0" * width) * height)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def test_records_are_grouped_and_what_is_not_finite_is_left_out():
    record = {"step": 5, "loss": 0.5, "validation_loss": 0.25, "grad_norm": math.nan}
    record |= {"skipped_updates": 0, "steps_per_second": 2.0}
    assert by_tag(record) == {
        "train/loss": 0.5,
        "validation/loss": 0.25,
        "train/skipped_updates": 0,
        "performance/steps_per_second": 2.0,
    }


def test_tensorboard_gets_numbers_and_pictures_at_their_update(tmp_path):
    picture = png(3, 2)
    with closing(TensorBoard(tmp_path / "new" / "folder")) as board:
        board.write(3, {"train/loss": 0.5})
        board.write(6, {"train/loss": 0.25}, {"pictures/loss": picture})
    (first, loss), (second, later), (third, image) = values_in(tmp_path / "new/folder")
    assert (first, loss.tag, loss.simple_value) == (3, "train/loss", 0.5)
    assert (second, later.simple_value) == (6, 0.25)
    assert (third, image.tag) == (6, "pictures/loss")
    assert image.image.encoded_image_string == picture
    assert (image.image.width, image.image.height) == (3, 2)


def test_tensorboard_shows_the_config_as_hyperparameters_and_as_text(tmp_path):
    with closing(TensorBoard(tmp_path, hparams=HPARAMS)) as board:
        board.write(1, {"train/loss": 0.5})
    found = {value.tag: value for _, value in values_in(tmp_path)}
    content = found["_hparams_/session_start_info"].metadata.plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["seed"].number_value == 3
    assert hparams["data.path"].string_value == "data"
    assert hparams["eval.targets"].string_value == "(1.0, 2.0)"
    (table,) = found["config/text_summary"].tensor.string_val
    assert table.startswith(b"| key | value |\n|---|---|\n| seed | 3 |\n")


def test_nothing_is_written_before_there_is_something(tmp_path):
    for tracker in open_trackers(tmp_path, hparams=HPARAMS, wandb=False, first_step=1):
        tracker.close()
    assert not list(tmp_path.iterdir())


def test_tensorboard_is_told_what_a_resumed_run_makes_again(tmp_path):
    (board,) = open_trackers(tmp_path, hparams={}, wandb=False, first_step=4)
    with closing(board):
        board.write(6, {"train/loss": 0.5})
    events = read_events(tmp_path / "tensorboard")
    assert [e.step for e in events if e.HasField("session_log")] == [4]


def test_an_evaluation_takes_nothing_from_a_run_in_progress(tmp_path):
    (board,) = open_trackers(tmp_path, hparams=HPARAMS, wandb=False)
    with closing(board):
        board.write(6, {"evaluation/return/random": 0.5})
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == [
        "evaluation"
    ]
    events = list(read_events(tmp_path / "tensorboard" / "evaluation"))
    assert not any(event.HasField("session_log") for event in events)


def test_wandb_goes_on_in_a_workdir_and_begins_anew_in_a_new_one(tmp_path, monkeypatch):
    begun, logged = [], []
    run = SimpleNamespace(
        log=logged.append, finish=lambda: None, define_metric=lambda *_, **__: None
    )

    def init(**options):
        begun.append(options)
        return run

    wandb = SimpleNamespace(init=init, Image=lambda image: image.size)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    for name in ("a", "a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        with closing(WandB(tmp_path / name, hparams=HPARAMS)) as tracker:
            tracker.write(3, {"train/loss": 1.0}, {"pictures/loss": png(3, 2)})
    first, again, other = begun
    assert first == again
    assert first["id"] != other["id"]
    assert (first["project"], first["name"]) == ("dt-jax", "a")
    assert first["config"] == HPARAMS
    assert logged[0] == {"train/loss": 1.0, "pictures/loss": (3, 2), "update": 3}


@pytest.mark.slow
def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with closing(WandB(tmp_path, hparams=HPARAMS)) as tracker:
        run = wandb.run
        tracker.write(3, {"train/loss": 1.0}, {"pictures/loss": png(3, 2)})
        assert (run.project, run.name) == ("mine", tmp_path.name)
        assert run.id == (tmp_path / "wandb_id").read_text()
        assert json.loads(json.dumps(dict(run.config)))["seed"] == 3
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert (folder / f"run-{run.id}.wandb").is_file()
    assert len(list(folder.glob("files/media/images/pictures/*.png"))) == 1

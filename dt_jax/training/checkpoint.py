# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with orbax: the train state, what belongs to it, and proof of both.

In and out go trees of NumPy arrays (free of devices and hosts) and one JSON object, the
record. On disk all arrays are one: the bytes of a safetensors file. The record has
digests of both, because orbax restores a flipped byte without an error. A step proven
damaged is passed over for the one before. A step that could not be read, or not be
saved, is an OSError of one line and costs no other step.
"""

import json
import os
import re
import shutil
import tempfile
from contextlib import closing, contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import safetensors.numpy
import xxhash
from absl import logging

from dt_jax.model.hf_weights import import_hf, import_normalization
from dt_jax.system.files import another

OS_ERROR = r"os_error_code='(\d+)'"  # how tensorstore tells of the system's errors


class Checkpoint(NamedTuple):
    """One restored step: {path: array} and the JSON object saved with it."""

    step: int
    arrays: dict[str, np.ndarray]
    record: dict


class Trained(NamedTuple):
    """A model at rest: its fields, its parameters, and what acting needs of the data.

    normalization: state_mean and state_std (lists of S), return_scale, discount,
    context_length, max_ep_len and what else `Policy` takes; None of a folder without
    `normalization.json`.
    step: updates made, None for a folder.
    """

    fields: dict
    params: dict
    normalization: dict | None
    step: int | None = None


def load_trained(path: str | os.PathLike) -> Trained:
    """Read a workdir (its newest good checkpoint) or a Hugging Face folder.

    Raises:
      FileNotFoundError: it is neither. ValueError: what is in it is damaged. OSError:
        it could not be read.
    """
    path = Path(path).expanduser()
    if not (path / "checkpoints").is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"{path}: neither checkpoints/ nor config.json there; expected the "
                "--workdir of a run or a folder saved by Hugging Face"
            )
        return Trained(*import_hf(path), import_normalization(path))
    with closing(Checkpoints(path / "checkpoints", None)) as checkpoints:
        checkpoint = checkpoints.restore()
    if checkpoint is None:
        raise FileNotFoundError(f"{path}: the run has no checkpoint yet")
    if names := checkpoint.record.get("members"):
        raise ValueError(
            f"{path} holds {len(names)} runs; expected one of them, such as "
            f"{path}/members/{names[0]}"
        )
    params = {}
    for name, array in checkpoint.arrays.items():
        found = re.fullmatch(r"\['state'\]\.params\['(.+)'\]\['(.+)'\]", name)
        if found:
            params.setdefault(found[1], {})[found[2]] = array
    return Trained(
        checkpoint.record["model"],
        params,
        checkpoint.record["normalization"],
        checkpoint.step,
    )


class Checkpoints:
    """The checkpoints of one run, `<folder>/<step>/`."""

    def __init__(self, folder: str | os.PathLike, save_total_limit: int | None):
        """Keep the newest `save_total_limit` steps; None: only read what is there."""
        self._folder = Path(folder).resolve()  # orbax wants it absolute
        self._limit = save_total_limit
        if save_total_limit is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def _manager(self):
        # Not before a step is saved or read: a first update need not wait for orbax.
        import orbax.checkpoint as ocp

        _leave_out_what_is_raised()
        read_only = self._limit is None
        mine = jax.process_index()  # of many processes, each has its own manager
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._limit,
                enable_async_checkpointing=not read_only,
                cleanup_tmp_directories=not read_only,
                create=False,
                # Else it looks into steps that a run may be deleting at that moment.
                lightweight_initialize=read_only,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=mine, active_processes={mine}
                ),
            ),
            item_names=("state", "record"),
        )

    def save(self, step: int, tree, record: dict) -> None:
        """Snapshot the tree now, write it behind the caller's back.

        Raises:
          OSError: this save or the one before came to grief (a full disk, say); the
            steps before it are untouched.
        """
        import orbax.checkpoint as ocp

        self.wait()
        if step in self._steps():
            return
        # The copy comes first: the caller's next step donates these buffers.
        packed = _pack(tree)
        with self._told():
            # Where no folder can be made, orbax waits for it five minutes.
            os.rmdir(tempfile.mkdtemp(suffix=".trial", dir=self._folder))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave({"bytes": packed}),
                    record=ocp.args.JsonSave(
                        {**record, "digests": _digests(packed, record)}
                    ),
                ),
            )

    def restore(self) -> Checkpoint | None:
        """The newest good step, None when there is no step at all.

        Raises:
          ValueError: there are steps, but none is good.
          OSError: a step could not be read, good or not.
        """
        damaged = {}  # step: what is wrong with it
        while steps := self._steps() - damaged.keys():
            newest = max(steps)
            path = self._folder / str(newest)
            try:
                found = self._load(newest)
            except Exception as error:
                if not _proves_damage(error):
                    raise OSError(
                        f"{path} could not be read ({_fault(error)}); nothing has been "
                        "changed, try again when it can be"
                    ) from error
                if self._steps() - damaged.keys() != steps:
                    continue  # a run that goes on has just replaced it by a newer one
                damaged[newest] = _fault(error)
                continue
            for step, fault in damaged.items():
                logging.warning(
                    "checkpoint %s is damaged: %s", self._folder / str(step), fault
                )
            return found
        if damaged:
            raise ValueError(
                f"{self._folder}: none of the checkpoints {sorted(damaged)} is good "
                f"({max(damaged)}: {damaged[max(damaged)]}); delete the folder to "
                f"start again, or {another(self._folder.parent)}"
            )
        return None

    def set_aside_after(self, step: int) -> None:
        """Rename the steps above `step`, damaged ones, to `<step>.damaged`."""
        for later in [s for s in self._steps() if s > step]:
            aside = self._folder / f"{later}.damaged"
            shutil.rmtree(aside, ignore_errors=True)  # it was damaged before, too
            os.rename(self._folder / str(later), aside)
        self._manager.reload()

    def wait(self) -> None:
        """Until the last save is on disk; raises what it came to grief with."""
        if not self._is_used():
            return
        with self._told():
            # Not `check_for_errors`: it takes the error from orbax's own thread, which
            # then takes the save for good and deletes older steps.
            self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        if self._is_used():
            self._manager.close()

    def _is_used(self):
        return "_manager" in vars(self)

    def _steps(self) -> set[int]:
        names = os.listdir(self._folder)
        return {int(name) for name in names if re.fullmatch("[1-9][0-9]*", name)}

    @contextmanager
    def _told(self):
        try:
            yield
        except Exception as error:  # tensorstore and orbax raise many types
            raise OSError(
                f"{self._folder}: a checkpoint could not be saved ({_fault(error)}); "
                "those before it are kept: make room or mend the folder, and the same "
                "command goes on from the last"
            ) from error

    def _load(self, step) -> Checkpoint:
        for item in ("", "state", "record"):
            # To orbax, what may not be listed is missing.
            os.listdir(self._folder / str(step) / item)
        import orbax.checkpoint as ocp

        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(), record=ocp.args.JsonRestore()
            ),
        )
        packed, record = np.asarray(restored["state"]["bytes"]), restored["record"]
        expected, found = record.pop("digests"), _digests(packed, record)
        for item in expected:
            if found[item] != expected[item]:
                raise ValueError(f"its {item} differs from what was saved")
        return Checkpoint(step, safetensors.numpy.load(packed.tobytes()), record)


def flatten(tree) -> dict:
    """{path: leaf}, the form in which trees are stored."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def unflatten(tree, arrays: dict[str, np.ndarray]):
    """The arrays in the shape of `tree`, of which only structure and shapes are read.

    Raises:
      ValueError: an array is missing, or has another shape or dtype.
    """

    def pick(path, leaf):
        name = jax.tree_util.keystr(path)
        found = arrays.get(name)
        if found is None or (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
            have = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise ValueError(
                f"checkpoint holds {have} at {name}, "
                f"expected {leaf.dtype}{list(leaf.shape)}"
            )
        return found

    return jax.tree.map_with_path(pick, tree)


def _proves_damage(error: Exception) -> bool:
    """Whether the content is at fault, and not the reading of it."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return True
    passing = isinstance(error, OSError | MemoryError | RuntimeError)
    return not passing and not re.search(OS_ERROR, str(error))


def _fault(error: Exception) -> str:
    """In one line; of tensorstore's many words those that tell the cause."""
    number = re.search(OS_ERROR, str(error))
    if number:
        return os.strerror(int(number[1]))
    told = " ".join(str(error).split("[tensorstore_spec")[0].split())
    short = told if len(told) < 200 else f"{told[:30]} ... {told[-160:]}"
    return short or type(error).__name__


@cache
def _leave_out_what_is_raised() -> None:
    """Nothing of orbax's own on stderr: its errors, also its threads', are raised.

    From now on and in the whole process: some come as late as its end.
    """
    logging.get_absl_logger().addFilter(lambda log: "orbax" not in log.pathname)


def _pack(tree) -> np.ndarray:
    """All leaves as one array, the bytes of a safetensors file.

    One, because an array costs orbax a millisecond, however small it is, and because
    tensorstore 0.1 never frees some strings that it makes for each.
    """
    leaves = jax.device_get(flatten(tree))
    # It takes arrays alone, and their bytes as they lie.
    arrays = {path: np.asarray(leaf, order="C") for path, leaf in leaves.items()}
    return np.frombuffer(safetensors.numpy.save(arrays), np.uint8)


def _digests(packed, record) -> dict[str, str]:
    written = json.dumps(record, sort_keys=True).encode()
    parts = {"state": packed, "record": written}
    return {item: xxhash.xxh3_128_hexdigest(part) for item, part in parts.items()}

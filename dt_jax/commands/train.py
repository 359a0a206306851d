# SPDX-License-Identifier: Apache-2.0
"""Train, or go on training, in a workdir, which holds one run.

Started again in it, the run goes on where its newest good checkpoint stands.
"""

import gc
import platform
import shlex
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

import dt_jax
from dt_jax.commands.evaluate import (
    act,
    environment_of,
    track,
    with_known_environment,
)
from dt_jax.commands.same_run import check_same_start
from dt_jax.commands.setup import Setup
from dt_jax.config import current_names, flatten, naming_keys
from dt_jax.reporting.evaluation_tables import evaluation_scalars
from dt_jax.reporting.run_page import write_run_page
from dt_jax.reporting.run_summary import describe_complete, describe_run
from dt_jax.system import distributed
from dt_jax.system.files import locked, read_json, write_json
from dt_jax.training.checkpoint import Checkpoints, unflatten
from dt_jax.training.feed import Feed, Placement, naming_memory
from dt_jax.training.loop import describe_bad_updates, run_updates
from dt_jax.training.metrics import MetricWriter, read_metrics
from dt_jax.training.trackers import open_trackers
from dt_jax.training.train_step import make_train_call, replicate
from dt_jax.training.validation import HeldOut

FIRST_PAGE = 20.0  # seconds of updates before the page is worth its time


@naming_keys()
def train(config: ConfigDict, workdir: Path) -> None:
    """Train, or go on training, until the run is complete.

    Raises:
      ValueError, FileNotFoundError: the config, the data or the checkpoints are at
        fault; nothing of an existing run has been changed.
      OSError: something could not be read or written (a full disk, say); the last good
        checkpoint is kept.
      FloatingPointError: `train.max_bad_updates` in a row had a loss or gradient that
        is not finite; the message, in the first process alone, says why.
      SystemExit, KeyboardInterrupt: after a signal during updates, the state saved;
        see `interruption.postponed`.
    """
    try:
        _train(config, workdir)
    except OSError as error:
        if error.errno is None or error.filename:
            raise
        raise OSError(f"{workdir}: {error.strerror}") from error  # of a write


def _train(config, workdir):
    setup = distributed.first_then_rest(partial(Setup, config, workdir))
    checkpoints = checkpoint = None
    check_same_start(config, setup.trajectories)
    with ExitStack() as stack:
        with distributed.raise_everywhere():
            if jax.process_index() == 0:
                stack.enter_context(locked(workdir))
                limit = config.train.save_total_limit
                checkpoints = Checkpoints(workdir / "checkpoints", limit)
                stack.enter_context(closing(checkpoints))
                checkpoint = checkpoints.restore()
        checkpoint, saved, step = distributed.broadcast(checkpoint), None, 0
        if checkpoint is not None:
            setup.go_on_from(checkpoint.record)
            saved, step = checkpoint.record["meter"], checkpoint.step
            if step >= setup.total_steps and distributed.broadcast(
                _is_concluded(workdir, setup.total_steps)
            ):
                _describe_complete(config, workdir, checkpoint)
                return
            if checkpoints:
                checkpoints.set_aside_after(step)
            expected = setup.first_state.eval_shape(setup.given)
            state = unflatten({"state": expected}, checkpoint.arrays)["state"]
            distributed.print_once(f"going on from update {step:,} in {workdir}")
            if change := setup.describe_change(checkpoint.record["config"], step):
                distributed.print_once(change)
        else:
            state = setup.first_state(setup.given)
        placement = distributed.broadcast(setup.placement())
        state = replicate(state)
        with distributed.timed("compiling"):
            placement, feed, call = _compile(setup, placement, state, step)
        metrics = setup.metrics(saved)  # its clock leaves compilation out
        with distributed.raise_everywhere():
            setup.report_data(placement, with_memory=placement.tight)
        if checkpoints:
            write_json(workdir / "config.json", config.to_dict())
            write_json(workdir / "run.json", _start(setup, state, step))
        with naming_memory(placement.name):
            _update(setup, feed, call, state, metrics, checkpoints)


def _describe_complete(config, workdir, checkpoint):
    """In the first process; an environment that is newly given calls for evaluate."""
    given = config.eval.environment
    if given == current_names(checkpoint.record["config"])["eval"]["environment"]:
        given = "" if environment_of(config) else "YOUR_ENVIRONMENT"
    if jax.process_index() == 0:
        print(describe_complete(workdir, checkpoint.step, environment=given))


def _compile(setup, placement, state, step):
    """The train call from `step` on and its feed, which a device has room for.

    Where the plan has promised too much, 'auto' takes the host, in all processes alike.
    """
    config = setup.config
    calls = setup.intervals(placement.name).calls(step)
    longest = max((count for _, count in calls), default=0)  # 0: all are made
    try:
        with distributed.raise_everywhere():
            feed = Feed(setup.sampler, placement.name, config.data.store_dtype)
        call = make_train_call(
            optimizer=setup.optimizer, seed=config.seed, fetch=feed.fetch, **setup.how()
        )
        with distributed.raise_everywhere():
            if longest:
                feed.compile(call, state, longest)
        return placement, feed, call
    except ValueError as error:
        if placement.name == "host" or config.data.placement != "auto":
            raise
        reason = str(error).rpartition("; ")[0]
    feed = call = None
    gc.collect()  # the store, which a traceback may have held
    placement = Placement("host", reason, placement.plan, tight=True)
    return _compile(setup, placement, state, step)


def _update(setup, feed, call, state, metrics, checkpoints):
    """Make the updates; in the first process also leave what a run leaves."""
    config, workdir = setup.config, setup.workdir
    held_out = writer = None
    if first := checkpoints is not None:
        how = setup.how()
        held_out = setup.held_out and HeldOut(
            setup.held_out, setup.model, feed, how["action_scaling"]
        )
        writer = MetricWriter(
            workdir,
            step=metrics.step,
            total_steps=setup.total_steps,
            trackers=open_trackers(
                workdir,
                hparams=flatten(config.to_dict()),
                wandb=config.log.wandb,
                first_step=metrics.step + 1,
            ),
        )

    def why_bad(state):
        how = setup.how() | {"key": jax.random.key(config.seed)}
        return describe_bad_updates(state, metrics, setup.sampler, **how)

    state = run_updates(
        state,
        call=call,
        feed=feed,
        intervals=setup.intervals(feed.placement),
        metrics=metrics,
        max_bad_updates=config.train.max_bad_updates,
        heartbeat_seconds=config.distributed.heartbeat_seconds,
        why_bad=why_bad,
        writer=writer,
        checkpoints=checkpoints,
        record=setup.record(),
        held_out=held_out,
        saved=_Page(workdir).saved,
    )
    if first:
        _conclude(setup, metrics, state, held_out)


def _conclude(setup, metrics, state, held_out) -> None:
    """Leave the summary, the pictures and the page; say where everything lies."""
    workdir, step = setup.workdir, metrics.step
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    summary = {**metrics.summary(), "num_parameters": num_parameters}
    errors = held_out and held_out.evaluate(state.params, setup.sampler.trajectories)
    if errors:
        write_json(workdir / "report" / "held_out.json", {"step": step, **errors})
    target, scalars = None, {}
    about = setup.trajectories.about
    config = with_known_environment(setup.config, setup.model, about)
    if environment_of(config):
        found = act(config, workdir)
        scalars = evaluation_scalars(found)
        targets = [actor["target"] for actor in found["actors"]]
        target = max(target for target in targets if target is not None)
    track(config, workdir, step, scalars, write_run_page(workdir))
    write_json(workdir / "summary.json", summary)  # the last: all is written
    last = read_metrics(workdir / "metrics.jsonl")[-1]
    path = setup.config.data.path
    where = {"data_path": path, "target": target}
    print(describe_run(workdir, summary, last, errors, **where))


def _is_concluded(workdir, total_steps) -> bool:
    """False when the end came between the last save and the last file."""
    path = workdir / "summary.json"
    summary = read_json(path) if path.is_file() else {"global_step": 0}
    return summary["global_step"] >= total_steps


def _start(setup, state, step) -> dict:
    """run.json: what the run is, and when, where and by which command it was begun and
    went on."""
    path = setup.workdir / "run.json"
    before = read_json(path)["starts"] if path.is_file() and step else []
    start = {
        "date": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "step": step,
        "command": shlex.join(sys.orig_argv[1:]),
        "versions": {"dt-jax": dt_jax.__version__, "Python": platform.python_version()}
        | {name: version(name) for name in ("jax", "flax", "optax", "numpy")},
        "devices": distributed.describe_devices(),
        "commit": _commit(),
    }
    return {
        "total_steps": setup.total_steps,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "starts": [*before, start],
    }


def _commit() -> str:
    """Of the code, where it lies in a work tree of git; with + where it was changed."""
    describe = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(
            describe, cwd=Path(dt_jax.__file__).parent, capture_output=True, text=True
        ).stdout.strip()
    except OSError:  # there is no git
        return ""


class _Page:
    """Writes the page at saves, at most so often that it takes a twentieth of the time:
    a GPU saves twice a second, and to draw takes a second."""

    def __init__(self, workdir: Path):
        self._workdir, self._next = workdir, time.monotonic() + FIRST_PAGE

    def saved(self, is_interrupted: bool) -> None:
        start = time.monotonic()
        if start < self._next and not is_interrupted:
            return
        try:
            write_run_page(self._workdir)
        except OSError:
            raise
        except Exception as error:  # a picture is not worth a training
            logging.warning("no page: %s: %s", type(error).__name__, error)
        self._next = time.monotonic() + 20 * (time.monotonic() - start)

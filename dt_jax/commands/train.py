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
    act_together,
    environment_of,
    track,
    with_known_environment,
)
from dt_jax.commands.members import BASELINES, clones_of
from dt_jax.commands.same_run import check_same_start
from dt_jax.commands.setup import Setup
from dt_jax.commands.sweep import Sweep
from dt_jax.config import current_names, flatten, naming_keys
from dt_jax.model.hf_weights import what_hf_lacks
from dt_jax.reporting.evaluation import evaluation_scalars
from dt_jax.reporting.population import describe_population, write_population
from dt_jax.reporting.run_page import write_run_page
from dt_jax.reporting.run_summary import describe_complete, describe_run
from dt_jax.system import distributed
from dt_jax.system.files import locked, read_json, write_json
from dt_jax.training.checkpoint import Checkpoints, unflatten
from dt_jax.training.loop import run_updates
from dt_jax.training.metrics import MetricWriter, PopulationWriter, read_metrics
from dt_jax.training.placement import Placement, naming_memory
from dt_jax.training.trackers import open_trackers
from dt_jax.training.train_step import TrainState
from dt_jax.training.validation import HeldOut

CHECKPOINTS = "checkpoints"  # of a run, in its workdir
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


def _train(config, workdir, last=True):
    """`last`: the processes train nothing after it."""
    setup = distributed.first_then_rest(partial(Setup, config, workdir))
    check_same_start(config, setup.trajectories)
    with ExitStack() as stack:
        with distributed.raise_everywhere():
            if jax.process_index() == 0:
                stack.enter_context(locked(workdir))
        clones = clones_of(config, workdir)
        if clones and _evaluation(setup):
            distributed.print_once("first the clones that eval.baselines names")
            _train(clones, workdir / BASELINES, last=False)
        if config.sweep:
            _train_members(setup, last)
        else:
            _train_one(setup, workdir / CHECKPOINTS, last)


def _train_members(setup, last):
    """All members of a sweep, `sweep_at_once` of them in turn."""
    members, workdir = setup.members, setup.workdir
    at_once = setup.config.sweep_at_once or len(members)
    count_stopped = 0
    for first in range(0, len(members), at_once):
        sweep = Sweep(setup, members[first : first + at_once])
        folder = f"{CHECKPOINTS}-{first}" if at_once < len(members) else CHECKPOINTS
        try:
            ends = last and first + at_once >= len(members)
            _train_one(sweep, workdir / folder, ends)
        except FloatingPointError:
            count_stopped += len(sweep.members)
            if count_stopped == len(members):
                raise
    if jax.process_index() == 0:
        found = write_population(workdir, [member.workdir.name for member in members])
        print(describe_population(workdir, found))


def _evaluation(setup) -> ConfigDict | None:
    """The config with the environment in which the models act; None: in none."""
    config, about = setup.config, setup.trajectories.about
    config = with_known_environment(config, setup.members[0].model, about)
    return config if environment_of(config) and config.eval.episodes else None


def _train_one(setup, folder, last):
    """A run, or the members of a `Sweep`, whose checkpoints are in `folder`."""
    config, workdir = setup.config, setup.workdir
    checkpoints = checkpoint = None
    with ExitStack() as stack:
        with distributed.raise_everywhere():
            if jax.process_index() == 0:
                checkpoints = Checkpoints(folder, config.train.save_total_limit)
                stack.enter_context(closing(checkpoints))
                checkpoint = checkpoints.restore()
        checkpoint, saved, step = distributed.broadcast(checkpoint), None, 0
        if checkpoint is not None:
            setup.go_on_from(checkpoint.record)
            saved, step = checkpoint.record["meter"], checkpoint.step
            if step >= setup.total_steps and distributed.broadcast(
                _is_concluded(setup, saved)
            ):
                _describe_complete(setup, checkpoint)
                return
            if checkpoints:
                checkpoints.set_aside_after(step)
            expected = {"state": setup.state_shapes()}
            state = unflatten(expected, checkpoint.arrays)["state"]
            distributed.print_once(f"going on from update {step:,} in {workdir}")
            if change := setup.describe_change(checkpoint.record["config"], step):
                distributed.print_once(change)
        else:
            state = setup.first_state()
        placement = distributed.broadcast(setup.placement())
        state = setup.place(state)
        with distributed.timed("compiling"):
            placement, feed, call = _compile(setup, placement, state, step)
        metrics = setup.metrics(saved)  # its clock leaves compilation out
        with distributed.raise_everywhere():
            setup.report_data(placement, with_memory=placement.tight)
        if checkpoints:
            for run in {id(run): run for run in (setup, *setup.members)}.values():
                write_json(run.workdir / "config.json", run.config.to_dict())
                write_json(run.workdir / "run.json", _start(run, step))
        with naming_memory(placement.name):
            _update(setup, feed, call, state, metrics, checkpoints, last)


def _describe_complete(setup, checkpoint):
    """In the first process; an environment that is newly given calls for evaluate."""
    if jax.process_index() != 0 or setup.config.sweep:
        return
    given = setup.config.eval.environment
    if given == current_names(checkpoint.record["config"])["eval"]["environment"]:
        given = "" if environment_of(setup.config) else "YOUR_ENVIRONMENT"
    exports = not what_hf_lacks(setup.model)
    where = {"environment": given, "exports": exports}
    print(describe_complete(setup.workdir, checkpoint.step, **where))


def _compile(setup, placement, state, step):
    """The train call from `step` on and its feed, which a device has room for.

    Where the plan has promised too much, 'auto' takes the host, in all processes alike.
    """
    calls = setup.intervals(placement.name).calls(step)
    longest = max((count for _, count in calls), default=0)  # 0: all are made
    try:
        with distributed.raise_everywhere():
            feed = setup.feed(placement.name)
        call = setup.train_call(feed)
        with distributed.raise_everywhere():
            if longest:
                feed.compile(call, state, longest)
        return placement, feed, call
    except ValueError as error:
        if placement.name == "host" or setup.config.data.placement != "auto":
            raise
        reason = str(error).rpartition("; ")[0]
    feed = call = None
    gc.collect()  # the store, which a traceback may have held
    placement = Placement("host", reason, placement.plan, tight=True)
    return _compile(setup, placement, state, step)


def _update(setup, feed, call, state, metrics, checkpoints, last):
    """Make the updates; in the first process also leave what a run leaves."""
    config = setup.config
    held_outs, saved = [None], None
    if first := checkpoints is not None:
        held_outs = _held_outs(setup, feed)
        if config.sweep:
            saved = partial(_save_members, setup, metrics)
        else:
            saved = _Page(setup.workdir).saved
    if metrics.step == setup.total_steps:  # it was killed after its last save
        seen = setup.whole(state)
        if first:
            saved(seen, False)
    state = run_updates(
        state,
        call=call,
        feed=feed,
        intervals=setup.intervals(feed.placement),
        metrics=metrics,
        max_bad_updates=config.train.max_bad_updates,
        heartbeat_seconds=config.distributed.heartbeat_seconds,
        why_bad=partial(setup.why_bad, metrics),
        whole=setup.whole,
        writer=_writer(setup, metrics.step) if first else None,
        checkpoints=checkpoints,
        record=setup.record(),
        validation_loss=held_outs[0] and setup.validation_loss(held_outs),
        saved=saved,
        last=last,
    )
    if first:
        _conclude(setup, state, metrics, held_outs)


def _writer(setup, step):
    def writer_of(run, total_steps):
        trackers = open_trackers(
            run.workdir,
            hparams=flatten(run.config.to_dict()),
            wandb=run.config.log.wandb,
            first_step=step + 1,
        )
        return MetricWriter(
            run.workdir, step=step, total_steps=total_steps, trackers=trackers
        )

    if not setup.config.sweep:
        return writer_of(setup, setup.total_steps)
    writers = [writer_of(run, None) for run in setup.members]
    return PopulationWriter(writers, step=step, total_steps=setup.total_steps)


def _held_outs(setup, feed):
    """Of each member; those that see the same returns share theirs."""
    made, found = {}, []
    for run in setup.members:
        if run.held_out is None:
            found.append(None)
            continue
        kind = id(run.held_out.returns_to_go), run.model.condition_on
        if kind not in made:
            scaling = run.statistics()["action_scaling"]
            made[kind] = HeldOut(run.held_out, run.model, feed, scaling)
        found.append(made[kind])
    return found


def _save_members(sweep, metrics, state, is_interrupted) -> None:
    """Each member that has not stopped gets its own checkpoint, at the end and where a
    signal ends the run before it.

    While the other processes are there: orbax asks for them.
    """
    if metrics.step < sweep.total_steps and not is_interrupted:
        return
    for run, own, meter in zip(
        sweep.members, *sweep.split(state, metrics), strict=True
    ):
        if _has_stopped(run, meter):
            continue
        limit = run.config.train.save_total_limit
        with closing(Checkpoints(run.workdir / CHECKPOINTS, limit)) as checkpoints:
            record = run.record() | {"meter": meter.state()}
            checkpoints.save(meter.step, {"state": own}, record)


def _has_stopped(run, meter) -> bool:
    """Whether a member's updates were not finite for too long."""
    return meter.bad_in_a_row >= run.config.train.max_bad_updates


def _conclude(setup, state, metrics, held_outs) -> None:
    """Leave the summary, the pictures and the page; say where everything lies.

    A member of a sweep that has stopped gets nothing of this.
    """
    config, runs = setup.config, []
    for run, own, meter, held_out in zip(
        setup.members, *setup.split(state, metrics), held_outs, strict=True
    ):
        if _has_stopped(run, meter):
            continue
        runs.append((run, own, meter))
        if held_out:
            errors = held_out.evaluate(own.params, run.sampler.trajectories)
            path = run.workdir / "report" / "held_out.json"
            write_json(path, {"step": meter.step, **errors})
    found, acting = [None] * len(runs), _evaluation(setup)
    if acting and config.sweep:
        workdirs = [run.workdir for run, *_ in runs]
        found = act_together(acting, workdirs, setup.workdir)
    elif acting:
        found = [act(acting, setup.workdir)]
    for (run, own, meter), evaluation in zip(runs, found, strict=True):
        scalars = evaluation_scalars(evaluation) if evaluation else {}
        pictures = write_run_page(run.workdir)
        track(run.config, run.workdir, meter.step, scalars, pictures)
        count = sum(leaf.size for leaf in jax.tree.leaves(own.params))
        summary = {**meter.summary(), "num_parameters": count}
        write_json(run.workdir / "summary.json", summary)  # the last: all is written
    if not config.sweep:
        _describe(setup, summary, evaluation)


def _describe(setup, summary, evaluation):
    workdir, target = setup.workdir, None
    if evaluation:
        targets = [actor["target"] for actor in evaluation["actors"]]
        target = max(target for target in targets if target is not None)
    errors = workdir / "report" / "held_out.json"
    held_out = read_json(errors) if setup.held_out and errors.is_file() else None
    last = read_metrics(workdir / "metrics.jsonl")[-1]
    where = {"data_path": setup.config.data.path, "target": target}
    exports = not what_hf_lacks(setup.model)
    print(describe_run(workdir, summary, last, held_out, exports=exports, **where))


def _is_concluded(setup, saved) -> bool:
    """False when the end came between the last save and the last file.

    `saved`: the state of the metrics, of a sweep a list of its members'.
    """
    meters = saved if setup.config.sweep else [saved]
    for run, meter in zip(setup.members, meters, strict=True):
        if meter["bad_in_a_row"] >= setup.config.train.max_bad_updates:
            continue  # a member that has stopped
        path = run.workdir / "summary.json"
        summary = read_json(path) if path.is_file() else {"global_step": 0}
        if summary["global_step"] < setup.total_steps:
            return False
    return True


def _start(setup, step) -> dict:
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
    params = setup.state_shapes().params
    return {
        "total_steps": setup.total_steps,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
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

    def saved(self, state: TrainState, is_interrupted: bool) -> None:
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

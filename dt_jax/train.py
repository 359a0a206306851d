# SPDX-License-Identifier: Apache-2.0
"""From the config to a trained model: wires the other files and runs the loop.

The only reader of the config. A workdir holds one run: started again in it, the run
goes on where its newest good checkpoint stands.
"""

import fcntl
import json
import math
import os
import socket
import sys
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from dt_jax import hosts, report, trading
from dt_jax.checkpoint import Checkpoints, load_trained, unflatten
from dt_jax.config_file import flatten
from dt_jax.evaluate import check_evaluation, collect, environment_of, evaluate
from dt_jax.evaluation import describe_evaluation
from dt_jax.feed import Feed, choose_placement, memory_plan
from dt_jax.files import replacing, scratch
from dt_jax.held_out import HeldOut
from dt_jax.hf_weights import export_hf, read_json
from dt_jax.interruption import postponed
from dt_jax.metrics import Meter, MetricWriter, read_metrics
from dt_jax.model import DecisionTransformer, init_params, model_fields
from dt_jax.optimizer import make_optimizer, make_schedule
from dt_jax.page import write_page
from dt_jax.process import give_back_memory
from dt_jax.readers import load_trajectories, save_trajectories
from dt_jax.segments import SegmentSampler
from dt_jax.train_step import (
    TrainState,
    find_bad_segments,
    init_state,
    make_train_call,
    replicate,
)

__all__ = ["collect", "evaluate", "export", "inspect", "train"]  # main.py's modes

SIMULATED_MARKET = "simulated_market"  # the embedded dataset's folder in the workdir

# Fields of the model that no config key sets; HF's files may have others than ours.
HF_ONLY_FIELDS = (
    "n_positions",
    "vocab_size",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
)

# A run may go on with other values of these: they do not change what is learned, or
# (the number of updates) are changed on purpose. The data is known by its fingerprint.
FREE_KEYS = {
    "data.path",
    "data.placement",
    "eval.environment",
    "eval.environment_kwargs",
    "eval.targets",
    "eval.episodes",
    "eval.beside",
    "eval.reference_returns",
    "collect.actor",
    "collect.episodes",
    "train.num_train_epochs",
    "train.max_steps",
    "train.updates_per_call",
    "train.max_bad_updates",
    "train.logging_steps",
    "train.save_steps",
    "train.save_total_limit",
    "hosts.cluster",
    "hosts.initialization_timeout",
    "hosts.heartbeat_timeout_seconds",
    "hosts.heartbeat_seconds",
    "log.wandb",
}


def join(config: ConfigDict) -> None:
    """Before all else: meet the other processes, if the cluster has started several."""
    hosts.join(
        cluster=config.hosts.cluster,
        initialization_timeout=config.hosts.initialization_timeout,
        heartbeat_timeout_seconds=config.hosts.heartbeat_timeout_seconds,
    )


def inspect(config: ConfigDict, workdir: Path) -> None:
    """Print the data report and leave it as `data_report.json`; train nothing."""
    run = _Run(config, workdir)
    _report_data(run, jax.eval_shape(run.first_state, run.given))


def export(config: ConfigDict, workdir: Path) -> None:
    """Write the newest good checkpoint of the run to `hf/`, for `from_pretrained`."""
    del config  # the run has its own
    trained = load_trained(workdir)
    model = DecisionTransformer(**trained.fields)
    export_hf(workdir / "hf", model, trained.params, trained.normalization)
    facts = [read_json(workdir / name) for name in ("config.json", "data_report.json")]
    records = read_metrics(workdir / "metrics.jsonl")
    path = workdir / "report" / "evaluation.json"
    found = describe_evaluation(read_json(path)) if path.is_file() else ""
    card = report.model_card(*facts, records, trained.fields, found)
    with replacing(workdir / "hf" / "README.md") as unfinished:
        unfinished.write_text(card)
    print(f"{workdir / 'hf'}: DecisionTransformerModel.from_pretrained opens it")


def train(config: ConfigDict, workdir: Path) -> None:
    """Train, or go on training, until the run is complete.

    Raises:
      ValueError, FileNotFoundError: the config, the data or the checkpoints are at
        fault; nothing of an existing run has been changed.
      OSError: something could not be read or written (a full disk, say); the last good
        checkpoint is kept.
      SystemExit: 3 after `train.max_bad_updates` in a row whose loss or gradient was
        not finite, said in one line; 128 + the signal's number after SIGTERM or SIGINT
        during updates, the state saved.
    """
    try:
        _train(config, workdir)
    except FloatingPointError as error:
        if str(error):
            print("error:", error, file=sys.stderr)
        raise SystemExit(3) from None
    except OSError as error:
        if error.errno is None or error.filename:
            raise
        raise OSError(f"{workdir}: {error.strerror}") from error  # of a write


def _train(config, workdir):
    def prepare():
        run = _Run(config, workdir)
        check_evaluation(config, run.model)
        return run

    run, checkpoints, checkpoint = hosts.in_turn(prepare), None, None
    _check_same_start(run)
    with ExitStack() as stack:
        with hosts.together():
            if jax.process_index() == 0:
                stack.enter_context(_alone(workdir))
                limit = config.train.save_total_limit
                checkpoints = Checkpoints(workdir / "checkpoints", limit)
                stack.enter_context(closing(checkpoints))
                checkpoint = checkpoints.restore()
        checkpoint, meter = hosts.share(checkpoint), None
        if checkpoint is not None:
            _check_same_run(run, checkpoint.record)
            meter, step = checkpoint.record["meter"], checkpoint.step
            if step >= run.total_steps and hosts.share(_is_concluded(run)):
                hosts.say(f"{workdir}: complete at update {step:,}, nothing to do")
                return
            if checkpoints:
                checkpoints.set_aside_after(step)
            expected = jax.eval_shape(run.first_state, run.given)
            state = unflatten({"state": expected}, checkpoint.arrays)["state"]
            hosts.say(f"{workdir}: going on from update {step:,}")
        else:
            state = jax.jit(run.first_state)(run.given)
        placement = hosts.share(_report_data(run, state))
        feed = Feed(run.sampler, placement, config.data.store_dtype)
        if checkpoints:
            _write_json(workdir / "config.json", config.to_dict())
        _loop(run, feed, replicate(state), run.meter(meter), checkpoints)


class _Run:
    """What the config says, built and checked: everything but state."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        data = config.data
        if config.model.max_ep_len < data.max_ep_len:
            raise ValueError(
                f"model.max_ep_len={config.model.max_ep_len} is less than "
                f"data.max_ep_len={data.max_ep_len}: the table has no row for the last "
                "timesteps"
            )
        positive = ("updates_per_call", "logging_steps", "save_steps")
        epochs = ("num_train_epochs",) if config.train.max_steps <= 0 else ()
        for key in (*positive, "save_total_limit", "max_bad_updates", *epochs):
            if config.train[key] < 1:
                raise ValueError(
                    f"train.{key}={config.train[key]}: expected at least 1"
                )
        seconds = config.hosts.heartbeat_seconds
        if seconds < 1:
            raise ValueError(f"hosts.heartbeat_seconds={seconds}: expected at least 1")
        if config.log.wandb and not find_spec("wandb"):
            raise ValueError("log.wandb=True needs the package: pip install wandb")
        self.trajectories = load_trajectories(
            data.path or _simulated_market(workdir),
            split_on_dones=data.split_on_dones,
            discount=data.discount,
        )
        training, held_out = self.trajectories.split(data.validation_fraction)
        make_sampler = partial(
            SegmentSampler,
            batch_size=config.train.batch_size,
            context_length=data.context_length,
            max_ep_len=data.max_ep_len,
            return_scale=data.return_scale,
            weighting=data.weighting,
            seed=config.seed,
        )
        self.sampler = make_sampler(training)
        self.held_out = None if held_out is None else make_sampler(held_out)
        self.model = DecisionTransformer(
            state_dim=self.trajectories.state_dim,
            act_dim=self.trajectories.act_dim,
            **config.model,
        )
        self.given = None  # the weights of train.init_from
        if config.train.init_from:
            trained = load_trained(config.train.init_from)
            self.model = _take_over(self.model, trained.fields, config.train.init_from)
            self.given = trained.params
        self.steps_per_epoch = math.ceil(
            training.num_trajectories / config.train.batch_size
        )
        self.total_steps = (
            config.train.max_steps
            if config.train.max_steps > 0
            else config.train.num_train_epochs * self.steps_per_epoch
        )
        # Refused here if at all: before anything is written.
        plan = memory_plan(
            self.sampler, config.train.updates_per_call, 0, data.store_dtype
        )
        choose_placement(data.placement, plan)
        optimizer = config.optimizer
        self.schedule = make_schedule(
            total_steps=self.total_steps,
            learning_rate=optimizer.learning_rate,
            warmup_ratio=optimizer.warmup_ratio,
            lr_scheduler_type=optimizer.lr_scheduler_type,
        )
        self.optimizer = make_optimizer(total_steps=self.total_steps, **optimizer)

    def first_state(self, given: dict | None) -> TrainState:
        """Of the given weights, or when there are none of weights drawn by the seed."""
        if given is None:
            given = init_params(self.model, jax.random.key(self.config.seed))
        return init_state(given, self.optimizer)

    def meter(self, saved: dict | None) -> Meter:
        # All of them before the first call: asked for later, a rate would wait on the
        # device until the call that runs has ended.
        rates = jax.jit(jax.vmap(self.schedule))(np.arange(self.total_steps))
        return Meter(
            logging_steps=self.config.train.logging_steps,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=self.config.train.batch_size,
            learning_rate=np.asarray(rates).item,
            max_bad_updates=self.config.train.max_bad_updates,
            saved=saved,
        )

    def calls(self, step: int):
        """(first step, number of updates) of each call.

        A save ends a call, and so does a record if it tells of held-out data.
        """
        train = self.config.train
        while step < self.total_steps:
            to_save = train.save_steps - step % train.save_steps
            count = min(train.updates_per_call, to_save, self.total_steps - step)
            if self.held_out:
                count = min(count, train.logging_steps - step % train.logging_steps)
            yield step, count
            step += count

    def saves_at(self, step: int) -> bool:
        return step % self.config.train.save_steps == 0 or step == self.total_steps

    def logs_at(self, step: int) -> bool:
        return step % self.config.train.logging_steps == 0 or step == self.total_steps


def _loop(run, feed, state, meter, checkpoints):
    """Call after call; the losses of a call are looked at while the next one runs."""
    config, workdir = run.config, run.workdir
    call = make_train_call(
        run.model,
        run.optimizer,
        state_mean=run.trajectories.state_mean,
        state_std=run.trajectories.state_std,
        seed=config.seed,
        fetch=feed.fetch,
    )
    held_out = writer = None
    if first := checkpoints is not None:
        held_out = run.held_out and HeldOut(run.held_out, run.model, feed)
        total, wandb = run.total_steps, config.log.wandb
        writer = MetricWriter(workdir, step=meter.step, total_steps=total, wandb=wandb)

    def look(metrics, validation_loss):
        if metrics is None:
            return
        with hosts.alive():
            losses, grad_norms = jax.device_get(metrics)
        bad = np.flatnonzero(~(np.isfinite(losses) & np.isfinite(grad_norms)))
        for i in bad if first else ():
            # As they came: the records have no mean of them, and JSON no NaN.
            logging.warning(
                "update %d skipped: loss %s, gradient norm %s",
                meter.step + i + 1,
                losses[i],
                grad_norms[i],
            )
        for record in meter.update(losses, grad_norms):
            if validation_loss is not None:
                record["validation_loss"] = float(validation_loss)
            if first:
                writer.write(record)
        if first:
            writer.progress(meter.step)
        if meter.bad_in_a_row >= config.train.max_bad_updates:
            explanation = _explain(run, meter, state) if hosts.part() else ""
            raise FloatingPointError(explanation)

    items, vote = feed.items(run.calls(meter.step)), hosts.Vote()
    beat = hosts.heartbeat(config.hosts.heartbeat_seconds, lambda: meter.step)
    with postponed() as caught:
        with closing(writer) if first else nullcontext(), closing(items), beat:
            running = None, None
            for item in items:
                with hosts.alive():
                    state, metrics = call(state, feed.store, item)
                look(*running)
                stop = vote(caught)
                reached = meter.step + len(metrics.loss)
                validated = held_out and run.logs_at(reached)
                running = metrics, held_out.loss(state.params) if validated else None
                if not (stop or run.saves_at(reached)):
                    continue
                look(*running)
                running = None, None
                if meter.bad_in_a_row and not stop and reached < run.total_steps:
                    # A run about to stop must not push out its good checkpoints.
                    continue
                if first:
                    checkpoints.save(
                        reached,
                        {"state": state},
                        {
                            "config": config.to_dict(),
                            "model": model_fields(run.model),
                            "normalization": _normalization(run),
                            "fingerprint": run.trajectories.fingerprint(),
                            "meter": meter.state(),
                        },
                    )
                give_back_memory()
                if stop:
                    break
        if first:
            checkpoints.wait()
        hosts.part()
    if first:
        _conclude(run, meter, state, held_out)


def _explain(run, meter, state) -> str:
    """Why the run stops: the first bad update, and which of its data is to blame."""
    first = meter.step - meter.bad_in_a_row
    episodes_B, starts_B = run.sampler.draw(first)
    bad_B = find_bad_segments(
        jax.device_get(state.params),
        run.sampler.gather(episodes_B, starts_B),
        step=first,
        model=run.model,
        state_mean=run.trajectories.state_mean,
        state_std=run.trajectories.state_std,
        key=jax.random.key(run.config.seed),
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
        f"updates {first + 1} to {meter.step}, train.max_bad_updates in a row, gave a "
        "loss or gradient that is not finite; in the first one's batch "
        f"{cause}; the checkpoints before it are kept"
    )


def _report_data(run, state) -> str:
    """Print and save the data report; returns where the store will lie."""
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    plan = memory_plan(
        run.sampler,
        run.config.train.updates_per_call,
        state_bytes,
        run.config.data.store_dtype,
    )
    placement, reason = choose_placement(run.config.data.placement, plan)
    if jax.process_index() == 0:
        facts = report.data_report(
            run.sampler,
            whole=run.trajectories,
            action_tanh=run.config.model.action_tanh,
            placement=f"{placement} ({reason})",
            plan=plan,
        )
        print(report.describe(facts), flush=True)
        _write_json(run.workdir / "data_report.json", facts)
    return placement


def _check_same_start(run) -> None:
    """Refuse to train with processes that were given other values or other data."""
    mine = flatten(run.config.to_dict()) | {"data": run.trajectories.fingerprint()}
    firsts = hosts.share(mine)
    with hosts.together():
        for key in sorted(mine.keys() - {"data.path"}):
            if mine[key] != firsts[key]:
                raise ValueError(
                    f"{key}={mine[key]} here, but {firsts[key]} in process 0; give all "
                    "processes the same command and the same data"
                )


def _check_same_run(run, record) -> None:
    """Refuse to go on with other data, or with a config that means another run."""
    before, now = flatten(record["config"]), flatten(run.config.to_dict())
    for key in sorted((before.keys() | now) - FREE_KEYS):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"{run.workdir} holds a run with {key}={before.get(key)}, but now "
                f"{key}={now.get(key)}; choose another --workdir for a new run"
            )
    for key in ("state_dim", "act_dim"):
        if record["model"][key] != (found := getattr(run.model, key)):
            raise ValueError(
                f"{run.workdir} holds a run with {key}={record['model'][key]}, but "
                f"data.path={run.config.data.path!r} has {key}={found}; choose another "
                "--workdir for a new run"
            )
    fingerprint = run.trajectories.fingerprint()
    if record["fingerprint"] != fingerprint:
        raise ValueError(
            f"{run.workdir} holds a run on data of fingerprint "
            f"{record['fingerprint']}, but data.path={run.config.data.path!r} has "
            f"{fingerprint}; choose another --workdir for a new run"
        )


def _conclude(run, meter, state, held_out) -> None:
    """Leave the summary, the pictures and the page; say where everything lies."""
    workdir = run.workdir
    # Of a shorter run: what is written last tells that all is.
    (workdir / "report" / "index.html").unlink(missing_ok=True)
    records = read_metrics(workdir / "metrics.jsonl")
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    summary = {**meter.summary(), "num_parameters": num_parameters}
    (workdir / "report").mkdir(exist_ok=True)
    report.draw_loss(workdir / "report" / "loss.png", records)
    errors = held_out and held_out.evaluate(state.params, run.sampler.trajectories)
    if errors:
        _write_json(workdir / "report" / "held_out.json", errors)
        report.draw_held_out(workdir / "report" / "held_out.png", errors)
    _write_json(workdir / "summary.json", summary)
    if environment_of(run.config):
        evaluate(run.config, workdir)
    else:
        write_page(workdir)
    print(report.describe_run(workdir, summary, records[-1]["loss"], errors))


def _is_concluded(run) -> bool:
    """False when the end came between the last save and the page, the last file."""
    path = run.workdir / "summary.json"
    summary = read_json(path) if path.is_file() else {"global_step": 0}
    page = run.workdir / "report" / "index.html"
    return summary["global_step"] >= run.total_steps and page.is_file()


def _normalization(run) -> dict:
    """What acting needs of the data and its recipe: kept with the weights."""
    return {
        "state_mean": run.trajectories.state_mean.tolist(),
        "state_std": run.trajectories.state_std.tolist(),
        "return_scale": run.config.data.return_scale,
        "discount": run.config.data.discount,
        "context_length": run.config.data.context_length,
        "max_ep_len": run.config.data.max_ep_len,
    }


def _take_over(model, fields, source) -> DecisionTransformer:
    """The model of `train.init_from`, dropout and precision by the config."""
    try:
        DecisionTransformer(**fields)
    except ValueError as error:
        raise ValueError(f"train.init_from={source}: {error}") from None
    mine = model_fields(model)
    chosen = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range", "dtype")
    wrong = [
        key for key in {*mine} - {*chosen, *HF_ONLY_FIELDS} if fields[key] != mine[key]
    ]
    dims = [key for key in ("state_dim", "act_dim") if key in wrong]
    if dims:
        raise ValueError(
            f"train.init_from={source} has {dims[0]}={fields[dims[0]]}, but the data "
            f"has {mine[dims[0]]}"
        )
    if wrong:
        flags = " ".join(f"--config.model.{key}={fields[key]}" for key in sorted(wrong))
        raise ValueError(f"train.init_from={source} is another model; add {flags}")
    return model.clone(**{key: fields[key] for key in HF_ONLY_FIELDS})


def _simulated_market(workdir: Path) -> Path:
    """The embedded dataset, made the first time it is asked for."""
    path = workdir / SIMULATED_MARKET
    if not path.exists():
        print(f"no data.path: simulating a market in {path}", flush=True)
        with _alone(workdir):
            save_trajectories(path, trading.simulated_episodes())
    return path


@contextmanager
def _alone(workdir: Path):
    """Refuse a second run in the workdir; the lock dies with its process."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / ".lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{workdir} is in use by process {file.read()}; wait for its end, or "
                "choose another --workdir"
            ) from None
        except OSError as error:
            logging.warning("no lock on %s (%s): start no second run", workdir, error)
        if not os.fstat(file.fileno()).st_nlink:  # the run before has just removed it
            raise ValueError(f"{workdir} was in use a moment ago; try again")
        file.truncate(0)
        print(os.getpid(), "on", socket.gethostname(), end="", file=file, flush=True)
        with scratch(path):
            yield


def _write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n")

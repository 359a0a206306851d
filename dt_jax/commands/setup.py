# SPDX-License-Identifier: Apache-2.0
"""From a config to what a run consists of: data, model, optimiser, schedule.

Everything that is built before the first update stands here, checked, without state.
"""

import copy
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from dt_jax.acting.environments import make_environments
from dt_jax.commands.evaluate import (
    check_evaluation,
    environment_kwargs,
    environment_of,
)
from dt_jax.commands.members import MEMBERS, SIMULATED_MARKET, members_of
from dt_jax.commands.same_run import check_same_run
from dt_jax.config import current_names
from dt_jax.data.episodes import describe_actions
from dt_jax.data.readers import load_trajectories
from dt_jax.data.segments import SegmentSampler, action_scaling
from dt_jax.data.writer import save_trajectories
from dt_jax.model.decision_transformer import (
    DecisionTransformer,
    init_params,
    model_fields,
)
from dt_jax.reporting.data_report import data_report, describe_data
from dt_jax.system import distributed
from dt_jax.system.files import another, locked, replacing, scratch, write_json
from dt_jax.system.process import compute_deterministically
from dt_jax.system.text import check_choice
from dt_jax.trading.simulation import simulated_episodes
from dt_jax.training.checkpoint import load_trained
from dt_jax.training.feed import Feed
from dt_jax.training.loop import Intervals, describe_bad_updates
from dt_jax.training.metrics import RunningMetrics
from dt_jax.training.optimizer import make_optimizer, make_schedule
from dt_jax.training.placement import (
    Placement,
    best_updates_per_call,
    choose_placement,
    memory_plan,
)
from dt_jax.training.trackers import check_wandb
from dt_jax.training.train_call import make_train_call, place
from dt_jax.training.train_step import TrainState, init_state
from dt_jax.training.validation import HeldOut

DATA_REPORT = "data_report.json"
ACTION_SCALINGS = ("auto", "none")
RELATIVE_TO = ("nothing", "timestep")

# Fields of the model that no config key sets; HF's files may have others than ours.
HF_ONLY_FIELDS = (
    "n_positions",
    "vocab_size",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
)

# It runs once, so it is compiled without optimising, which takes half the time; in one
# process once for all runs of equal models.
_draw_params = jax.jit(
    init_params,
    static_argnums=0,
    compiler_options={"xla_backend_optimization_level": 0},
)


def join(config: ConfigDict) -> None:
    """Before JAX starts: how XLA computes, and a meeting with the other processes."""
    if config.train.deterministic:
        compute_deterministically()
    distributed.join(
        cluster=config.distributed.cluster,
        initialization_timeout=config.distributed.initialization_timeout,
        heartbeat_timeout_seconds=config.distributed.heartbeat_timeout_seconds,
    )


class Setup:
    """What the config says, built and checked: everything but state.

    Attributes:
      members: the runs that are to be made: itself alone, or those of `config.sweep`
        on the same data.

    Raises:
      ValueError, FileNotFoundError: the config, the data or the weights to start from
        are at fault, or what is to be done after training (`check_evaluation`);
        nothing has been written but the data where it had to be converted.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir, self.members = config, workdir, [self]
        data, members = config.data, members_of(config)
        if config.model.max_ep_len < data.max_ep_len:
            raise ValueError(
                f"model.max_ep_len={config.model.max_ep_len} is less than "
                f"data.max_ep_len={data.max_ep_len}: the table has no row for the last "
                "timesteps"
            )
        if config.train.updates_per_call < 0:
            raise ValueError(
                f"train.updates_per_call={config.train.updates_per_call}: expected 0 "
                "(the best) or more"
            )
        positive = ("logging_steps", "save_steps")
        for key in (*positive, "save_total_limit", "max_bad_updates"):
            if config.train[key] < 1:
                raise ValueError(
                    f"train.{key}={config.train[key]}: expected at least 1"
                )
        epochs = config.train.num_train_epochs
        if config.train.max_steps <= 0 and not 0 < epochs < math.inf:
            raise ValueError(f"train.num_train_epochs={epochs}: expected above 0")
        seconds = config.distributed.heartbeat_seconds
        if seconds < 1:
            raise ValueError(
                f"distributed.heartbeat_seconds={seconds}: expected at least 1"
            )
        check_wandb(config.log.wandb)
        with _dataset(data.path, workdir) as path:
            self._read(path)
            self._build()
            self._build_members(members)
            # Refused here if at all: before anything is written.
            self.placement()
            check_evaluation(config, self.model, self.trajectories.about)

    def _read(self, path):
        data, workdir = self.config.data, self.workdir
        with distributed.timed(f"reading {data.path or path.name}"):
            self.trajectories = load_trajectories(
                path,
                split=data.split,
                cache=data.cache or workdir.absolute().parent / "converted",
                statistics=data.statistics,
                split_on_dones=data.split_on_dones,
                discount=data.discount,
                wait=False,  # values are checked while XLA compiles: see report_data
            )

    def _build(self):
        config, data = self.config, self.config.data
        training, held_out = self.trajectories.split(data.validation_fraction)
        check_choice("data.relative_to", data.relative_to, RELATIVE_TO)
        self.mean_returns_to_go = None  # what is subtracted at each timestep
        if data.relative_to == "timestep":
            means_T = training.mean_returns_to_go(data.max_ep_len)
            relative = self.trajectories.relative_to(means_T)
            training, held_out = relative.split(data.validation_fraction)
            self.mean_returns_to_go = means_T
        make_sampler = partial(
            SegmentSampler,
            batch_size=config.train.batch_size,
            context_length=data.context_length,
            max_ep_len=data.max_ep_len,
            return_scale=data.return_scale,
            weighting=data.weighting,
            seed=config.seed,
        )
        self.sampler = make_sampler(training, keep_best=data.keep_best)
        self.held_out = None if held_out is None else make_sampler(held_out)
        self.model = DecisionTransformer(
            state_dim=self.trajectories.state_dim,
            act_dim=self.trajectories.act_dim,
            action_sizes=self.trajectories.action_sizes,
            **config.model,
        )
        self.given = None  # the weights of train.init_from
        if config.train.init_from:
            trained = load_trained(config.train.init_from)
            self.model = _take_over(self.model, trained.fields, config.train.init_from)
            self.given = trained.params
        self.action_bounds = _action_bounds(config, self.trajectories)
        self.steps_per_epoch = math.ceil(
            training.num_trajectories / config.train.batch_size
        )
        self.total_steps = self._total_steps(config.train)
        self.schedule = self._schedule(self.total_steps)
        self.optimizer = make_optimizer(
            total_steps=self.total_steps,
            predict_return=config.model.predict_return,
            **config.optimizer,
        )
        self._state_of = jax.jit(partial(init_state, optimizer=self.optimizer))

    def _total_steps(self, train: Mapping) -> int:
        if train["max_steps"] > 0:
            return train["max_steps"]
        return math.ceil(train["num_train_epochs"] * self.steps_per_epoch)

    def _schedule(self, total_steps):
        optimizer = self.config.optimizer
        return make_schedule(
            total_steps=total_steps,
            learning_rate=optimizer.learning_rate,
            warmup_ratio=optimizer.warmup_ratio,
            lr_scheduler_type=optimizer.lr_scheduler_type,
        )

    def describe_change(self, saved: Mapping, step: int) -> str:
        """What another number of updates does to the schedule of a run; '' if nothing.

        `saved`: the config with which it has come to `step`.
        """
        before = self._total_steps(current_names(saved)["train"])
        if before == self.total_steps:
            return ""
        old = float(self._schedule(before)(step - 1))
        new = float(self.schedule(step))
        if old == new:
            return ""
        back = "back " if new > old else ""
        return (
            f"learning rate goes from {old:.2g} {back}to {new:.2g}: "
            f"{before:,} -> {self.total_steps:,} updates\n"
            f"to start afresh, {another(self.workdir)}"
        )

    def _build_members(self, configs):
        """Of a sweep; members that scale and discount alike share the returns."""
        made, kinds = [], {}
        for name, config in configs.items():
            member = self._member(config, self.workdir / MEMBERS / name)
            kind = config.data.return_scale, config.data.discount
            for part, sampler in enumerate((member.sampler, member.held_out)):
                if sampler is not None:
                    shared = kinds.setdefault((part, *kind), sampler.returns_to_go)
                    sampler.returns_to_go = shared
            made.append(member)
        self.members = made or [self]

    def _member(self, config, workdir):
        member = copy.copy(self)
        member.config, member.workdir, member.members = config, workdir, [member]
        if config.data.discount != self.config.data.discount:
            returns_to_go = self.trajectories.discounted(config.data.discount)
            member.trajectories = replace(
                self.trajectories, returns_to_go=returns_to_go
            )
        member._build()
        return member

    def first_state(self, seed: int | None = None) -> TrainState:
        """Of `train.init_from`, or where that is empty of weights drawn by the seed."""
        seed = self.config.seed if seed is None else seed
        key = jax.random.key(np.uint32(seed))
        return self._state_of(self.given or _draw_params(self.model, key))

    def state_shapes(self) -> TrainState:
        """What `first_state` gives, as shapes and dtypes."""
        key = jax.eval_shape(jax.random.key, 0)
        params = self.given or _draw_params.eval_shape(self.model, key)
        return self._state_of.eval_shape(params)

    def place(self, state: TrainState) -> TrainState:
        """The state as the train call takes and returns it."""
        return place(state)

    def whole(self, state: TrainState) -> TrainState:
        """What the train call returns, as it is saved."""
        return state

    def split(self, state: TrainState, metrics: RunningMetrics) -> tuple[list, list]:
        """The state and the metrics of each of the `members`."""
        return [state], [metrics]

    def validation_loss(self, held_outs: list[HeldOut]) -> Callable:
        """params -> their loss on what is held out."""
        return held_outs[0].loss

    def why_bad(self, metrics: RunningMetrics, state: TrainState) -> str:
        """The cause of so many bad updates that the run stops."""
        return describe_bad_updates(
            state,
            metrics,
            self.sampler,
            model=self.model,
            key=jax.random.key(self.config.seed),
            **self.statistics(),
        )

    def feed(self, placement: str) -> Feed:
        """What gives the train call its batches."""
        return Feed(self.sampler, placement, self.config.data.store_dtype)

    def train_call(self, feed: Feed) -> Callable:
        """The updates of a call, see `make_train_call`."""
        return make_train_call(
            self.model,
            self.optimizer,
            seed=self.config.seed,
            fetch=feed.fetch,
            **self.statistics(),
        )

    def rates(self) -> np.ndarray:
        """T float32, the learning rate of each update.

        All of them before the first call: asked for later, a rate would wait on the
        device until the call that runs has ended.
        """
        rates = jax.jit(jax.vmap(self.schedule))(np.arange(self.total_steps))
        return np.asarray(rates)

    def metrics(self, saved: dict | None) -> RunningMetrics:
        return RunningMetrics(
            logging_steps=self.config.train.logging_steps,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=self.config.train.batch_size,
            learning_rate=self.rates().item,
            max_bad_updates=self.config.train.max_bad_updates,
            saved=saved,
            warns=jax.process_index() == 0,
        )

    def intervals(self, placement: str) -> Intervals:
        train = self.config.train
        return Intervals(
            total_steps=self.total_steps,
            updates_per_call=train.updates_per_call or best_updates_per_call(placement),
            logging_steps=train.logging_steps,
            save_steps=train.save_steps,
            validates=self.held_out is not None,
        )

    def statistics(self) -> dict:
        """What an update needs to know of the data."""
        bounds = self.action_bounds
        return {
            "state_mean": self.trajectories.state_mean,
            "state_std": self.trajectories.state_std,
            "action_scaling": bounds and action_scaling(*bounds),
        }

    def record(self) -> dict:
        """What is saved with the weights: it tells which run they are of, and what
        acting needs of the data and its recipe."""
        data, others = self.config.data, {}
        if self.action_bounds:
            low_A, high_A = (bound.tolist() for bound in self.action_bounds)
            others = {"action_low": low_A, "action_high": high_A}
        if self.mean_returns_to_go is not None:
            others["mean_returns_to_go"] = self.mean_returns_to_go.tolist()
        return {
            "config": self.config.to_dict(),
            "model": model_fields(self.model),
            "normalization": {
                "state_mean": self.trajectories.state_mean.tolist(),
                "state_std": self.trajectories.state_std.tolist(),
                "return_scale": data.return_scale,
                "discount": data.discount,
                "context_length": data.context_length,
                "max_ep_len": data.max_ep_len,
                **others,
            },
            "fingerprint": self.trajectories.fingerprint(),
        }

    def go_on_from(self, record: dict) -> None:
        """Refuse a record of another run; what it says of the actions goes on.

        Their bounds may come of `eval.environment`, which another command leaves out.
        """
        check_same_run(self.workdir, self.config, self.trajectories, self.model, record)
        saved = record["normalization"]
        self.action_bounds = None
        if "action_low" in saved:
            bounds = saved["action_low"], saved["action_high"]
            self.action_bounds = tuple(map(np.array, bounds))

    def placement(self) -> Placement:
        """Where the store is to lie."""
        leaves = jax.tree.leaves(self.state_shapes())
        state_bytes = sum(x.size * x.dtype.itemsize for x in leaves)
        data, train = self.config.data, self.config.train
        plan = memory_plan(
            self.sampler, train.updates_per_call, state_bytes, data.store_dtype
        )
        return choose_placement(data.placement, plan)

    def report_data(self, placement: Placement, *, with_memory: bool) -> None:
        """Print and save the data report, once all values are checked.

        Raises:
          ValueError: one of them is at fault.
        """
        self.trajectories.facts()
        if jax.process_index() == 0:
            facts = self.data_facts(placement)
            print(describe_data(facts, with_memory=with_memory), flush=True)
            write_json(self.workdir / DATA_REPORT, facts)

    def data_facts(self, placement: Placement) -> dict:
        """What the data report says."""
        return data_report(
            self.sampler,
            whole=self.trajectories,
            action_bounds=self.action_bounds,
            action_tanh=self.config.model.action_tanh,
            relative_to=self.config.data.relative_to,
            placement=f"{placement.name} ({placement.reason})",
            plan=placement.plan,
        )


def _action_bounds(config, trajectories):
    """What the actions are scaled by: low A and high A, or None where they need not be.

    The bounds of `eval.environment`, else those that the data knows of its own one,
    made wider by what it holds.
    """
    check_choice("data.action_scaling", config.data.action_scaling, ACTION_SCALINGS)
    wanted = config.data.action_scaling == "auto" and config.model.action_tanh
    if not wanted or trajectories.action_sizes:
        return None
    low_A, high_A = trajectories.action_range()
    if (low_A >= -1).all() and (high_A <= 1).all():
        return None
    about = trajectories.about
    if name := environment_of(config):
        (environment,) = make_environments(name, environment_kwargs(config), 1)
        about = describe_actions(environment.action_space)
        environment.close()
    known_low_A, known_high_A = about.get("action_bounds", (low_A, high_A))
    if np.shape(known_low_A) == low_A.shape:
        low_A, high_A = np.minimum(known_low_A, low_A), np.maximum(known_high_A, high_A)
    return low_A, high_A


def _take_over(model, fields, source) -> DecisionTransformer:
    """The model of `train.init_from`, dropout and precision by the config."""
    try:
        DecisionTransformer(**fields)
    except ValueError as error:
        raise ValueError(f"train.init_from={source}: {error}") from None
    fields = model_fields(DecisionTransformer(**fields))
    mine = model_fields(model)
    chosen = (
        *("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        *("initializer_range", "dtype", "condition_on", "predict_return"),
    )
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


@contextmanager
def _dataset(path: str, workdir: Path) -> Iterator[str | Path]:
    """The folder of the data; without a path, of the embedded dataset in the workdir.

    Made the first time it is asked for, it is put there once the block has ended well.
    """
    market = workdir / SIMULATED_MARKET
    if path or market.exists():
        yield path or market
        return
    folder = Path(tempfile.mkdtemp())
    with scratch(folder):
        with distributed.timed("no data.path: simulating a market"):
            save_trajectories(folder / SIMULATED_MARKET, simulated_episodes())
        yield folder / SIMULATED_MARKET
        with locked(workdir), replacing(market) as unfinished:
            shutil.copytree(folder / SIMULATED_MARKET, unfinished, dirs_exist_ok=True)

# SPDX-License-Identifier: Apache-2.0
"""From a trained run to `report/`: episodes for each target, figures, one page."""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from dt_jax.acting.actors import Actor, load_actor, random_actor
from dt_jax.acting.checked_env import probe
from dt_jax.acting.environments import (
    check_spaces,
    describe_rewards,
    make_environments,
)
from dt_jax.acting.policy import Policies, Policy
from dt_jax.acting.rollout import roll_out, roll_out_targets
from dt_jax.commands.members import MEMBERS, clone_workdir, members_of
from dt_jax.config import flatten, naming_keys
from dt_jax.model.decision_transformer import DecisionTransformer
from dt_jax.reporting.evaluation import (
    RANDOM,
    ActorResult,
    evaluation_report,
    evaluation_scalars,
)
from dt_jax.reporting.evaluation_tables import describe_evaluation
from dt_jax.reporting.html_page import Picture
from dt_jax.reporting.population import (
    POPULATION,
    describe_population,
    write_population,
)
from dt_jax.reporting.run_page import EVALUATIONS, PAGE, write_run_page
from dt_jax.reporting.style import to_png
from dt_jax.system.files import read_json, write_json
from dt_jax.system.text import fit
from dt_jax.trading import backtest
from dt_jax.trading.environment import TradingEnv
from dt_jax.training.checkpoint import load_trained
from dt_jax.training.trackers import check_wandb, open_trackers

SIMULATED = "dt_jax/SimulatedTrading-v0"  # where the embedded dataset comes from
AUTO = "auto"  # a target: the one that the data report has chosen
TARGET_QUANTILES = ("10 %", "median", "90 %", "max")  # when the config names none


@naming_keys()
def evaluate(config: ConfigDict, workdir: Path) -> dict:
    """Let the newest good checkpoint act towards each target; write what came of it.

    Returns:
      What `report/evaluation.json` holds: see `evaluation_report`.

    Raises:
      ValueError, FileNotFoundError: there is no trained run, or the environment, the
        targets or the baselines do not fit it.
    """
    if config.sweep:
        return _evaluate_sweep(config, workdir)
    found = act(config, workdir)
    pictures = write_run_page(workdir)
    track(config, workdir, found["step"], evaluation_scalars(found), pictures)
    print(fit(f"  {workdir / PAGE}  all of it on one page"))
    return found


def _evaluate_sweep(config, workdir):
    """Of all members that came to the end; what population.json then holds."""
    names = list(members_of(config))
    runs = [workdir / MEMBERS / name for name in names]
    if not (workdir / POPULATION).is_file():
        raise FileNotFoundError(
            f"{workdir / POPULATION}: not found: the sweep has not come to its end; "
            "without --mode=evaluate it goes on, and a member that was stopped with it "
            f"can be evaluated alone: --workdir={runs[0]}"
        )
    ended = [run for run in runs if (run / "summary.json").is_file()]
    every = act_together(config, ended, workdir)
    for run, found in zip(ended, every, strict=True):
        track(
            config, run, found["step"], evaluation_scalars(found), write_run_page(run)
        )
    found = write_population(workdir, names)
    print(describe_population(workdir, found))
    return found


def act(config: ConfigDict, workdir: Path) -> dict:
    """What `evaluate` does, but for the page and the trackers."""
    (found,) = act_together(config, [workdir], workdir)
    print(f"\n{describe_evaluation(found)}\n")
    return found


def act_together(
    config: ConfigDict, workdirs: Sequence[Path], home: Path
) -> list[dict]:
    """The evaluation of each of several runs on the same data, on the same seeds; one
    policy acts for all of them. Their clones are in the workdir `home`."""
    report = workdirs[0] / "data_report.json"  # they are all on the same data
    data = read_json(report) if report.is_file() else {}
    about = data.get("about", {})
    config = with_source(config, about)
    name = environment_of(config)
    if not name:
        raise ValueError(
            "eval.environment is empty; expected a Gymnasium id or 'module:callable'"
        )
    check_wandb(config.log.wandb)
    if not config.eval.episodes:
        raise ValueError("eval.episodes=0: expected at least 1 to evaluate")
    trained = [load_trained(workdir) for workdir in workdirs]
    if not data:
        raise FileNotFoundError(
            f"{report}: not found; --mode=evaluate expects the --workdir of a run"
        )
    scale = trained[0].normalization["return_scale"]
    returns = {key: scale * level for key, level in data["returns"].items()}
    model = DecisionTransformer(**trained[0].fields)
    check_evaluation(config, model, about)
    auto = data.get("auto_target") if AUTO in config.eval.targets else None
    if AUTO in config.eval.targets and not auto:
        raise ValueError(
            f"eval.targets=auto: {report} is of a version that chose none; give numbers"
            ", or let --mode=inspect with the config of the run write it anew"
        )
    targets = _targets(config, auto and auto["return"]) or sorted(
        {returns[quantile] for quantile in TARGET_QUANTILES}
    )
    episodes, seed = config.eval.episodes, config.seed
    longest = int(data["lengths"]["max"])
    environments = make_environments(
        name,
        environment_kwargs(config),
        len(workdirs) * len(targets) * episodes,
        max_episode_steps=config.eval.max_episode_steps,
        default_steps=longest,
    )
    baselines = {RANDOM: random_actor(environments[0], seed)}
    for spec in config.eval.baselines:
        baselines[spec] = actor_of(
            "eval.baselines",
            _workdir_of(spec, home),
            target_return=returns["max"],
            algorithm=config.collect.algorithm,
        )
    drawing = {"sample": config.eval.sample, "temperature": config.eval.temperature}
    policies = [
        Policy(
            DecisionTransformer(**one.fields),
            one.params,
            one.normalization,
            seed=seed,
            **drawing,
        )
        for one in trained
    ]
    seeds = range(seed, seed + episodes)
    rollouts = roll_out_targets(
        environments,
        policies[0] if len(policies) == 1 else Policies(policies),
        targets=targets * len(policies),
        seeds=seeds,
        desc="evaluating",
    )
    others = [
        (other, None, roll_out(environments[:episodes], actor, seeds, desc=other))
        for other, actor in baselines.items()
    ]
    references, calendar = {}, {}
    market_env = environments[0].unwrapped
    if isinstance(market_env, TradingEnv):
        references = backtest.references(
            market_env.market, market_env.rules, rollouts[0].info["date"]
        )
        dates = market_env.market.dates
        calendar = {"periods_a_year": backtest.periods_a_year(dates)}
    every = []
    for number, workdir in enumerate(workdirs):
        own = rollouts[number * len(targets) : (number + 1) * len(targets)]
        names = [f"target {target:,.6g}" for target in targets]
        played = [*zip(names, targets, own, strict=True), *others]
        found = evaluation_report(
            [
                ActorResult(who, target, *three, truncated=int(truncated_E.sum()))
                for who, target, (*three, truncated_E) in played
            ],
            environment=name,
            step=trained[number].step,
            first_seed=seed,
            data_returns=returns
            | {key: scale * data[f"return_{key}"] for key in ("mean", "std")},
            longest=longest,
            auto_target=auto,
            score_range=tuple(config.eval.score_range) or None,
            backtest_references=references,
            **calendar,
        )
        # One for each update that was evaluated; the newest under its own name, too.
        write_json(workdir / EVALUATIONS / f"{found['step']}.json", found)
        write_json(workdir / "report" / "evaluation.json", found)
        every.append(found)
    return every


def track(
    config: ConfigDict,
    workdir: Path,
    step: int,
    scalars: Mapping[str, float],
    pictures: Sequence[Picture],
) -> None:
    """Hand numbers of an update, and the run's pictures, to TensorBoard and W&B."""
    images = {f"pictures/{each.name}": to_png(each.figure) for each in pictures}
    hparams = flatten(config.to_dict())
    for tracker in open_trackers(workdir, hparams=hparams, wandb=config.log.wandb):
        with closing(tracker):
            tracker.write(step, scalars, images)


def check_evaluation(
    config: ConfigDict, model: DecisionTransformer, about: Mapping[str, Any]
) -> None:
    """Refuse, before a long training, what `evaluate` would refuse after it.

    `about` is what the data says of where it comes from: see `Trajectories`.
    """
    config = with_known_environment(config, model, about)
    _targets(config, auto=0.0)  # it is not known yet
    if len(_numbers("score_range", config.eval.score_range)) not in (0, 2):
        raise ValueError(
            f"eval.score_range={config.eval.score_range}: expected two numbers or none"
        )
    if config.eval.episodes < 0:
        raise ValueError(f"eval.episodes={config.eval.episodes}: expected 0 or more")
    if config.eval.sample and not model.action_sizes:
        raise ValueError("eval.sample=True: the data's actions are not discrete")
    if not config.eval.temperature > 0:
        raise ValueError(
            f"eval.temperature={config.eval.temperature}: expected above 0"
        )
    if not check_environment(config, about, **_sizes(model)):
        return
    for spec in config.eval.baselines:
        if clone_workdir(spec, Path()):  # it is yet to be trained
            continue
        algorithm = config.collect.algorithm
        actor_of("eval.baselines", spec, target_return=0.0, algorithm=algorithm)


def with_source(config: ConfigDict, about: Mapping[str, Any]) -> ConfigDict:
    """What the data knows of its environment, where the config says nothing of it.

    `about` has the arguments of an environment only where it can be made again.
    """
    known = {}
    if not config.eval.environment and "environment_kwargs" in about:
        known["environment"] = about["environment"]
        if config.eval.environment_kwargs == "{}":
            known["environment_kwargs"] = about["environment_kwargs"]
    if not config.eval.score_range and "score_range" in about:
        known["score_range"] = tuple(about["score_range"])
    if not known:
        return config
    filled = config.copy_and_resolve_references()
    filled.eval.update(known)
    return filled


def with_known_environment(
    config: ConfigDict, model: DecisionTransformer, about: Mapping[str, Any]
) -> ConfigDict:
    """As `with_source`; an environment that nobody asked for must not stop a training,
    so where it cannot be used here a line says why, and there is none."""
    filled = with_source(config, about)
    if filled.eval.environment != config.eval.environment:
        try:
            check_environment(filled, about, **_sizes(model))
        except ValueError as error:
            _print_once(f"no evaluation in the data's own environment: {error}")
            return config
    return filled


def _sizes(model):
    names = ("state_dim", "act_dim", "action_sizes")
    return {name: getattr(model, name) for name in names}


def check_environment(
    config: ConfigDict, about: Mapping[str, Any] = MappingProxyType({}), **fits
) -> bool:
    """Make one environment, look at its spaces and let it make a step; False: none.

    What it flattens must be what was flattened for the data, and what it rewards what
    was rewarded there; `fits`: of a model, as `check_spaces` takes them. The columns
    that the table of a market has beside are named, once.

    Raises:
      ValueError: see `make_environments`, `check_spaces` and `probe`.
    """
    if config.eval.max_episode_steps < 0:
        raise ValueError(
            f"eval.max_episode_steps={config.eval.max_episode_steps}: expected 0 (the "
            "environment's own limit) or more"
        )
    kwargs = environment_kwargs(config)
    if name := environment_of(config):
        (environment,) = make_environments(name, kwargs, 1)
        check_spaces(environment, **fits)
        trained_on = about.get("observations", environment.layout)
        if environment.layout != trained_on:
            raise ValueError(
                f"eval.environment={name}: observations are "
                f"{environment.layout or 'vectors'}, but in the data they were "
                f"{trained_on or 'vectors'}"
            )
        _check_rewards(environment, about)
        probe(environment)
        environment.close()
        _name_unused(environment.unwrapped)
    return bool(name)


def _check_rewards(environment, about):
    for key, own in describe_rewards(environment).items():
        of_data = about.get(key, own)
        if own != of_data:
            found, expected = map(json.dumps, (own, of_data))
            raise ValueError(
                f'eval.environment_kwargs: found "{key}": {found}, expected '
                f"{expected}, with which the rewards in the data were paid"
            )


def _name_unused(environment):
    if isinstance(environment, TradingEnv) and environment.market.unused:
        columns = ", ".join(environment.market.unused)
        _print_once(f"the market's table has columns that are not used: {columns}")


@functools.cache
def _print_once(line):
    print(fit(line), flush=True)


def environment_of(config: ConfigDict) -> str:
    """The environment asked for, or the one the embedded dataset comes from, or ''."""
    return config.eval.environment or ("" if config.data.path else SIMULATED)


def actor_of(key: str, spec: str, **options) -> Actor:
    """What `load_actor` gives; an error names the config key."""
    try:
        return load_actor(spec, **options)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{key}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _workdir_of(spec, home):
    """Of the clone that the word names; else the word itself."""
    clone = clone_workdir(spec, home)
    if clone and not clone.is_dir():
        raise FileNotFoundError(
            f"eval.baselines: {spec}: {clone} is not there; the same command without "
            "--mode=evaluate trains it"
        )
    return str(clone or spec)


def environment_kwargs(config: ConfigDict) -> dict:
    """The arguments of `environment_of`, from their JSON."""
    text = config.eval.environment_kwargs
    try:
        kwargs = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"eval.environment_kwargs={text!r}: {error}; expected JSON"
        ) from None
    if not isinstance(kwargs, dict):
        raise ValueError(
            f"eval.environment_kwargs={text!r}: expected a JSON object of arguments"
        )
    return kwargs


def _targets(config, auto) -> list[float]:
    given = config.eval.targets
    numbers = [auto if target == AUTO else target for target in given]
    return _numbers("targets", numbers, " or 'auto'")


def _numbers(key, given, words="") -> list[float]:
    for number in given:
        if not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(
                f"eval.{key}: found {number!r}, expected finite numbers{words}"
            )
    return sorted(map(float, given))

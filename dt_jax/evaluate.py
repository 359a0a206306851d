# SPDX-License-Identifier: Apache-2.0
"""From a trained run to `report/`: episodes for each target return, figures, one page.

Reads the config's sections `eval` and `collect`, as `train.py` reads the rest. In goes
a workdir; out come `evaluation.json`, pictures and `index.html`, or a new dataset.
"""

import json
import math
from pathlib import Path

from ml_collections import ConfigDict

from dt_jax import backtest, pictures
from dt_jax.checkpoint import load_trained
from dt_jax.evaluation import RANDOM, Actor, describe_evaluation, evaluation_report
from dt_jax.files import replacing
from dt_jax.hf_weights import read_json
from dt_jax.model import DecisionTransformer
from dt_jax.page import write_page
from dt_jax.policy import Policy
from dt_jax.rollout import (
    check_spaces,
    load_actor,
    make_environments,
    random_actor,
    roll_out,
    roll_out_targets,
)
from dt_jax.rollout import collect as collect_episodes
from dt_jax.trading import TradingEnv

SIMULATED = "dt_jax/SimulatedTrading-v0"  # where the embedded dataset comes from
TARGET_QUANTILES = ("10 %", "median", "90 %", "max")  # when the config names none
COLLECTING = 16  # episodes at once, which is what memory has to hold


def evaluate(config: ConfigDict, workdir: Path) -> None:
    """Let the newest good checkpoint act towards each target; write what came of it.

    Raises:
      ValueError, FileNotFoundError: there is no trained run, or the environment, the
        targets or the actors beside do not fit it.
    """
    name = environment_of(config)
    if not name:
        raise ValueError(
            "eval.environment is empty; expected a Gymnasium id or 'module:callable'"
        )
    trained = load_trained(workdir)
    if not (workdir / "data_report.json").is_file():
        raise FileNotFoundError(
            f"{workdir}/data_report.json: not found; --mode=evaluate expects the "
            "--workdir of a run"
        )
    data = read_json(workdir / "data_report.json")
    scale = trained.normalization["return_scale"]
    returns = {key: scale * level for key, level in data["returns"].items()}
    model = DecisionTransformer(**trained.fields)
    check_evaluation(config, model)
    targets = _numbers("targets", config.eval.targets) or sorted(
        {returns[quantile] for quantile in TARGET_QUANTILES}
    )
    episodes, seed = config.eval.episodes, config.seed
    environments = make_environments(name, _kwargs(config), len(targets) * episodes)
    others = {RANDOM: random_actor(environments[0], seed)}
    for spec in config.eval.beside:
        others[spec] = _actor("eval.beside", spec, target_return=returns["max"])
    policy = Policy(model, trained.params, trained.normalization)
    seeds = range(seed, seed + episodes)
    rollouts = roll_out_targets(
        environments,
        policy,
        targets=targets,
        seeds=seeds,
        desc="evaluating",
    )
    actors = [
        Actor(f"target {target:,.6g}", target, *rollout)
        for target, rollout in zip(targets, rollouts, strict=True)
    ]
    for other, actor in others.items():
        rollout = roll_out(environments[:episodes], actor, seeds, desc=other)
        actors.append(Actor(other, None, *rollout))

    references = {}
    market_env = environments[0].unwrapped
    if isinstance(market_env, TradingEnv):
        references = backtest.references(
            market_env.market, market_env.rules, actors[0].info["date"]
        )
    found = evaluation_report(
        actors,
        environment=name,
        step=trained.step,
        first_seed=seed,
        data_returns=returns
        | {key: scale * data[f"return_{key}"] for key in ("mean", "std")},
        longest=int(data["lengths"]["max"]),
        reference=tuple(config.eval.reference_returns) or None,
        backtest_references=references,
    )
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    pictures.draw_targets(folder / "targets.png", found)
    if references:
        pictures.draw_accounts(folder / "accounts.png", actors, references)
        pictures.draw_drawdown(folder / "drawdown.png", actors, references)
    with replacing(folder / "evaluation.json") as unfinished:
        unfinished.write_text(json.dumps(found, indent=2) + "\n")
    page = write_page(workdir)
    print(f"\n{describe_evaluation(found)}\n\n  {page}  all of it on one page")


def collect(config: ConfigDict, workdir: Path) -> None:
    """Let `collect.actor` act in `eval.environment`; its episodes are a dataset.

    Raises:
      ValueError, FileNotFoundError: the actor or the environment is at fault, or there
        is a dataset already.
    """
    name, episodes = environment_of(config), config.collect.episodes
    if not (name and config.collect.actor):
        raise ValueError(
            f"eval.environment={name!r}, collect.actor={config.collect.actor!r}: "
            "expected both, a Gymnasium id and a .zip of stable-baselines3, say"
        )
    if episodes < 1:
        raise ValueError(f"collect.episodes={episodes}: expected at least 1")
    path = workdir / "dataset"
    if path.exists():  # or it is told below a bar of progress
        raise ValueError(f"{path} exists already; choose another --workdir")
    actor = _actor("collect.actor", config.collect.actor, seed=config.seed)
    environments = make_environments(name, _kwargs(config), min(COLLECTING, episodes))
    collect_episodes(path, environments, actor, num_episodes=episodes, seed=config.seed)
    print(f"{path}: {episodes:,} episodes\n\nNext:")
    print(f"  python main.py --config configs/base.py --config.data.path={path}")


def check_evaluation(config: ConfigDict, model: DecisionTransformer) -> None:
    """Refuse, before a long training, what `evaluate` would refuse after it."""
    _numbers("targets", config.eval.targets)
    if len(_numbers("reference_returns", config.eval.reference_returns)) not in (0, 2):
        raise ValueError(
            f"eval.reference_returns={config.eval.reference_returns}: expected two "
            "numbers or none"
        )
    if config.eval.episodes < 1:
        raise ValueError(f"eval.episodes={config.eval.episodes}: expected at least 1")
    kwargs = _kwargs(config)
    if not (name := environment_of(config)):
        return
    (environment,) = make_environments(name, kwargs, 1)
    check_spaces(environment, state_dim=model.state_dim, act_dim=model.act_dim)
    for spec in config.eval.beside:
        _actor("eval.beside", spec, target_return=0.0)


def environment_of(config: ConfigDict) -> str:
    """The environment asked for, or the one the embedded dataset comes from, or ''."""
    return config.eval.environment or ("" if config.data.path else SIMULATED)


def _actor(key, spec, **options):
    try:
        return load_actor(spec, **options)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{key}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _kwargs(config) -> dict:
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


def _numbers(key, given) -> list[float]:
    for number in given:
        if not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"eval.{key}: found {number!r}, expected finite numbers")
    return sorted(map(float, given))

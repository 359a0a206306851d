# SPDX-License-Identifier: Apache-2.0
"""Episodes in Gymnasium environments: a policy's for each target, any actor's as data.

An actor is called with the number of episodes E that begin, and gives the function
`act(states_ExS, rewards_E) -> actions_ExA` of their steps; the rewards are those of
the step before, at first 0. Out come returns, lengths and infos, or a dataset on disk.
"""

import copy
import functools
import importlib
import json
import numbers
import os
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space
from tqdm import tqdm

from dt_jax.readers import save_trajectories
from dt_jax.trading import TradingEnv

Act = Callable[[np.ndarray, np.ndarray], np.ndarray]
Actor = Callable[[int], Act]

# A zip of stable-baselines3 does not name its algorithm, but the first of these that
# is among its hyperparameters does; DDPG has TD3's.
SB3_ALGORITHMS = {
    "clip_range": "PPO",
    "target_policy_noise": "TD3",
    "target_entropy": "SAC",
    "normalize_advantage": "A2C",
}
# Acting needs none of these: functions that another Python pickled, an empty buffer.
SB3_REPLACED = {
    "learning_rate": 0.0,
    "lr_schedule": lambda _: 0.0,
    "clip_range": lambda _: 0.0,
    "buffer_size": 1,
}


class Rollout(NamedTuple):
    """E whole episodes.

    Attributes:
      returns_E: float64, in raw reward. lengths_E: int64, in steps.
      info: every number and string of the environments' infos by its name, (T+1)xE,
        from the reset to the end of the longest; NaN or '' where an episode has none.
    """

    returns_E: np.ndarray
    lengths_E: np.ndarray
    info: dict[str, np.ndarray]


def make_environments(
    environment: str, kwargs: Mapping, count: int
) -> list[gymnasium.Env]:
    """Equal environments, by a Gymnasium id or a 'module:callable' that returns one.

    A list, as a `SyncVectorEnv` without autoreset steps none once one has ended.
    Trading environments share one market, which is read or simulated once.

    Raises:
      ValueError: what eval.environment or eval.environment_kwargs should have been.
    """
    key = f"eval.environment={environment!r}"
    if _is_import(environment):
        make = _import(environment, key)
    else:
        make = functools.partial(gymnasium.make, environment, disable_env_checker=True)
    try:
        first = make(**kwargs)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(
            f"{key}: {_one_line(error)}; expected a Gymnasium id or 'module:callable'"
        ) from error
    except (TypeError, ValueError, OSError) as error:
        raise ValueError(
            f"eval.environment_kwargs={dict(kwargs)}: {_one_line(error)}; expected the "
            f"arguments of {environment}"
        ) from error
    if not isinstance(first, gymnasium.Env):
        raise ValueError(
            f"{key} gave a {type(first).__name__}, expected a gymnasium.Env"
        )
    if not isinstance(first.unwrapped, TradingEnv):
        return [first, *(make(**kwargs) for _ in range(count - 1))]
    market = first.unwrapped.market
    return [first] + [
        copy.deepcopy(first, {id(market): market}) for _ in range(count - 1)
    ]


def check_spaces(
    environment: gymnasium.Env,
    *,
    state_dim: int | None = None,
    act_dim: int | None = None,
) -> None:
    """Refuse, with a ValueError, all but vectors of these sizes (None: of any)."""
    for name, space, key, size in (
        ("observations", environment.observation_space, "state_dim", state_dim),
        ("actions", environment.action_space, "act_dim", act_dim),
    ):
        if not (
            isinstance(space, gymnasium.spaces.Box)
            and len(space.shape) == 1
            and size in (None, *space.shape)
        ):
            raise ValueError(
                f"eval.environment has {name} {_one_line(space)}, expected a Box of "
                + ("one dimension" if size is None else f"{size} ({key} of the model)")
            )


def roll_out(
    environments: Sequence[gymnasium.Env],
    actor: Actor,
    seeds_E: Sequence[int],
    *,
    desc: str | None = None,
    record: Callable[[tuple[np.ndarray, ...]], None] | None = None,
) -> Rollout:
    """An episode of each of the E environments, in step: each act is for all of them.

    Only what lives is stepped; of an ended episode `act` sees the last observation and
    a reward of 0. Actions are clipped to their space, whose dtype they get.

    Args:
      seeds_E: what each environment is reset with.
      desc: of the progress bar; None: there is none.
      record: is called after each step with (states_ExS, actions_ExA, rewards_E), the
        observations acted upon; rows of ended episodes mean nothing.

    Raises:
      ValueError: an action is not finite, or all are not ExA.
    """
    resets = [
        environment.reset(seed=int(seed))
        for environment, seed in zip(environments, seeds_E, strict=True)
    ]
    states_ExS = np.stack([state for state, _ in resets])
    infos = [[_scalars(info) for _, info in resets]]
    num_episodes = len(environments)
    live_E = np.ones(num_episodes, bool)
    rewards_E, returns_E = np.zeros(num_episodes), np.zeros(num_episodes)
    lengths_E = np.zeros(num_episodes, np.int64)
    act = actor(num_episodes)
    with _bar(desc=desc, unit="step", disable=desc is None) as bar:
        while live_E.any():
            actions_ExA = np.asarray(act(states_ExS, rewards_E))
            actions_ExA = _fit(actions_ExA, environments[0].action_space, live_E)
            before_ExS, states_ExS = states_ExS, states_ExS.copy()
            rewards_E = np.zeros(num_episodes)
            infos.append([{}] * num_episodes)
            lengths_E += live_E
            for e, environment in enumerate(environments):
                if live_E[e]:
                    state, reward, ended, cut, info = environment.step(actions_ExA[e])
                    states_ExS[e], rewards_E[e] = state, reward
                    live_E[e] = not (ended or cut)
                    infos[-1][e] = _scalars(info)
            returns_E += rewards_E
            if record is not None:
                record((before_ExS, actions_ExA, rewards_E))
            bar.set_postfix_str(f"{live_E.sum()} episodes go on", refresh=False)
            bar.update()
    return Rollout(returns_E, lengths_E, _table(infos))


def _fit(actions_ExA, space, live_E):
    """The actions clipped to their space, in its dtype."""
    expected = (len(live_E), *space.shape)
    if actions_ExA.shape != expected:
        raise ValueError(
            f"the actor gave actions of shape {actions_ExA.shape}, expected {expected}"
        )
    if not np.isfinite(actions_ExA[live_E]).all():
        raise ValueError("the actor gave an action that is not finite")
    return actions_ExA.clip(space.low, space.high).astype(space.dtype)


def roll_out_targets(
    environments: Sequence[gymnasium.Env],
    policy,
    *,
    targets: Sequence[float],
    seeds: Sequence[int],
    desc: str | None = None,
) -> list[Rollout]:
    """A `Rollout` for each target return, all of them with the same seeds.

    Args:
      environments: len(targets) * len(seeds) of them, which run at once.
      policy: a `Policy`. targets: in raw reward.
    """

    def begin(_):
        policy.reset(np.repeat(np.array(targets, np.float64), len(seeds)))
        return policy.act

    all_seeds = np.tile(seeds, len(targets))
    whole = roll_out(environments, begin, all_seeds, desc=desc)
    parts = [
        slice(first, first + len(seeds))
        for first in range(0, len(all_seeds), len(seeds))
    ]
    return [
        Rollout(
            whole.returns_E[part],
            whole.lengths_E[part],
            {name: column_TxE[:, part] for name, column_TxE in whole.info.items()},
        )
        for part in parts
    ]


def collect(
    path: str | os.PathLike,
    environments: Sequence[gymnasium.Env],
    actor: Actor,
    *,
    num_episodes: int,
    seed: int,
) -> None:
    """Write an actor's episodes as a dataset in the notebook's layout, all or nothing.

    An episode is a trajectory; number i is of seed + i, whatever the number of
    environments. In memory are as many episodes as there are environments.

    Raises:
      ValueError: `path` exists, or the environments or the actor do not fit.
    """
    check_spaces(environments[0])
    episodes = _episodes(environments, actor, num_episodes, seed)
    save_trajectories(
        path, _bar(episodes, total=num_episodes, desc="collecting", unit="episode")
    )


def _episodes(environments, actor, num_episodes, seed):
    for first in range(seed, seed + num_episodes, len(environments)):
        seeds_E = range(first, min(first + len(environments), seed + num_episodes))
        steps = []
        rollout = roll_out(
            environments[: len(seeds_E)], actor, seeds_E, record=steps.append
        )
        columns = [
            np.stack(column, axis=1, dtype=np.float32, casting="same_kind")
            for column in zip(*steps, strict=True)
        ]
        for length, *episode in zip(rollout.lengths_E, *columns, strict=True):
            names = ("observations", "actions", "rewards")
            yield {
                **{n: c[:length].copy() for n, c in zip(names, episode, strict=True)},
                "dones": np.arange(length) == length - 1,
            }


def load_actor(
    spec: str, *, seed: int | None = None, target_return: float | None = None
) -> Actor:
    """The actor that `spec` names.

    Args:
      spec: 'module:callable', which takes observations ExS and returns actions ExA; a
        zip of stable-baselines3; or the workdir or Hugging Face folder of a `Policy`.
      seed: draws a stable-baselines3 agent's actions, as data needs their spread; None
        takes the most likely ones.
      target_return: what a `Policy` is asked for, in raw reward.

    Raises:
      ValueError, FileNotFoundError: in one line, why there is no such actor.
    """
    if spec.endswith(".zip"):
        return _load_sb3(spec, seed)
    if _is_import(spec):
        function = _import(spec, f"actor {spec!r}")
        return lambda _: lambda states_ExS, rewards_E: function(states_ExS)
    if not os.path.isdir(spec):
        raise FileNotFoundError(
            f"actor {spec!r}: no such folder; expected one of a trained policy, a .zip "
            "of stable-baselines3 or 'module:callable'"
        )
    if target_return is None:
        raise ValueError(f"actor {spec!r} is a policy, which needs a target return")
    from dt_jax.policy import Policy

    policy = Policy.load(spec)

    def begin(num_episodes):
        policy.reset(np.full(num_episodes, target_return))
        return policy.act

    return begin


def random_actor(environment: gymnasium.Env, seed: int) -> Actor:
    """Uniform actions (normal ones in a space without bounds)."""
    rng = np.random.default_rng([seed, 1])  # environments of this seed draw others

    def begin(num_episodes):
        space = batch_space(environment.action_space, num_episodes)
        space.seed(int(rng.integers(2**32)))
        return lambda states_ExS, rewards_E: space.sample()

    return begin


def _load_sb3(spec, seed):
    """An agent, which draws its actions when there is a seed to do so."""
    if not os.path.isfile(spec):
        raise FileNotFoundError(f"actor {spec!r}: no such file")
    try:
        with zipfile.ZipFile(spec) as archive:
            hyperparameters = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(
            f"actor {spec!r} is no agent saved by stable-baselines3 ({error})"
        ) from error
    names = [SB3_ALGORITHMS[mark] for mark in SB3_ALGORITHMS if mark in hyperparameters]
    # PPO with a memory is not acted with here: without it, it would act wrongly.
    if not names or "recurrent" in str(hyperparameters.get("policy_class")):
        raise ValueError(
            f"actor {spec!r}: found an agent of another algorithm, expected one of "
            f"{', '.join(SB3_ALGORITHMS.values())}, DDPG"
        )
    try:
        import stable_baselines3
        import torch
    except ImportError as error:
        raise ValueError(
            f"actor {spec!r} needs a package: pip install stable-baselines3"
        ) from error
    agent = getattr(stable_baselines3, names[0]).load(
        spec, device="cpu", custom_objects=SB3_REPLACED
    )
    if seed is not None:
        torch.manual_seed(seed)

    def begin(num_episodes):
        if agent.use_sde:
            agent.policy.reset_noise(num_episodes)
        return lambda states_ExS, rewards_E: agent.predict(
            states_ExS, deterministic=seed is None
        )[0]

    return begin


def _is_import(spec):
    return ":" in spec and spec.rpartition(":")[2].isidentifier()


def _import(spec, key):
    """The callable that 'module:callable' names, from the current folder too."""
    module_name, _, name = spec.rpartition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise ValueError(
            f"{key}: {_one_line(error)}; expected a 'module:callable' that can be "
            "imported here"
        ) from error
    if not callable(found):
        raise ValueError(f"{key}: found no callable {name!r} in {module_name}")
    return found


def _scalars(info):
    kinds = str | numbers.Real | np.bool_
    return {name: value for name, value in info.items() if isinstance(value, kinds)}


def _table(infos):
    """Scalars of each step and episode to an array, (T+1)xE, for each name."""
    all_infos = [info for row in infos for info in row]
    names = dict.fromkeys(name for info in all_infos for name in info)
    table = {}
    for name in names:
        is_text = any(isinstance(info.get(name), str) for info in all_infos)
        kind, nothing = (str, "") if is_text else (np.float64, np.nan)
        table[name] = np.array(
            [[info.get(name, nothing) for info in row] for row in infos], kind
        )
    return table


def _bar(*args, **options):
    # A log file gets a line now and then, a terminal a moving bar.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(*args, mininterval=interval, **options)


def _one_line(error):
    return " ".join(str(error).split())

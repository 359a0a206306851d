# SPDX-License-Identifier: Apache-2.0
"""Whole episodes: a policy's for each target return, or any actor's as a dataset.

In go equal environments and an actor (`actors.py`); out come returns, lengths and
infos, or a dataset on disk.
"""

import numbers
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import gymnasium
import numpy as np

from dt_jax.acting.actors import Actor
from dt_jax.acting.checked_env import checked
from dt_jax.acting.environments import check_spaces, describe_rewards
from dt_jax.acting.policy import Policy
from dt_jax.data.episodes import describe_actions, is_discrete
from dt_jax.data.writer import save_trajectories
from dt_jax.system.progress import progress


class Rollout(NamedTuple):
    """E whole episodes.

    Attributes:
      returns_E: float64, in raw reward. lengths_E: int64, in steps.
      info: every number and string of the environments' infos by its name, (T+1)xE,
        from the reset to the end of the longest; NaN or '' where an episode has none.
      truncated_E: bool, cut by a time limit.
    """

    returns_E: np.ndarray
    lengths_E: np.ndarray
    info: dict[str, np.ndarray]
    truncated_E: np.ndarray


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
    a reward of 0. Actions are clipped to their space, whose dtype they get. What the
    environments give is checked and converted: see `CheckedEnv`.

    Args:
      seeds_E: what each environment is reset with.
      desc: of the progress bar; None: there is none.
      record: is called after each step with (states_ExS, actions_ExA, rewards_E), the
        observations acted upon; rows of ended episodes mean nothing.

    Raises:
      ValueError: an action is not finite, or all are not ExA.
    """
    environments = [checked(environment) for environment in environments]
    resets = [
        environment.reset(seed=int(seed))
        for environment, seed in zip(environments, seeds_E, strict=True)
    ]
    states_ExS = np.stack([state for state, _ in resets])
    infos = [[_scalars(info) for _, info in resets]]
    num_episodes = len(environments)
    live_E, truncated_E = np.ones(num_episodes, bool), np.zeros(num_episodes, bool)
    rewards_E, returns_E = np.zeros(num_episodes), np.zeros(num_episodes)
    lengths_E = np.zeros(num_episodes, np.int64)
    act = actor(num_episodes)
    with progress(desc=desc, unit=" steps", disable=desc is None) as bar:
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
                    live_E[e], truncated_E[e] = not (ended or cut), cut
                    infos[-1][e] = _scalars(info)
            returns_E += rewards_E
            if record is not None:
                record((before_ExS, actions_ExA, rewards_E))
            bar.set_postfix_str(f"{live_E.sum()} episodes go on", refresh=False)
            bar.update()
    return Rollout(returns_E, lengths_E, _table(infos), truncated_E)


def _fit(actions_ExA, space, live_E):
    """The actions clipped to their space, in its dtype; discrete ones are in it."""
    expected = (len(live_E), *space.shape)
    is_discrete = isinstance(space, gymnasium.spaces.MultiDiscrete)
    if is_discrete and space.shape == (1,):
        actions_ExA = actions_ExA.reshape(len(actions_ExA), -1)  # numbers will do
    if actions_ExA.shape != expected:
        raise ValueError(
            f"the actor gave actions of shape {actions_ExA.shape}, expected {expected}"
        )
    if not np.isfinite(actions_ExA[live_E]).all():
        raise ValueError("the actor gave an action that is not finite")
    if is_discrete:
        return _choices(actions_ExA, space, live_E)
    return actions_ExA.clip(space.low, space.high).astype(space.dtype)


def _choices(actions_ExM, space, live_E):
    chosen_ExM = actions_ExM.astype(space.dtype)
    wrong_ExM = (chosen_ExM != actions_ExM) | (chosen_ExM < 0)
    wrong_ExM |= chosen_ExM >= space.nvec[None]
    if wrong_ExM[live_E].any():
        wrong = actions_ExM[live_E][wrong_ExM[live_E]][0]
        raise ValueError(
            f"the actor gave an action of {wrong}, expected whole numbers from 0 on, "
            f"below {', '.join(map(str, space.nvec))}"
        )
    return np.where(wrong_ExM, 0, chosen_ExM)


def roll_out_targets(
    environments: Sequence[gymnasium.Env],
    policy: Policy,
    *,
    targets: Sequence[float],
    seeds: Sequence[int],
    desc: str | None = None,
) -> list[Rollout]:
    """A `Rollout` for each target return, all of them with the same seeds.

    Args:
      environments: len(targets) * len(seeds) of them, which run at once.
      targets: in raw reward.
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
            whole.truncated_E[part],
        )
        for part in parts
    ]


def record_episodes(
    path: str | os.PathLike,
    environments: Sequence[gymnasium.Env],
    actor: Actor,
    *,
    num_episodes: int,
    seed: int,
) -> int:
    """Write an actor's episodes as a dataset in the notebook's layout, all or nothing.

    An episode is a trajectory; number i is of seed + i, whatever the number of
    environments. In memory are as many episodes as there are environments.

    Returns:
      How many episodes were cut by a time limit.

    Raises:
      ValueError: `path` exists, or the environments or the actor do not fit.
    """
    environments = [checked(environment) for environment in environments]
    check_spaces(environments[0])
    truncated = []
    episodes = _episodes(environments, actor, num_episodes, seed, truncated)
    bar = {"total": num_episodes, "desc": "collecting", "unit": " episodes"}
    first = environments[0]
    about = {"environment": first.name, "observations": first.layout}
    about |= describe_actions(first.action_space) | describe_rewards(first)
    save_trajectories(path, progress(episodes, **bar), about=about)
    return sum(truncated)


def _episodes(environments, actor, num_episodes, seed, truncated):
    for first in range(seed, seed + num_episodes, len(environments)):
        seeds_E = range(first, min(first + len(environments), seed + num_episodes))
        steps = []
        rollout = roll_out(
            environments[: len(seeds_E)], actor, seeds_E, record=steps.append
        )
        columns = [np.stack(column, axis=1) for column in zip(*steps, strict=True)]
        columns = [c if is_discrete(c) else c.astype(np.float32) for c in columns]
        truncated.append(int(rollout.truncated_E.sum()))
        for length, *episode in zip(rollout.lengths_E, *columns, strict=True):
            names = ("observations", "actions", "rewards")
            yield {
                **{n: c[:length].copy() for n, c in zip(names, episode, strict=True)},
                "dones": np.arange(length) == length - 1,
            }


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

# SPDX-License-Identifier: Apache-2.0
"""Gymnasium environments by name, and what is asked of them.

The only file that knows how a name becomes an environment. `import_callable` is for
everything that a user names as 'module:callable'.
"""

import copy
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping

import gymnasium

from dt_jax.acting.checked_env import CheckedEnv, one_line
from dt_jax.trading.environment import TradingEnv


def make_environments(
    environment: str, kwargs: Mapping, count: int, **limits: int
) -> list[CheckedEnv]:
    """Equal environments, by a Gymnasium id or a 'module:callable' that returns one.

    A list, as a `SyncVectorEnv` without autoreset steps none once one has ended.
    Trading environments share one market, which is read or simulated once.

    Args:
      limits: of the steps of an episode, as `CheckedEnv` takes them.

    Raises:
      ValueError: what the name or the arguments should have been.
    """
    key = f"environment={environment!r}"
    if is_import(environment):
        make = import_callable(environment, key)
    else:
        make = functools.partial(gymnasium.make, environment, disable_env_checker=True)
    try:
        first = make(**kwargs)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(
            f"{key}: {one_line(error)}; expected a Gymnasium id or 'module:callable'"
        ) from error
    except Exception as error:  # it is a user's code that meets a user's arguments
        expected = isinstance(error, TypeError | ValueError | OSError)
        told = one_line(error) if expected else repr(error)
        raise ValueError(
            f"environment_kwargs={dict(kwargs)}: {told}; expected the arguments of "
            f"{environment}"
        ) from error
    if not isinstance(first, gymnasium.Env):
        raise ValueError(
            f"{key} gave a {type(first).__name__}, expected a gymnasium.Env"
        )
    if isinstance(first.unwrapped, TradingEnv):
        market = first.unwrapped.market
        limits = {**limits, "default_steps": len(market.dates) + 1}  # it ends by itself
        shared = ({id(market): market} for _ in range(count - 1))
        others = [copy.deepcopy(first, memo) for memo in shared]
    else:
        others = [make(**kwargs) for _ in range(count - 1)]
    return [CheckedEnv(one, **limits) for one in (first, *others)]


def check_spaces(
    environment: CheckedEnv,
    *,
    state_dim: int | None = None,
    act_dim: int | None = None,
    action_sizes: tuple[int, ...] | None = None,
) -> None:
    """Refuse, with a ValueError, all but vectors of these sizes (None: of any).

    Discrete actions may have more choices than the model has been shown.
    """
    vectors = [("observations", environment.observation_space, "state_dim", state_dim)]
    own = environment.action_space
    if isinstance(own, gymnasium.spaces.MultiDiscrete) and action_sizes != ():
        sizes = own.nvec if action_sizes is None else action_sizes
        if len(own.nvec) != len(sizes) or (own.nvec < sizes).any():
            raise ValueError(
                f"environment={environment.name}: actions have {_counts(own.nvec)} "
                f"choices, but those of the model {_counts(sizes)}"
            )
    else:
        vectors.append(("actions", own, "act_dim", act_dim))
    for name, space, key, size in vectors:
        if not (
            isinstance(space, gymnasium.spaces.Box)
            and len(space.shape) == 1
            and size in (None, *space.shape)
        ):
            raise ValueError(
                f"environment={environment.name}: {name} are {one_line(space)}, "
                "expected a Box of "
                + ("one dimension" if size is None else f"{size} ({key} of the model)")
            )


def describe_rewards(environment: gymnasium.Env) -> dict:
    """What `Trajectories.about` says of them: of the `Rules` of a trading environment
    the `reward_scaling`, and the `benchmark` beyond which they are gained."""
    market_env = environment.unwrapped
    if not isinstance(market_env, TradingEnv):
        return {}
    names = ("benchmark", "reward_scaling")
    return {name: getattr(market_env.rules, name) for name in names}


def _counts(sizes):
    return " x ".join(map(str, sizes))


def is_import(spec: str) -> bool:
    """Whether a name has the form 'module:callable'."""
    return ":" in spec and spec.rpartition(":")[2].isidentifier()


def import_callable(spec: str, key: str) -> Callable:
    """What 'module:callable' names, from the current folder too; errors name `key`."""
    module_name, _, name = spec.rpartition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise ValueError(
            f"{key}: {one_line(error)}; expected a 'module:callable' that can be "
            "imported here"
        ) from error
    if not callable(found):
        raise ValueError(f"{key}: found no callable {name!r} in {module_name}")
    return found

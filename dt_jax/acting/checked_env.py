# SPDX-License-Identifier: Apache-2.0
"""An environment as the rest expects one, whatever kinds of numbers it gives.

In goes a `gymnasium.Env` of a user, out come vectors of floats, a number and two bools,
and an end to every episode; what cannot be made of it is refused in one line.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LONGEST = 100_000  # steps of an episode of which nobody has said when it ends
RESET = "(observation, info)"
STEP = "(observation, reward, terminated, truncated, info)"


class CheckedEnv(gymnasium.Wrapper):
    """Observations S in one floating dtype, float rewards, bools, and a time limit.

    Actions are a vector of floats in a Box, or of whole numbers, counted from 0, in a
    MultiDiscrete: what was a Discrete or a MultiBinary is one, too.

    Observations in a Dict or Tuple, and those of several dimensions, are flattened in
    the order of `gymnasium.spaces.flatten`. Their dtype is that of the space where it
    is a Box of floats, else float64: whole numbers at a reset cut nothing off later.

    Attributes:
      name: what errors call it. layout: the space before it was flattened, as text;
        '' where the environment gives vectors itself.
      max_episode_steps: an episode is truncated after that many.

    Args:
      max_episode_steps: in place of the environment's own limit; 0: that.
      default_steps: where it has no limit of its own.

    Raises:
      ValueError: it is no `gymnasium.Env`, or its observations are no numbers.
    """

    def __init__(
        self,
        environment: gymnasium.Env,
        *,
        max_episode_steps: int = 0,
        default_steps: int = LONGEST,
    ):
        if not isinstance(environment, gymnasium.Env):
            raise ValueError(
                f"environment={type(environment).__name__}: expected a gymnasium.Env"
            )
        super().__init__(environment)
        self.name = name_of(environment)
        space = environment.observation_space
        self._structure = _of_floats(space, self.name)
        flat = spaces.flatten_space(self._structure)
        dtype = flat.dtype if flat.dtype.kind == "f" else np.float64
        self.observation_space = spaces.Box(-np.inf, np.inf, flat.shape, dtype)
        self.action_space, self._first_choice = _of_choices(environment.action_space)
        is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1
        self.layout = "" if is_vector else one_line(space)
        self.max_episode_steps = (
            max_episode_steps or _own_limit(environment) or default_steps
        )
        self._num_steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        given = {} if options is None else {"options": options}
        found = self.env.reset(seed=seed, **given)
        if not (
            isinstance(found, tuple)
            and len(found) == 2
            and isinstance(found[1], Mapping)
        ):
            raise ValueError(self._returned("reset", found, RESET))
        self._num_steps = 0
        observation, info = found
        return self._vector(observation), info

    def step(self, action: np.ndarray):
        found = self.env.step(self._own(action))
        if not (isinstance(found, tuple) and len(found) == 5):
            raise ValueError(self._returned("step", found, STEP))
        observation, reward, terminated, truncated, info = found
        reward = float(self._number("reward", reward))
        if not np.isfinite(reward):
            raise ValueError(
                f"environment={self.name}: a reward of {reward}, expected a number"
            )
        terminated = bool(self._number("terminated", terminated))
        truncated = bool(self._number("truncated", truncated))
        self._num_steps += 1
        truncated |= self._num_steps >= self.max_episode_steps and not terminated
        return self._vector(observation), reward, terminated, truncated, info

    def _own(self, action):
        """The action as the environment's own space has it."""
        own = self.env.action_space
        if isinstance(own, spaces.Discrete):
            return own.dtype.type(action[0] + self._first_choice)
        if isinstance(own, spaces.MultiDiscrete):
            return (action + self._first_choice).astype(own.dtype)
        if isinstance(own, spaces.MultiBinary):
            return action.astype(own.dtype)
        return action

    def _vector(self, observation):
        expected = f"expected one of {one_line(self.env.observation_space)}"
        try:
            if not isinstance(self._structure, spaces.Box):
                observation = spaces.flatten(self._structure, observation)
            array = np.asarray(observation, self.observation_space.dtype)
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(
                f"environment={self.name}: an observation {_shown(observation)} "
                f"({one_line(error)}), {expected}"
            ) from None
        if array.size != self.observation_space.shape[0]:
            raise ValueError(
                f"environment={self.name}: an observation of shape {array.shape}, "
                f"{expected}"
            )
        return array.reshape(-1)

    def _number(self, name, value):
        """One number, of Python, NumPy or JAX, or an array of one."""
        try:
            return np.asarray(value, np.float64).reshape(())
        except (TypeError, ValueError):
            raise ValueError(
                f"environment={self.name}: step() gave {name}={_shown(value)}, "
                "expected one number"
            ) from None

    def _returned(self, method, found, expected):
        what = _shown(found)
        if isinstance(found, tuple):
            kinds = ", ".join(type(part).__name__ for part in found)
            what = f"{len(found)} values ({kinds})"
        return (
            f"environment={self.name}: {method}() returned {what}, but Gymnasium "
            f"expects {expected}"
        )


def _of_choices(space):
    """A space of discrete actions as a MultiDiscrete from 0 on, and what to add."""
    if isinstance(space, spaces.Discrete):
        return spaces.MultiDiscrete([space.n]), space.start
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return spaces.MultiDiscrete(space.nvec), space.start
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return spaces.MultiDiscrete([2] * space.shape[0]), 0
    return space, 0


def probe(environment: CheckedEnv) -> None:
    """Reset it and make one step, so that what is wrong shows before anything long.

    Raises:
      ValueError: in one line, what failed and what Gymnasium expects.
    """
    reset, step = "reset(*, seed=None, options=None)", "step(action)"
    for method, call, expected in (
        ("reset(seed=0)", lambda: environment.reset(seed=0), f"{reset} -> {RESET}"),
        (step, lambda: environment.step(_sample(environment)), f"{step} -> {STEP}"),
    ):
        try:
            call()
        except Exception as error:  # it is the user's code
            if isinstance(error, ValueError) and str(error).startswith("environment="):
                raise
            raise ValueError(
                f"environment={environment.name}: {method} failed with "
                f"{type(error).__name__}: {one_line(error)}; Gymnasium expects "
                f"{expected}"
            ) from error


def _sample(environment):
    environment.action_space.seed(0)
    return environment.action_space.sample()


def checked(environment: gymnasium.Env, **limits: Any) -> CheckedEnv:
    """As a `CheckedEnv`, which it may be already."""
    if isinstance(environment, CheckedEnv):
        return environment
    return CheckedEnv(environment, **limits)


def name_of(environment: gymnasium.Env) -> str:
    """Its Gymnasium id, or its class."""
    spec = environment.spec
    return spec.id if spec else type(environment.unwrapped).__name__


def one_line(told: object) -> str:
    """An error or a space as text without line breaks."""
    return " ".join(str(told).split())


def _shown(value):
    return f"{type(value).__name__} {one_line(repr(value))[:60]}"


def _own_limit(environment):
    """Steps after which it truncates by itself, 0 where it does not say so."""
    name = "_max_episode_steps"  # of gymnasium's TimeLimit
    if environment.has_wrapper_attr(name):
        return environment.get_wrapper_attr(name) or 0
    return (environment.spec and environment.spec.max_episode_steps) or 0


def _of_floats(space, name):
    """The space with every Box in floats: `flatten` casts to the dtype of its parts."""
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) > 1:
            raise ValueError(
                f"environment={name}: observations hold images, {one_line(space)}; "
                "expected vectors of numbers, such as an encoder makes of them"
            )
        dtype = space.dtype if space.dtype.kind == "f" else np.float64
        return spaces.Box(-np.inf, np.inf, space.shape, dtype)
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _of_floats(part, name) for key, part in space.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([_of_floats(part, name) for part in space])
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return space
    raise ValueError(
        f"environment={name}: observations are {one_line(space)}, expected a Box, or a "
        "Dict or Tuple of them"
    )

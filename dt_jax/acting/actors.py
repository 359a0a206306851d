# SPDX-License-Identifier: Apache-2.0
"""Who acts: a policy, an agent of stable-baselines3, a function, or chance.

An actor is called with the number of episodes E that begin, and gives the function
`act(states_ExS, rewards_E) -> actions_ExA` of their steps; the rewards are those of
the step before, at first 0.
"""

import json
import os
import zipfile
from collections.abc import Callable

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

from dt_jax.acting.environments import import_callable, is_import
from dt_jax.acting.policy import Policy

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
    if is_import(spec):
        function = import_callable(spec, f"actor {spec!r}")
        return lambda _: lambda states_ExS, rewards_E: function(states_ExS)
    if not os.path.isdir(spec):
        raise FileNotFoundError(
            f"actor {spec!r}: no such folder; expected one of a trained policy, a .zip "
            "of stable-baselines3 or 'module:callable'"
        )
    if target_return is None:
        raise ValueError(f"actor {spec!r} is a policy, which needs a target return")
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

# SPDX-License-Identifier: Apache-2.0
"""Who acts: a policy, an agent of stable-baselines3, a function, or chance.

An actor is called with the number of episodes E that begin, and gives the function
`act(states_ExS, rewards_E) -> actions_ExA` of their steps; the rewards are those of
the step before, at first 0.
"""

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import gymnasium
import numpy as np
from absl import logging
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from dt_jax.acting.checked_env import one_line
from dt_jax.acting.environments import import_callable, is_import
from dt_jax.acting.policy import Policy

Act = Callable[[np.ndarray, np.ndarray], np.ndarray]
Actor = Callable[[int], Act]

# A zip of stable-baselines3 does not name its algorithm, but the module of its policy's
# class does, and among those of one module the first whose hyperparameter it has.
SB3_ALGORITHMS = {
    "PPO": ("stable_baselines3", "stable_baselines3.common.policies", "clip_range"),
    "TRPO": ("sb3_contrib", "stable_baselines3.common.policies", "cg_max_steps"),
    "A2C": ("stable_baselines3", "stable_baselines3.common.policies", "gae_lambda"),
    "SAC": ("stable_baselines3", "stable_baselines3.sac.policies", "target_entropy"),
    "TD3": ("stable_baselines3", "stable_baselines3.td3.policies", "policy_delay"),
    "DDPG": ("stable_baselines3", "stable_baselines3.td3.policies", "policy_delay"),
    "DQN": ("stable_baselines3", "stable_baselines3.dqn.policies", "exploration_rate"),
    "TQC": ("sb3_contrib", "sb3_contrib.tqc.policies", "target_entropy"),
    "CrossQ": ("sb3_contrib", "sb3_contrib.crossq.policies", "target_entropy"),
}
# Acting needs none of these: functions that another Python pickled, an empty buffer.
SB3_REPLACED = {
    "learning_rate": 0.0,
    "lr_schedule": lambda _: 0.0,
    "clip_range": lambda _: 0.0,
    "buffer_size": 1,
}


def load_actor(
    spec: str,
    *,
    seed: int | None = None,
    target_return: float | None = None,
    algorithm: str = "",
    normalization: str = "",
) -> Actor:
    """The actor that `spec` names.

    Args:
      spec: 'module:callable', which takes observations ExS and returns actions ExA; a
        zip of stable-baselines3 or sb3-contrib, which runs code when it is loaded; or
        the workdir or Hugging Face folder of a `Policy`.
      seed: draws a stable-baselines3 agent's actions, as data needs their spread; None
        takes the most likely ones.
      target_return: what a `Policy` is asked for, in raw reward.
      algorithm: of `SB3_ALGORITHMS`, for a zip whose policy is a class of one's own;
        the others say it themselves.
      normalization: a `VecNormalize` that stable-baselines3 saved, which runs code when
        it is loaded; the actor sees the observations as it normalises them.

    Raises:
      ValueError, FileNotFoundError: in one line, why there is no such actor.
    """
    if algorithm not in ("", *SB3_ALGORITHMS):
        raise ValueError(
            f"algorithm={algorithm!r}: expected one of {', '.join(SB3_ALGORITHMS)}"
        )
    if spec.endswith(".zip"):
        actor = _load_sb3(spec, seed, algorithm)
        beside = sorted(Path(spec).parent.glob("*vec*normalize*.pkl"))
        if beside and not normalization:
            _warn(
                f"actor {spec!r} sees observations as they are; if it was trained with "
                f"{beside[0]}, give it: normalization={beside[0]}"
            )
    elif is_import(spec):
        function = import_callable(spec, f"actor {spec!r}")

        def actor(_):
            return lambda states_ExS, rewards_E: function(states_ExS)

    elif not os.path.isdir(spec):
        raise FileNotFoundError(
            f"actor {spec!r}: no such folder; expected one of a trained policy, a .zip "
            "of stable-baselines3 or 'module:callable'"
        )
    elif target_return is None:
        raise ValueError(f"actor {spec!r} is a policy, which needs a target return")
    else:
        policy = Policy.load(spec)

        def actor(num_episodes):
            policy.reset(np.full(num_episodes, target_return))
            return policy.act

    return _normalized(actor, normalization) if normalization else actor


def random_actor(environment: gymnasium.Env, seed: int) -> Actor:
    """Uniform actions (normal ones in a space without bounds)."""
    rng = np.random.default_rng([seed, 1])  # environments of this seed draw others

    def begin(num_episodes):
        space = batch_space(environment.action_space, num_episodes)
        space.seed(int(rng.integers(2**32)))
        return lambda states_ExS, rewards_E: space.sample()

    return begin


def _load_sb3(spec, seed, algorithm):
    """An agent, which draws its actions when there is a seed to do so."""
    if not os.path.isfile(spec):
        raise FileNotFoundError(f"actor {spec!r}: no such file")
    try:
        with zipfile.ZipFile(spec) as archive:
            texts = {
                name: archive.read(name).decode()
                for name in ("data", "system_info.txt")
                if name in archive.namelist()
            }
        saved = json.loads(texts["data"])
        module = str(saved["policy_class"]["__module__"])
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"actor {spec!r} is no agent saved by stable-baselines3 ({error})"
        ) from error
    names = [
        name
        for name, (_, policy, hyperparameter) in SB3_ALGORITHMS.items()
        if policy == module and hyperparameter in saved
    ]
    own = not module.startswith(("stable_baselines3.", "sb3_contrib."))
    if own and algorithm:
        names = [algorithm]
    if not names:  # of those with a memory, too, which act wrongly without it
        raise ValueError(
            f"actor {spec!r}: found a policy of {module}, expected an agent of "
            f"{', '.join(SB3_ALGORITHMS)}"
            + ("; say by algorithm=PPO or the like which yours is" if own else "")
        )
    package = SB3_ALGORITHMS[names[0]][0]
    try:
        import stable_baselines3 as library
        import torch

        if package == "sb3_contrib":
            import sb3_contrib as library
    except ImportError as error:
        raise ValueError(
            f"actor {spec!r}, an agent of {names[0]}, needs a package: pip install "
            f"{package.replace('_', '-')}"
        ) from error
    versions = re.findall(
        r"(?:Python|Stable-Baselines3|Numpy|Gym\w*): \S+",
        texts.get("system_info.txt", ""),
    )
    versions = ", ".join(versions).replace(":", "") or "other versions"
    with _one_line_errors(f"actor {spec!r}, saved with {versions},"):
        agent = getattr(library, names[0]).load(
            spec, device="cpu", custom_objects=SB3_REPLACED
        )
    vector, choices = (spaces.Box,), (spaces.Discrete, spaces.MultiDiscrete)
    for name, space, kinds in (
        ("observations", agent.observation_space, vector),
        ("actions", agent.action_space, vector + choices),
    ):
        if not (isinstance(space, kinds) and len(space.shape) < 2):
            raise ValueError(
                f"actor {spec!r}: its {name} are {one_line(space)}, expected a Box of "
                "one dimension" + (" or choices" if kinds != vector else "")
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


def _normalized(actor, file):
    """The actor, which sees what the `VecNormalize` in the file makes of states."""
    name = f"normalization={file!r}"
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{name}: no such file")
    with _one_line_errors(name), open(file, "rb") as pickled:
        found = pickle.load(pickled)
    mean = getattr(getattr(found, "obs_rms", None), "mean", None)
    if not hasattr(found, "normalize_obs") or np.ndim(mean) != 1:
        raise ValueError(
            f"{name}: found a {type(found).__name__}, expected a VecNormalize of "
            "stable-baselines3 that normalises observations of one dimension"
        )

    def begin(num_episodes):
        act = actor(num_episodes)

        def act_normalized(states_ExS, rewards_E):
            if states_ExS.shape[1:] != mean.shape:
                raise ValueError(
                    f"{name}: normalises {len(mean)} numbers, but an observation has "
                    f"{states_ExS.shape[1]}"
                )
            return act(found.normalize_obs(states_ExS), rewards_E)

        return act_normalized

    return begin


@cache  # once: an actor is loaded to be checked, and again to act
def _warn(text):
    logging.warning(text)


@contextmanager
def _one_line_errors(what):
    """Whatever unpickling raises (by damage, other versions, a missing package)."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            yield
        except Exception as error:
            # stable-baselines3 warns of what it could not load, and then misses it.
            causes = [str(warning.message) for warning in told]
            causes = [c.rpartition("Exception: ")[2] for c in causes if "deser" in c]
            cause = one_line([*causes, f"{type(error).__name__}: {error}"][0])
            raise ValueError(
                f"{what} cannot be loaded here ({cause}); install what it asks for, "
                "save it anew with a current stable-baselines3, or let a "
                "'module:callable' act"
            ) from error

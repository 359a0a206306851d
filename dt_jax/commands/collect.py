# SPDX-License-Identifier: Apache-2.0
"""An actor's episodes in an environment, as a dataset."""

from pathlib import Path

from ml_collections import ConfigDict

from dt_jax.acting.environments import make_environments
from dt_jax.acting.rollout import record_episodes
from dt_jax.commands.evaluate import (
    actor_of,
    check_environment,
    environment_kwargs,
    environment_of,
)
from dt_jax.config import naming_keys
from dt_jax.system.files import another
from dt_jax.system.text import command, fit

AT_ONCE = 16  # episodes that run together, which is what memory has to hold


@naming_keys()
def collect(config: ConfigDict, workdir: Path) -> None:
    """Let `collect.actor` act in `eval.environment`; write `<workdir>/dataset`.

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
    if path.exists():  # or it is said below a progress bar
        raise ValueError(f"{path} exists already; {another(workdir)}")
    actor = actor_of(
        "collect.actor",
        config.collect.actor,
        seed=config.seed,
        algorithm=config.collect.algorithm,
        normalization=config.collect.normalization,
    )
    check_environment(config)
    environments = make_environments(
        name,
        environment_kwargs(config),
        min(AT_ONCE, episodes),
        max_episode_steps=config.eval.max_episode_steps,
        default_steps=config.data.max_ep_len,
    )
    truncated = record_episodes(
        path, environments, actor, num_episodes=episodes, seed=config.seed
    )
    cut = f"{truncated:,} cut by a time limit"
    print(fit(f"{episodes:,} episodes, {cut}, in {path}\n\nNext:"))
    print(command(f"--config.data.path={path}"))

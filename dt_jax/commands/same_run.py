# SPDX-License-Identifier: Apache-2.0
"""Is it the same run? What must agree when a run goes on, and among its processes."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from dt_jax.config import current_names, default_config, flatten
from dt_jax.data.trajectories import Trajectories
from dt_jax.model.decision_transformer import DecisionTransformer
from dt_jax.system import distributed
from dt_jax.system.files import another

# A run may go on with other values of these: they do not change what is learned, or
# (the number of updates) are changed on purpose. The data is known by its fingerprint.
FREE_SECTIONS = ("eval", "collect", "distributed", "log")
FREE_KEYS = {
    "data.path",
    "data.split",
    "data.cache",
    "data.placement",
    "train.num_train_epochs",
    "train.max_steps",
    "train.updates_per_call",
    "train.deterministic",
    "train.max_bad_updates",
    "train.logging_steps",
    "train.save_steps",
    "train.save_total_limit",
}


def is_free(key: str) -> bool:
    """Whether a run may go on with another value of this config key."""
    return key in FREE_KEYS or key.partition(".")[0] in FREE_SECTIONS


def check_same_start(config: ConfigDict, trajectories: Trajectories) -> None:
    """Refuse to train with processes that were given other values or other data."""
    if jax.process_count() == 1:
        return
    with distributed.raise_everywhere():
        trajectories.facts()
    mine = flatten(config.to_dict())
    mine |= {"data": trajectories.fingerprint()}
    firsts = distributed.broadcast(mine)
    with distributed.raise_everywhere():
        for key in sorted(mine.keys() - {"data.path", "data.cache"}):
            if mine[key] != firsts[key]:
                raise ValueError(
                    f"{key}={mine[key]} here, but {firsts[key]} in process 0; give all "
                    "processes the same command and the same data"
                )


def check_same_run(
    workdir: Path,
    config: ConfigDict,
    trajectories: Trajectories,
    model: DecisionTransformer,
    record: dict,
) -> None:
    """Refuse to go on with other data, or with a config that means another run."""
    path = config.data.path
    # A key that is newer than the run has had its default.
    before = flatten(default_config().to_dict())
    before |= flatten(current_names(record["config"]))
    now = flatten(config.to_dict())
    for key in sorted(before.keys() | now):
        if not is_free(key) and before.get(key) != now.get(key):
            raise ValueError(
                f"{workdir} holds a run with {key}={before.get(key)}, but now "
                f"{key}={now.get(key)}; {another(workdir)}"
            )
    for key in ("state_dim", "act_dim"):
        if record["model"][key] != (found := getattr(model, key)):
            raise ValueError(
                f"{workdir} holds a run with {key}={record['model'][key]}, but "
                f"data.path={path!r} has {key}={found}; {another(workdir)}"
            )
    fingerprint = trajectories.fingerprint()
    if record["fingerprint"] != fingerprint:
        raise ValueError(
            f"{workdir} holds a run on data of fingerprint "
            f"{record['fingerprint']}, but data.path={path!r} has {fingerprint}; "
            f"{another(workdir)}"
        )

# SPDX-License-Identifier: Apache-2.0
"""Minari's datasets, by their id or their folder, whatever they are stored in.

Observations that are no vectors are flattened in the order of Gymnasium's `flatten`,
as environments' are.
"""

import json
import os
import re
from pathlib import Path

import numpy as np

from dt_jax.data.episodes import Source, describe_actions

NAME = "Minari"
AT_ONCE = 16  # episodes
METADATA = "metadata.json"
STORED = "data_format"  # a key of the metadata, by which they are known


def files(path: Path, split: str) -> list[Path]:
    for folder in (path, path / "data", _root() / path / "data"):
        if _is_dataset(folder):
            found = sorted(file for file in folder.rglob("*") if file.is_file())
            found.remove(folder / METADATA)
            return [folder / METADATA, *found]
    if re.fullmatch(r"([-\w]+/)*[-\w]+-v\d+", str(path)) and not path.exists():
        raise FileNotFoundError(
            f"no such folder, and no Minari dataset of this id in {_root()}; "
            f"`minari download {path}` fetches one"
        )
    return []


def read(files: list[Path]) -> Source:
    try:
        from minari import MinariDataset
    except ImportError:
        raise ValueError(
            "Minari's datasets need the package: pip install 'minari[hdf5]' (the extra "
            "dt-jax[minari])"
        ) from None
    metadata = json.loads(files[0].read_text(encoding="utf-8"))
    try:
        dataset = MinariDataset(files[0].parent)
    except Exception as error:  # of other packages, versions and environments
        raise _unreadable(error) from None
    about = _environment(metadata)
    scores = [metadata.get(f"ref_{end}_score") for end in ("min", "max")]
    if None not in scores:
        about["score_range"] = [float(score) for score in scores]
    space = dataset.observation_space
    check_space(space)
    about["observations"] = "" if _is_vector(space) else " ".join(str(space).split())
    about |= describe_actions(dataset.action_space)
    return Source(about, len(dataset), _episodes(dataset))


def check_space(space) -> None:
    """Refuse what has no fixed number of numbers."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict | spaces.Tuple):
        for part in space.values() if isinstance(space, spaces.Dict) else space:
            check_space(part)
        return
    numbers = spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary
    is_image = space.dtype == np.uint8 and len(space.shape or ()) > 1
    if not isinstance(space, numbers) or is_image:
        raise ValueError(
            f"its observations hold {' '.join(str(space).split())}; expected vectors "
            "of numbers, or a Dict or Tuple of them"
        )


def flatten_steps(space, values) -> np.ndarray:
    """TxS: what `gymnasium.spaces.flatten` makes of each of T observations."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        parts = [flatten_steps(part, values[key]) for key, part in space.items()]
        return np.concatenate(parts, axis=1)
    if isinstance(space, spaces.Tuple):
        pairs = zip(space, values, strict=True)
        return np.concatenate([flatten_steps(*pair) for pair in pairs], axis=1)
    values = np.asarray(values)
    if isinstance(space, spaces.Discrete):
        return np.eye(int(space.n))[values.reshape(-1) - int(space.start)]
    if isinstance(space, spaces.MultiDiscrete):
        starts, sizes = space.start.reshape(-1), space.nvec.reshape(-1)
        columns = (values.reshape(len(values), -1) - starts[None]).T
        ones = [np.eye(n)[c] for n, c in zip(sizes, columns, strict=True)]
        return np.concatenate(ones, axis=1)
    return values.reshape(len(values), -1)


def _episodes(dataset):
    space, steps = dataset.observation_space, 0
    first = getattr(dataset.action_space, "start", 0)  # choices are counted from 0
    for episode in _read(dataset):
        steps += len(episode)
        if not isinstance(episode.actions, np.ndarray):
            raise ValueError(
                f"its actions are {' '.join(str(dataset.action_space).split())}, "
                "expected vectors of numbers"
            )
        yield {
            "observations": flatten_steps(space, episode.observations),
            "actions": episode.actions.reshape(len(episode.actions), -1) - first,
            "rewards": episode.rewards,
            "terminations": episode.terminations,
            "truncations": episode.truncations,
        }
    if steps != dataset.total_steps:  # Minari reads no more than 131,072 of an episode
        raise ValueError(
            f"read {steps:,} steps, but its metadata has {dataset.total_steps:,}"
        )


def _read(dataset):
    """Its episodes, few at once: HDF5 is opened each time, and Arrow reads ahead."""
    for first in range(0, len(dataset), AT_ONCE):
        some = dataset.episode_indices[first : first + AT_ONCE]
        try:
            yield from dataset.iterate_episodes(some)
        except Exception as error:  # of other packages
            raise _unreadable(error, f"from episode {first} on: ") from None


def _environment(metadata):
    """How to make the environment again, where the dataset says it."""
    told = metadata.get("eval_env_spec") or metadata.get("env_spec")
    if not told:
        return {}
    spec = json.loads(told)
    package = str(spec.get("entry_point") or "gymnasium").partition(".")[0]
    package = package.partition(":")[0]  # importing it makes the id known
    return {
        "environment": spec["id"]
        if package == "gymnasium"
        else f"{package}:{spec['id']}",
        "environment_kwargs": json.dumps(spec.get("kwargs") or {}),
    }


def _root():
    home = Path.home() / ".minari" / "datasets"
    return Path(os.environ.get("MINARI_DATASETS_PATH") or home)


def _is_dataset(folder):
    try:
        return STORED in json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _is_vector(space):
    from gymnasium import spaces

    return isinstance(space, spaces.Box) and len(space.shape) == 1


def _unreadable(error, where=""):
    told = " ".join(str(error).split())[:200]
    return ValueError(f"{where}not a readable Minari dataset ({told})")

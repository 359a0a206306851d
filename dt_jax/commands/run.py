# SPDX-License-Identifier: Apache-2.0
"""The commands from Python: train in a notebook, and look at what a run has left."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from dt_jax.config import check, saved_config
from dt_jax.system.files import read_json
from dt_jax.system.process import compute_deterministically, keep_compiled

# JAX is imported where it is needed: to look at figures takes no device.
if TYPE_CHECKING:
    import pandas

    from dt_jax.acting.policy import Policy


def train(config: ConfigDict, workdir: str | os.PathLike) -> Run:
    """Train in this process, as `python main.py` does, or go on training in a workdir.

    Ctrl-C (the stop button of a notebook) saves the state and raises KeyboardInterrupt;
    the same call then goes on from there.

    Args:
      config: `default_config()` with some keys changed; a copy of it is used.
      workdir: the folder of the run, made if need be.

    Raises:
      ValueError, FileNotFoundError: the config, the data or the checkpoints are at
        fault; nothing of an existing run has been changed.
      OSError: something could not be read or written; the last good checkpoint is kept.
      FloatingPointError: too many updates in a row were not finite.
    """
    config, workdir = check(config, "config"), Path(workdir).expanduser()
    _before_jax(config)
    from dt_jax.commands import train as command

    command.train(config, workdir)
    return Run(workdir)


def evaluate(
    workdir: str | os.PathLike,
    *,
    environment: str | None = None,
    environment_kwargs: Mapping | None = None,
    targets: Sequence[float | str] | str | None = None,
    episodes: int | None = None,
    max_episode_steps: int | None = None,
    baselines: Sequence[str] | None = None,
    score_range: Sequence[float] | None = None,
) -> dict:
    """Let the run's newest good checkpoint act; what is None is as its config says.

    Args:
      environment: a Gymnasium id or 'module:callable'; environment_kwargs: its
        arguments.
      targets: returns to aim at, in raw reward; one may be 'auto'.
      episodes: for each target, on the same seeds.
      max_episode_steps: after which one is cut; 0: see the config.
      baselines: others on the same seeds: 'module:callable' (observations -> actions),
        a .zip of stable-baselines3, a workdir or a Hugging Face folder; or a clone that
        was trained with the run, 'clone' or 'clone-best-10%'.
      score_range: the two returns that are normalised to 0 and to 100.

    Returns:
      What `report/evaluation.json` then holds: the returns of each actor and more.

    Raises:
      ValueError, FileNotFoundError: there is no trained run, or something does not fit.
    """
    workdir = Path(workdir).expanduser()
    config = saved_config(workdir)
    given = {
        "environment": environment,
        "environment_kwargs": environment_kwargs and json.dumps(environment_kwargs),
        "targets": None if targets is None else _targets(targets),
        "episodes": episodes,
        "max_episode_steps": max_episode_steps,
        "baselines": None if baselines is None else tuple(baselines),
        "score_range": None if score_range is None else tuple(map(float, score_range)),
    }
    config.eval.update({k: value for k, value in given.items() if value is not None})
    config = check(config, "config")
    _before_jax(config)
    from dt_jax.commands import evaluate as command

    return command.evaluate(config, workdir)


def _targets(given) -> tuple:
    words = [given] if isinstance(given, str) else given
    return tuple(each if isinstance(each, str) else float(each) for each in words)


def _before_jax(config):
    """What main.py does; where JAX has started before, its flags are as they are."""
    keep_compiled()
    if config.train.deterministic:
        compute_deterministically()


class Run:
    """A run and what it has left in its workdir; read anew whenever it is asked for.

    Raises:
      FileNotFoundError: the folder holds no run.
    """

    def __init__(self, workdir: str | os.PathLike):
        self.workdir = Path(workdir).expanduser()
        saved_config(self.workdir)

    @classmethod
    def load(cls, workdir: str | os.PathLike) -> Run:
        """The run of a folder, whoever has trained it."""
        return cls(workdir)

    @property
    def config(self) -> ConfigDict:
        """The whole config of the run."""
        return saved_config(self.workdir)

    @property
    def summary(self) -> dict:
        """The figures of a finished run (`train_loss`, `train_runtime`, ...), or {}."""
        return self._json("summary.json")

    @property
    def metrics(self) -> pandas.DataFrame:
        """A row for each record: step, epoch, loss, learning_rate, grad_norm, ..."""
        import pandas

        return pandas.DataFrame(self._records())

    @property
    def evaluation(self) -> dict:
        """What the last evaluation found (see `evaluate`), or {}."""
        return self._json("report/evaluation.json")

    def policy(self) -> Policy:
        """The newest good checkpoint, to act with."""
        from dt_jax.acting.policy import Policy

        return Policy.load(self.workdir)

    def evaluate(self, **options) -> dict:
        """As `dt_jax.evaluate` of this run, with the same options."""
        return evaluate(self.workdir, **options)

    def export(self) -> Path:
        """Write the newest good checkpoint for `transformers`; returns the folder."""
        from dt_jax.commands.export import export

        export(self.config, self.workdir)
        return self.workdir / "hf"

    def __repr__(self) -> str:
        records = self._records()
        if not records:
            return f"Run({str(self.workdir)!r}): no record yet"
        last = records[-1]
        state = "complete" if self.summary else "not finished"
        return (
            f"Run({str(self.workdir)!r}): {last['step']:,} updates, {state}, "
            f"loss {last['loss']:.4g}"
        )

    def _repr_html_(self) -> str:
        from dt_jax.reporting.run_page import run_fragment

        return run_fragment(self.workdir)

    def _records(self) -> list[dict]:
        from dt_jax.training.metrics import read_metrics

        return read_metrics(self.workdir / "metrics.jsonl")

    def _json(self, name) -> dict:
        path = self.workdir / name
        return read_json(path) if path.is_file() else {}

# SPDX-License-Identifier: Apache-2.0
"""The members of `config.sweep`: which runs are to be made in one program.

In goes the config of all, out comes a config for each, by its name.
"""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from dt_jax.config import flatten, unknown

MEMBERS = "members"  # the folder of their workdirs
BASELINES = "baselines"  # of a run: the workdir of the sweep of its clones
SIMULATED_MARKET = "simulated_market"  # the embedded dataset's folder in the workdir
EXAMPLE = """'{"seed": [0, 1, 2], "optimizer.learning_rate": [1e-4, 3e-4]}'"""
OF_THE_UPDATE = (
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"
)  # fmt: skip
OF_THE_RATE = ("learning_rate", "warmup_ratio")
DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
# What changes neither shapes nor the data.
SWEPT = (
    "seed",
    "data.return_scale",
    "data.discount",
    "data.keep_best",
    "model.condition_on",
    *(f"model.{name}" for name in DROPOUT),
    *(f"optimizer.{name}" for name in (*OF_THE_RATE, *OF_THE_UPDATE)),
)


def members_of(config: ConfigDict) -> dict[str, ConfigDict]:
    """{name: config} of the members, in the order of the grid or list; {} without one.

    Raises:
      ValueError: `config.sweep` is no grid or list of what can be swept.
    """
    if config.sweep_at_once < 0 or (config.sweep_at_once and not config.sweep):
        raise ValueError(
            f"sweep_at_once={config.sweep_at_once}: expected how many members of a "
            "sweep are trained at once, or 0"
        )
    if not config.sweep:
        return {}
    found, defaults = {}, flatten(config.to_dict())
    for values in _settings(config.sweep):
        for key, value in values.items():
            if key not in defaults:
                raise ValueError(f"sweep: {key}: {unknown(key)}")
            if key not in SWEPT:
                raise ValueError(
                    f"sweep: {key} changes shapes or the data: such runs are separate "
                    f"commands; these can be swept: {', '.join(SWEPT)}"
                )
            if type(value) not in (int, type(defaults[key])):
                raise ValueError(
                    f"sweep: {key}={value!r}: expected one like {defaults[key]!r}"
                )
        member = config.copy_and_resolve_references()
        alone = {"sweep": "", "sweep_at_once": 0}
        member.update_from_flattened_dict(values | alone)
        name = _name(values)
        if name in found:
            raise ValueError(f"sweep: {name} is there twice")
        found[name] = member
    return found


def clones_of(config: ConfigDict, workdir: Path) -> ConfigDict | None:
    """The sweep of the clones that `eval.baselines` names, for the workdir `BASELINES`
    in this one: as the run, on the same updates, and not evaluated by itself."""
    settings = {s: values for s in config.eval.baselines if (values := _clone(s))}
    if not settings:
        return None
    clones = config.copy_and_resolve_references()
    clones.update({"sweep": json.dumps([*settings.values()]), "sweep_at_once": 0})
    clones.eval.update({"baselines": (), "episodes": 0})
    clones.model.predict_return = False
    clones.data.path = config.data.path or str(workdir / SIMULATED_MARKET)
    return clones


def clone_workdir(spec: str, workdir: Path) -> Path | None:
    """Where the clone is that a word of `eval.baselines` names; None: it is no clone.

    Raises:
      ValueError: it is a clone of no share of the data.
    """
    values = _clone(spec)
    return values and workdir / BASELINES / MEMBERS / _name(values)


def _clone(spec) -> dict | None:
    """The keys in which a clone differs from the run, and their values."""
    if not (found := re.fullmatch(r"clone(-best-(\d+(?:\.\d+)?)%)?", spec)):
        return None
    if not found[1]:
        return {"model.condition_on": "nothing"}
    share = round(float(found[2]) / 100, 6)
    if not 0 < share < 1:
        raise ValueError(f"eval.baselines: {spec}: expected above 0 and below 100 %")
    return {"model.condition_on": "nothing", "data.keep_best": share}


def _name(values) -> str:
    return ",".join(f"{k.rpartition('.')[2]}={v}" for k, v in values.items())


def _settings(text) -> list[Mapping]:
    """Of each member the keys and their values."""
    fault = f"expected JSON: lists of values, such as {EXAMPLE}, or a list of objects"
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"sweep={text!r}: {error}; {fault}") from None
    if isinstance(given, dict):
        if not all(isinstance(values, list) and values for values in given.values()):
            raise ValueError(f"sweep={text!r}: {fault}")
        rows = itertools.product(*given.values())
        return [dict(zip(given, row, strict=True)) for row in rows]
    if isinstance(given, list) and given and all(isinstance(x, dict) for x in given):
        return given
    raise ValueError(f"sweep={text!r}: {fault}")

# SPDX-License-Identifier: Apache-2.0
"""A run's weights as a folder for `transformers`."""

from importlib.resources import files
from pathlib import Path

from ml_collections import ConfigDict

from dt_jax.config import changed_keys
from dt_jax.model.decision_transformer import DecisionTransformer
from dt_jax.model.hf_weights import export_hf
from dt_jax.reporting.model_card import model_card
from dt_jax.system.files import read_json, replacing
from dt_jax.system.text import command, fit
from dt_jax.training.checkpoint import load_trained
from dt_jax.training.metrics import read_metrics

RECIPE = ("data", "model", "optimizer", "train", "seed")  # what the card lists
PATHS = ("data.path", "train.init_from")  # of one machine


def export(config: ConfigDict, workdir: Path) -> None:
    """Write the newest good checkpoint of the run to `hf/`, for `from_pretrained`.

    Raises:
      ValueError, FileNotFoundError: there is no trained run, or it is damaged.
    """
    del config  # the run has its own
    trained = load_trained(workdir)
    folder, model = workdir / "hf", DecisionTransformer(**trained.fields)
    card = model_card(
        _recipe(read_json(workdir / "config.json")),
        read_json(workdir / "data_report.json"),
        read_metrics(workdir / "metrics.jsonl"),
        trained.fields,
        step=trained.step,
        return_scale=trained.normalization["return_scale"],
        evaluation=_found(workdir, "evaluation", trained.step),
        held_out=_found(workdir, "held_out", trained.step),
    )
    export_hf(folder, model, trained.params, trained.normalization)
    acting = files("dt_jax.acting").joinpath("torch_policy.py").read_bytes()
    with replacing(folder / "acting.py") as unfinished:
        unfinished.write_bytes(acting)
    with replacing(folder / "README.md") as unfinished:
        unfinished.write_text(card, encoding="utf-8")
    print(fit(f"DecisionTransformerModel.from_pretrained opens {folder}"))
    print("To put it on the Hub:")
    print(command("upload", "USER/NAME", str(folder), program="hf"))


def _recipe(saved) -> dict:
    """The keys of the recipe that are not as by default."""
    return {
        key: value
        for key, value in changed_keys(saved).items()
        if key.partition(".")[0] in RECIPE and key not in PATHS
    }


def _found(workdir, name, step) -> dict | None:
    """What was found of the weights of this update, if it was, else the last."""
    folder = workdir / "report"
    for path in (folder / f"{name}s" / f"{step}.json", folder / f"{name}.json"):
        if path.is_file():
            return read_json(path)
    return None

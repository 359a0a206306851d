# SPDX-License-Identifier: Apache-2.0
"""A run's weights as a folder for `transformers`."""

from pathlib import Path

from ml_collections import ConfigDict

from dt_jax.config import current_names
from dt_jax.model.decision_transformer import DecisionTransformer
from dt_jax.model.hf_weights import export_hf
from dt_jax.reporting.evaluation_tables import describe_evaluation
from dt_jax.reporting.model_card import model_card
from dt_jax.system.files import read_json, replacing
from dt_jax.training.checkpoint import load_trained
from dt_jax.training.metrics import read_metrics


def export(config: ConfigDict, workdir: Path) -> None:
    """Write the newest good checkpoint of the run to `hf/`, for `from_pretrained`.

    Raises:
      ValueError, FileNotFoundError: there is no trained run, or it is damaged.
    """
    del config  # the run has its own
    trained = load_trained(workdir)
    model = DecisionTransformer(**trained.fields)
    export_hf(workdir / "hf", model, trained.params, trained.normalization)
    recipe = current_names(read_json(workdir / "config.json"))
    data = read_json(workdir / "data_report.json")
    records = read_metrics(workdir / "metrics.jsonl")
    path = workdir / "report" / "evaluation.json"
    found = describe_evaluation(read_json(path)) if path.is_file() else ""
    with replacing(workdir / "hf" / "README.md") as unfinished:
        unfinished.write_text(model_card(recipe, data, records, trained.fields, found))
    print(f"{workdir / 'hf'}: DecisionTransformerModel.from_pretrained opens it")

# SPDX-License-Identifier: Apache-2.0
"""Weights come in from a folder or a run, and go out again."""

import json
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dt_jax.acting.policy import Policy
from dt_jax.commands.export import export
from dt_jax.commands.train import train
from dt_jax.config import default_config
from dt_jax.data.readers import load_trajectories
from dt_jax.data.writer import save_trajectories
from dt_jax.model.decision_transformer import DecisionTransformer, init_params
from dt_jax.model.hf_weights import export_hf, import_hf
from dt_jax.training.checkpoint import load_trained
from dt_jax.training.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compile_fast")]
SMALL = {
    "data.context_length": 4,
    "data.max_ep_len": 12,
    "data.return_scale": 10.0,
    "model.max_ep_len": 12,
    "model.hidden_size": 16,
    "model.n_layer": 1,
    "train.batch_size": 8,
    "train.max_steps": 2,
    "train.updates_per_call": 2,
    "train.logging_steps": 1,
}


def make_config(dataset, **changes):
    config = default_config()
    config.update_from_flattened_dict({"data.path": str(dataset)} | SMALL | changes)
    return config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "dataset"
    save_trajectories(
        path,
        (
            {
                "observations": rng.normal(size=(9, 3)) + 4,
                "actions": np.tanh(rng.normal(size=(9, 2))),
                "rewards": rng.normal(size=9),
                "dones": np.zeros(9, bool),
            }
            for _ in range(12)
        ),
    )
    return path


@pytest.fixture(scope="module")
def workdir(dataset, tmp_path_factory):
    """A trained run, exported."""
    path = tmp_path_factory.mktemp("runs") / "first"
    train(make_config(dataset), path)
    export(make_config(dataset), path)
    return path


def test_a_run_and_its_export_hold_the_same_model(workdir, dataset):
    run, folder = load_trained(workdir), load_trained(workdir / "hf")
    ours = {"dtype": "float32", "action_sizes": []}
    ours |= {"condition_on": "return", "predict_return": False}
    assert run.fields == folder.fields | ours
    for module, leaves in run.params.items():
        for leaf, array in leaves.items():
            np.testing.assert_array_equal(array, folder.params[module][leaf])
    data = load_trajectories(dataset)
    assert run.normalization == folder.normalization
    np.testing.assert_array_equal(
        np.float32(folder.normalization["state_mean"]), data.state_mean
    )
    rest = {key: folder.normalization[key] for key in ("return_scale", "max_ep_len")}
    assert rest == {"return_scale": 10.0, "max_ep_len": 12}
    assert folder.normalization["context_length"] == 4


def test_export_twice_gives_the_same_bytes(workdir, dataset):
    before = {path.name: path.read_bytes() for path in (workdir / "hf").iterdir()}
    assert before.keys() == {
        "acting.py", "config.json", "model.safetensors", "normalization.json",
        "README.md"
    }  # fmt: skip
    shutil.rmtree(workdir / "hf")
    export(make_config(dataset), workdir)
    assert {p.name: p.read_bytes() for p in (workdir / "hf").iterdir()} == before


def run_card(folder, source="."):
    """What its snippet defines, run in the folder where we are."""
    card = (folder / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    scope, path = {}, list(sys.path)
    try:
        exec(code.replace('source = "."', f"source = {source!r}"), scope)
    finally:
        sys.path[:] = path
        sys.modules.pop("acting", None)
    return scope


@pytest.mark.parity
@pytest.mark.parametrize("discount", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("where", ["folder", "Hub"])
def test_the_card_acts_as_we_do(workdir, tmp_path, monkeypatch, discount, where):
    """Longer than the context (4) and than max_ep_len (12); two episodes."""
    pytest.importorskip("transformers")
    folder = Path(shutil.copytree(workdir / "hf", tmp_path / "hf"))
    file = folder / "normalization.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"discount": discount}))
    monkeypatch.chdir(tmp_path)
    source = str(folder)
    if where == "Hub":
        source, names = "USER/NAME", set()

        def download(repo, name):
            assert repo == source
            names.add(name)
            return str(folder / name)

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    scope, policy = run_card(folder, source), Policy.load(folder)
    if where == "Hub":
        assert names == {path.name for path in folder.iterdir()} - {"README.md"}
    assert scope["action"].shape == (2,)
    rng = np.random.default_rng(1)
    for target in (30.0, -50.0):
        scope["policy"].reset(target)
        policy.reset(target)
        for t in range(15):
            # Large rewards: not to discount must move an action.
            state_S, reward = rng.normal(size=3) + 4, 10 * rng.normal()
            found = scope["policy"].act(state_S, reward).numpy()
            expected = policy.act(state_S, reward if t else None)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("source", ["", "hf"])
def test_training_starts_from_given_weights(workdir, dataset, tmp_path, source):
    config = make_config(
        dataset, **{"train.init_from": str(workdir / source), "train.max_steps": 1}
    )
    config.optimizer.learning_rate = 0.0  # so that what it starts from is what it saves
    train(config, tmp_path / "second")
    jax.tree.map(
        np.testing.assert_array_equal,
        load_trained(tmp_path / "second").params,
        load_trained(workdir).params,
    )
    assert read_metrics(tmp_path / "second" / "metrics.jsonl")[0]["step"] == 1


def test_settings_that_only_hf_has_are_taken_over(dataset, tmp_path):
    """A folder that scales attention otherwise is trained, and stays, as it is."""
    model = DecisionTransformer(
        state_dim=3, act_dim=2, hidden_size=16, n_layer=1, max_ep_len=12,
        n_positions=8, vocab_size=2, scale_attn_weights=False,
    )  # fmt: skip
    export_hf(tmp_path / "hf", model, init_params(model, jax.random.key(0)))
    config = make_config(dataset, **{"train.init_from": str(tmp_path / "hf")})
    train(config, tmp_path / "run")
    export(config, tmp_path / "run")
    fields, _ = import_hf(tmp_path / "run" / "hf")
    expected = {"n_positions": 8, "vocab_size": 2, "scale_attn_weights": False}
    assert {key: fields[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.hidden_size": 32}, "add --config.model.hidden_size=16"),
        ({"model.n_layer": 2, "model.action_tanh": False}, "--config.model.n_layer=1"),
        ({"model.action_tanh": False}, "add --config.model.action_tanh=True"),
    ],
)
def test_another_model_is_refused_with_the_flags_to_add(
    workdir, dataset, tmp_path, changes, named
):
    changes = changes | {"train.init_from": str(workdir / "hf")}
    with pytest.raises(ValueError, match=re.escape(named)):
        train(make_config(dataset, **changes), tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_weights_of_other_dims_are_refused(workdir, tmp_path):
    save_trajectories(
        tmp_path / "wide",
        [
            {
                "observations": np.arange(20.0).reshape(4, 5),
                "actions": np.zeros((4, 2)),
                "rewards": np.zeros(4),
                "dones": np.zeros(4, bool),
            }
        ],
    )
    config = make_config(tmp_path / "wide", **{"train.init_from": str(workdir)})
    with pytest.raises(ValueError, match="has state_dim=3, but the data has 5"):
        train(config, tmp_path / "second")


def test_what_is_no_model_is_refused(dataset, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=f"{path.name}: neither checkpoint"):
            export(make_config(dataset), path)
        config = make_config(dataset, **{"train.init_from": str(path)})
        with pytest.raises(FileNotFoundError, match=f"{path.name}: neither checkpoint"):
            train(config, tmp_path / "second")
    (tmp_path / "unsaved" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        export(make_config(dataset), tmp_path / "unsaved")


def test_a_folder_that_is_no_run_stays_as_it_is(workdir, dataset, tmp_path):
    copy = Path(shutil.copytree(workdir / "hf", tmp_path / "copy"))
    before = sorted(copy.iterdir())
    with pytest.raises(FileNotFoundError, match=r"data_report\.json: no such file"):
        export(make_config(dataset), copy)
    assert sorted(copy.iterdir()) == before


def test_a_nan_in_given_weights_is_named(workdir, dataset, tmp_path):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(workdir / "hf", tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    tensors["embed_ln.weight"][3] = np.nan
    save_file(tensors, file)
    config = make_config(dataset, **{"train.init_from": str(tmp_path / "hf")})
    with pytest.raises(ValueError, match=r"embed_ln\.weight is not finite"):
        train(config, tmp_path / "second")


def test_the_card_tells_recipe_data_and_loss(workdir):
    card = (workdir / "hf" / "README.md").read_text()
    summary = json.loads((workdir / "summary.json").read_text())
    last = read_metrics(workdir / "metrics.jsonl")[-1]["loss"]
    assert "| model.n_layer | 1 |" in card
    assert "| optimizer." not in card  # all of them are the defaults
    assert "data.path" not in card
    assert "12 trajectories, 108 steps" in card
    assert f"| {summary['global_step']} | {last:.5g} |" in card


def test_the_command_that_uploads_is_printed(workdir, dataset, capsys):
    export(make_config(dataset), workdir)
    assert f"\n  hf upload USER/NAME {workdir / 'hf'}\n" in capsys.readouterr().out

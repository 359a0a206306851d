# SPDX-License-Identifier: Apache-2.0
"""What HF wrote comes in whole and goes out byte for byte; the rest is named."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dt_jax.model.decision_transformer import DecisionTransformer, init_params
from dt_jax.model.hf_weights import (
    ALIASES,
    FIELDS,
    REFUSED_ACTIVATIONS,
    export_hf,
    import_hf,
)
from dt_jax.model.layers import ACTIVATIONS

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/golden.npz"))
BUFFER = np.tril(np.ones((1, 1, 4, 4), bool))


@pytest.fixture
def folder(tmp_path):
    """A copy of the golden folder `base`, to be damaged."""
    return Path(shutil.copytree(GOLDEN / "base", tmp_path / "hf"))


def configure(**changes):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


def rewrite(change):
    """Passes the tensors of the folder through `change`."""

    def edit(folder):
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return edit


def put(key, value):
    return rewrite(lambda tensors: tensors | {key: np.asarray(value)})


def drop(*keys):
    return rewrite(lambda tensors: {k: x for k, x in tensors.items() if k not in keys})


def halve(dtype):
    return rewrite(lambda tensors: {k: x.astype(dtype) for k, x in tensors.items()})


def prefix(text, only=""):
    return rewrite(
        lambda tensors: {
            text * key.startswith(only) + key: x for key, x in tensors.items()
        }
    )


def shard(folder):
    """The layout of save_pretrained with a small max_shard_size."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    weight_map = {key: f"{i % 3}.safetensors" for i, key in enumerate(sorted(tensors))}
    for name in set(weight_map.values()):
        part = {key: x for key, x in tensors.items() if weight_map[key] == name}
        save_file(part, folder / name, {"format": "pt"})
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    Path(f"{file}.index.json").write_text(index)
    file.unlink()


def pickle(folder):
    """What older versions of transformers saved, whole or sharded."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    for file in folder.glob("*.safetensors"):
        name = file.stem.replace("model", "pytorch_model") + ".bin"
        torch.save(safetensors.load_file(file), folder / name)
        file.unlink()
    if (index := folder / "model.safetensors.index.json").exists():
        text = index.read_text().replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()


def after(*edits):
    def edit(folder):
        for one in edits:
            one(folder)

    return edit


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def remove(name):
    return lambda folder: (folder / name).unlink()


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("name", NAMES)
def test_import_then_export_keeps_every_byte(tmp_path, name):
    fields, params = import_hf(GOLDEN / name)
    model = DecisionTransformer(**fields)
    export_hf(tmp_path / "a", model, params)
    export_hf(tmp_path / "b", model, jax.tree.map(jnp.asarray, params))
    found = load_file(tmp_path / "a" / "model.safetensors")
    expected = load_file(GOLDEN / name / "model.safetensors")
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert (found[key].shape, found[key].dtype) == (array.shape, array.dtype), key
        assert found[key].tobytes() == array.tobytes(), key
    for file in ("config.json", "model.safetensors"):
        one, other = (tmp_path / x / file for x in "ab")
        assert one.read_bytes() == other.read_bytes()
    config = json.loads((GOLDEN / name / "config.json").read_text())
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert {key: written[key] for key in FIELDS} == fields
    assert fields == {key: config[key] for key in FIELDS}


def test_a_failed_export_leaves_what_was_there(folder, monkeypatch):
    fields, params = import_hf(folder)
    params["encoder.wte"]["embedding"] = np.ones((1, 16), np.float32)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        export_hf(folder, DecisionTransformer(**fields), params)
    for name, data in before.items():
        assert (folder / name).read_bytes() == data
    monkeypatch.undo()
    export_hf(folder, DecisionTransformer(**fields), params)
    assert {file.name for file in folder.iterdir()} == before.keys()


def test_a_first_export_is_whole_or_not_there(folder, tmp_path, monkeypatch):
    fields, params = import_hf(folder)
    replace, written = os.replace, []

    def fail_at_the_third(*names):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(replace(*names))

    monkeypatch.setattr(os, "replace", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        export_hf(tmp_path / "new", DecisionTransformer(**fields), params, {"a": 1})
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"model.safetensors", "normalization.json"}
    with pytest.raises(FileNotFoundError):
        import_hf(tmp_path / "new")


@pytest.mark.parametrize(
    "edit",
    [
        shard,
        pytest.param(pickle, marks=pytest.mark.parity),
        pytest.param(after(shard, pickle), marks=pytest.mark.parity),
        prefix("model."),
        prefix("decision_transformer."),
        after(prefix("_orig_mod.module."), shard),
        put("encoder.h.1.attn.bias", BUFFER),
        after(put("encoder.h.0.attn.masked_bias", -1e4), prefix("model.")),
        configure(architectures=["TrainableDT"], max_length=20, n_ctx=1024),
        after(
            configure(num_hidden_layers=2, num_attention_heads=1, n_layer=2),
            configure(max_position_embeddings=4),
        ),
    ],
)
def test_every_way_of_saving_gives_the_same_parameters(folder, edit):
    edit(folder)
    fields, params = import_hf(folder)
    expected_fields, expected = import_hf(GOLDEN / "base")
    assert fields == expected_fields
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize(
    "edit", [lambda folder: None, pytest.param(pickle, marks=pytest.mark.parity)]
)
def test_other_precisions_become_float32(folder, dtype, edit):
    # A third has more digits in float64 than are kept.
    third = rewrite(
        lambda tensors: {k: x / x.dtype.type(3) for k, x in tensors.items()}
    )
    after(halve(dtype), third)(folder)
    expected = load_file(folder / "model.safetensors")["embed_state.weight"].T
    edit(folder)
    _, params = import_hf(folder)
    found = params["embed_state"]["kernel"]
    assert found.dtype == np.float32
    assert expected.dtype == dtype
    np.testing.assert_array_equal(found, expected.astype(np.float32))


# Fields that HF has not.
OURS = ("dtype", "action_sizes", "condition_on", "predict_return")


def test_keys_that_a_config_leaves_out_have_hf_defaults(folder):
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(DecisionTransformer)
        if field.name not in ("parent", "name", *OURS)
    }
    assert defaults == FIELDS
    config = {"state_dim": 5, "act_dim": 3, "hidden_size": 16, "max_ep_len": 24}
    config |= {"n_positions": 4, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    fields, _ = import_hf(folder)
    renamed = {ALIASES.get(key, key): value for key, value in config.items()}
    assert fields == FIELDS | renamed


REFUSALS = [
    (shutil.rmtree, "hf/config.json: no such file"),
    (remove("config.json"), "hf/config.json: no such file"),
    (write("config.json", "{"), "hf/config.json: not JSON (Expecting property name"),
    (write("config.json", "[1]"), "hf/config.json: found list, expected an object"),
    (
        configure(model_type="gpt2"),
        "hf/config.json: model_type is 'gpt2', expected 'decision_transformer'",
    ),
    (
        configure(add_cross_attention=True),
        "hf/config.json: add_cross_attention is True, expected False",
    ),
    (
        configure(reorder_and_upcast_attn=True),
        "hf/config.json: reorder_and_upcast_attn is True, expected False",
    ),
    (
        configure(activation_function="prelu"),
        "hf/config.json: activation_function is 'prelu', expected a value like 'relu'",
    ),
    (
        configure(hidden_size="16"),
        "hf/config.json: hidden_size is '16', expected a value like 128",
    ),
    (configure(n_head=None), "hf/config.json: n_head is None, expected a value like 1"),
    (configure(n_layer=0), "hf/config.json: n_layer is 0, expected a value like 3"),
    (
        configure(n_layer=True),
        "hf/config.json: n_layer is True, expected a value like 3",
    ),
    (
        configure(n_inner=-1),
        "hf/config.json: n_inner is -1, expected a value like None",
    ),
    (
        configure(action_tanh=1),
        "hf/config.json: action_tanh is 1, expected a value like True",
    ),
    (
        configure(attn_pdrop=float("nan")),
        "hf/config.json: attn_pdrop is nan, expected a value like 0.1",
    ),
    (
        configure(n_layer=3),
        "hf/model.safetensors: encoder.h.2.ln_1.weight and 11 more missing",
    ),
    (
        configure(n_layer=1),
        "hf/model.safetensors: encoder.h.1.attn.c_attn.bias and 11 more not expected",
    ),
    (
        configure(n_inner=32),
        "hf/model.safetensors: encoder.h.0.mlp.c_fc.weight is (16, 64), "
        "expected (16, 32)",
    ),
    (
        remove("model.safetensors"),
        "hf: no model.safetensors nor pytorch_model.bin, nor an index of either",
    ),
    (cut, "hf/model.safetensors: not a whole safetensors file ("),
    (
        write("model.safetensors", "text"),
        "hf/model.safetensors: not a whole safetensors file (",
    ),
    (drop("encoder.wte.weight"), "hf/model.safetensors: encoder.wte.weight missing"),
    (
        drop("embed_ln.weight", "embed_ln.bias"),
        "hf/model.safetensors: embed_ln.weight and 1 more missing",
    ),
    (
        put("encoder.h.0.crossattention.c_attn.bias", np.zeros(32)),
        "hf/model.safetensors: encoder.h.0.crossattention.c_attn.bias not expected",
    ),
    (
        put("embed_state.weight", np.zeros((5, 16), np.float32)),
        "hf/model.safetensors: embed_state.weight is (5, 16), expected (16, 5)",
    ),
    (
        put("encoder.wpe.weight", np.full((4, 16), np.inf, np.float32)),
        "hf/model.safetensors: encoder.wpe.weight is not finite",
    ),
    (
        put("embed_ln.bias", np.full(16, np.nan, np.float16)),
        "hf/model.safetensors: embed_ln.bias is not finite",
    ),
    (
        put("embed_ln.bias", np.zeros(16, np.int32)),
        "hf/model.safetensors: embed_ln.bias is int32, expected float32",
    ),
    (
        put("embed_ln.bias", np.full(16, -1e39)),
        "hf/model.safetensors: embed_ln.bias has 1e+39, beyond float32",
    ),
    (
        prefix("model.", only="embed"),
        "hf/model.safetensors: model.encoder.wpe.weight and 33 more missing",
    ),
    (
        after(shard, remove("1.safetensors")),
        "No such file or directory: hf/1.safetensors",
    ),
    (
        after(shard, write("model.safetensors.index.json", "{}")),
        "hf/model.safetensors.index.json: weight_map is None, expected an object",
    ),
    pytest.param(
        after(shard, pickle, remove("1.bin")),
        "[Errno 2] No such file or directory: 'hf/1.bin'",
        marks=pytest.mark.parity,
    ),
    pytest.param(
        after(pickle, write("pytorch_model.bin", "text")),
        "hf/pytorch_model.bin: not a file of tensors (",
        marks=pytest.mark.parity,
    ),
]


@pytest.mark.parametrize(("edit", "message"), REFUSALS)
def test_what_is_no_such_model_is_named_in_one_line(folder, edit, message):
    edit(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        import_hf(folder)
    found = str(caught.value).replace(str(folder), "hf")
    assert found.startswith(message)
    assert "\n" not in found


@pytest.mark.parity
def test_pickled_code_is_not_run(folder):
    torch = pytest.importorskip("torch")
    (folder / "model.safetensors").unlink()
    torch.save({"embed_ln.bias": partial(os.mkdir)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"not a file of tensors \(UnpicklingError\)$"):
        import_hf(folder)


def test_without_torch_a_pickled_model_is_refused(folder, monkeypatch):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"pytorch_model.bin: needs torch; or save"):
        import_hf(folder)


@pytest.mark.parametrize(
    "ours", [{"condition_on": "nothing"}, {"predict_return": True}], ids=str
)
def test_what_hf_cannot_do_is_not_exported(tmp_path, ours):
    fields, params = import_hf(GOLDEN / "base")
    (key, value), *_ = ours.items()
    with pytest.raises(ValueError, match=f"{key}={value!r}: Hugging Face's"):
        export_hf(tmp_path / "hf", DecisionTransformer(**fields, **ours), params)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.wte": {}}, "params: encoder.wte.weight missing"),
        (
            {"value_head": {"kernel": np.zeros(1)}},
            "params: value_head.weight not expected",
        ),
        (
            {"predict_return": {"kernel": np.zeros((1, 16)), "bias": np.zeros(1)}},
            "params: predict_return.weight is (1, 16), expected (16, 1)",
        ),
        (
            {"encoder.wte": {"embedding": np.full((1, 16), np.nan, np.float32)}},
            "params: encoder.wte.weight is not finite",
        ),
    ],
)
def test_parameters_of_another_model_are_not_exported(tmp_path, changes, message):
    fields, params = import_hf(GOLDEN / "base")
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared below)
        export_hf(tmp_path / "hf", DecisionTransformer(**fields), params | changes)
    assert str(caught.value) == message
    assert not (tmp_path / "hf").exists()


def test_needs_neither_jax_nor_flax(folder):
    halve(ml_dtypes.bfloat16)(folder)  # which NumPy alone does not know
    script = (
        "import sys, dt_jax.model.hf_weights as hf\n"
        f"hf.import_hf({str(folder)!r})\n"
        "assert not {'jax', 'flax', 'torch'} & sys.modules.keys()"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)


LIVE = [
    {"n_layer": 3},
    {"n_head": 2, "activation_function": "gelu_new"},
    {"n_head": 4, "n_inner": 24, "action_tanh": False},
    {"n_layer": 2, "scale_attn_by_inverse_layer_idx": True, "n_head": 2},
    {"scale_attn_weights": False, "activation_function": "silu"},
    {"layer_norm_epsilon": 1e-2, "activation_function": "gelu"},
    {"state_dim": 1, "act_dim": 1, "activation_function": "tanh"},
    {"state_dim": 29, "act_dim": 8, "vocab_size": 5, "n_positions": 1, "n_inner": 7},
    {"n_head": 16, "activation_function": "mish", "initializer_range": 0.5},
]


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("changes", LIVE)
def test_live_parity_of_predictions_gradients_and_files(tmp_path, changes):
    make_golden = pytest.importorskip("make_golden", reason="torch and transformers")
    torch, transformers = make_golden.torch, make_golden.transformers
    torch.manual_seed(len(str(changes)))
    fields = make_golden.TINY | {"state_dim": 6, "act_dim": 2, "n_layer": 1} | changes
    config = transformers.DecisionTransformerConfig(**fields)
    hf_model = make_golden.random_model(config)
    hf_batch = make_golden.random_batch(config, lengths=(5, 3, 1), context_length=5)
    hf_model.save_pretrained(tmp_path / "hf", max_shard_size="8KB")
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists()

    target = torch.rand_like(hf_batch["actions"])
    hf_heads = hf_model(**hf_batch)
    valid = hf_batch["attention_mask"] > 0
    (hf_heads.action_preds - target)[valid].square().mean().backward()

    imported, params = import_hf(tmp_path / "hf")
    assert imported | fields == imported
    model = DecisionTransformer(**imported)
    batch = {key: x.numpy() for key, x in hf_batch.items() if key != "rewards"}

    # Without optimising, what is run once is compiled in half the time.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def predict_and_differentiate(params):
        def loss(params):
            found = model.apply({"params": params}, **batch).action_preds
            return (batch["attention_mask"][:, :, None] * (found - target) ** 2).sum()

        count = batch["attention_mask"].sum() * model.act_dim
        slopes = jax.tree.map(lambda slope: slope / count, jax.grad(loss)(params))
        return model.apply({"params": params}, **batch, all_heads=True), slopes

    target = target.numpy()
    heads, slopes = predict_and_differentiate(params)
    for head, found in heads._asdict().items():
        expected = hf_heads[head].detach()[valid]
        # Float32 sums of some 64 terms of order one, in another order than torch's.
        np.testing.assert_allclose(found[valid.numpy()], expected, rtol=0, atol=1e-5)

    # Gradients are a tree like the parameters, so that they too go out under HF's keys.
    export_hf(tmp_path / "slopes", model, slopes)
    found = load_file(tmp_path / "slopes" / "model.safetensors")
    for key, parameter in hf_model.named_parameters():
        expected = np.zeros(1) if parameter.grad is None else parameter.grad.numpy()
        error = np.linalg.norm(found[key] - expected)
        assert error <= 1e-4 * np.linalg.norm(expected), key

    export_hf(tmp_path / "exported", model, params)
    opened, report = transformers.DecisionTransformerModel.from_pretrained(
        tmp_path / "exported", output_loading_info=True
    )
    assert not any(report.values()), report
    # Torch itself gives other last bits for the same weights at other addresses.
    given, read = hf_model.state_dict(), opened.state_dict()
    assert given.keys() == read.keys()
    assert all(torch.equal(given[key], read[key]) for key in given)
    assert all(getattr(opened.config, key) == imported[key] for key in FIELDS)


@pytest.mark.parity
def test_the_tables_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    functions = pytest.importorskip("transformers.activations").ACT2FN
    config = transformers.DecisionTransformerConfig()
    assert {key: getattr(config, key) for key in FIELDS} == FIELDS
    assert config.attribute_map == ALIASES
    assert functions.keys() - ACTIVATIONS.keys() == set(REFUSED_ACTIVATIONS)


def test_discrete_actions_cross_as_a_key_of_ours(tmp_path):
    sizes = {"hidden_size": 8, "n_layer": 1, "max_ep_len": 9, "n_positions": 9}
    model = DecisionTransformer(act_dim=5, action_sizes=(2, 3), **sizes)
    shapes = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    export_hf(tmp_path, model, jax.tree.map(lambda x: np.ones(x.shape), shapes))
    fields, _ = import_hf(tmp_path)
    assert DecisionTransformer(**fields).action_sizes == (2, 3)
    assert fields["action_tanh"] is False
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"action_sizes": [2, 0]}))
    with pytest.raises(ValueError, match=r"action_sizes is \[2, 0\], expected whole"):
        import_hf(tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's folder <-> our fields and parameters.

The only file that knows HF's keys: `_layout` is the one table of them, read both ways.
Every tensor crosses unchanged, also those that nothing reads (`wte`, all of `wpe` but
row 0). What cannot cross is refused in one line that names the file and the key.
"""

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401  (by it NumPy and safetensors know bfloat16)
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from dt_jax.system.files import read_json, replacing

NORMALIZATION = "normalization.json"  # ours; HF has no place for it

# What a config.json means where it leaves a key out: HF's defaults, not ours to choose.
FIELDS = {
    "state_dim": 17,
    "act_dim": 4,
    "hidden_size": 128,
    "max_ep_len": 4096,
    "action_tanh": True,
    "vocab_size": 1,
    "n_positions": 1024,
    "n_layer": 3,
    "n_head": 1,
    "n_inner": None,
    "activation_function": "relu",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}
ACTION_SIZES = "action_sizes"  # ours; a model of discrete actions alone has it
# HF's other settings that change the network, each with the one value that we have.
FIXED = {
    "model_type": "decision_transformer",
    "add_cross_attention": False,
    "reorder_and_upcast_attn": False,
}
ALIASES = {
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
# Those with parameters of their own, and two that the model does not have.
REFUSED_ACTIVATIONS = ("laplace", "prelu", "sqrtsoftplus", "xielu")

# HF's layers: our name for their `weight`, and whether HF keeps it as (out, in).
LAYERS = {
    "Conv1D": ("kernel", False),
    "Embedding": ("embedding", False),
    "LayerNorm": ("scale", False),
    "Linear": ("kernel", True),
}


class Leaf(NamedTuple):
    """Where one of HF's tensors stands in our parameters."""

    module: str
    name: str
    shape: tuple[int, ...]
    transposed: bool = False  # in HF's file


def import_hf(folder: str | os.PathLike) -> tuple[dict, dict]:
    """Read a folder that HF saved: the fields of `DecisionTransformer`, its parameters.

    The parameters are {module: {leaf: float32 array}}; half precision is widened,
    float64 rounded.
    """
    folder = Path(folder).expanduser()
    fields = _read_config(folder / "config.json")
    file, tensors = _read_weights(folder)
    # Older versions also saved their causal masks.
    masks = (".attn.bias", ".attn.masked_bias")
    tensors = {key: x for key, x in tensors.items() if not key.endswith(masks)}
    # Wrappers prefix every key alike (model., decision_transformer., module.).
    prefixes = (key.split("embed_ln.", 1)[0] for key in tensors if "embed_ln." in key)
    layout = _layout(fields, next(prefixes, ""))
    shapes = {
        key: leaf.shape[::-1] if leaf.transposed else leaf.shape
        for key, leaf in layout.items()
    }
    _check_tensors(file, tensors, shapes)
    params = {}
    for key, leaf in layout.items():
        array = _float32(tensors[key], leaf.transposed)
        params.setdefault(leaf.module, {})[leaf.name] = array
    return fields, params


def import_normalization(folder: str | os.PathLike) -> dict | None:
    """What `export_hf` left in `normalization.json`; None where there is none."""
    file = Path(folder) / NORMALIZATION
    return read_json(file) if file.is_file() else None


def what_hf_lacks(model) -> str:
    """Why Hugging Face's model cannot be this one; '' where it can."""
    if getattr(model, "condition_on", "return") != "return":
        return (
            f"model.condition_on={model.condition_on!r}: Hugging Face's model always "
            "looks at returns"
        )
    if getattr(model, "predict_return", False):
        return (
            "model.predict_return=True: Hugging Face's model sees a return before its "
            "state"
        )
    return ""


def export_hf(
    folder: str | os.PathLike, model, params: dict, normalization: dict | None = None
) -> None:
    """Write a folder that `DecisionTransformerModel.from_pretrained` opens.

    Args:
      folder: made if need be; of what it holds only the two files are replaced.
      model: the `DecisionTransformer`, or anything with its fields.
      params: all the parameters of that model. Equal ones give equal bytes.
      normalization: what acting needs besides, for `normalization.json`: state_mean and
        state_std (lists of S), return_scale, discount, context_length, max_ep_len and
        what else `Policy` takes.

    Raises:
      ValueError: Hugging Face's model cannot do what this one does.
    """
    if lacks := what_hf_lacks(model):
        raise ValueError(f"{lacks}; the run itself can act and be evaluated")
    fields = {key: getattr(model, key) for key in FIELDS}
    _check_fields("model", fields)
    discrete = {}
    if sizes := getattr(model, ACTION_SIZES, ()):
        discrete = {ACTION_SIZES: list(sizes)}
    layout = _layout(fields)
    arrays = {
        f"{module}.{'bias' if name == 'bias' else 'weight'}": np.asarray(array)
        for module, leaves in params.items()
        for name, array in leaves.items()
    }
    _check_tensors("params", arrays, {key: leaf.shape for key, leaf in layout.items()})
    tensors = {
        key: _float32(arrays[key], leaf.transposed) for key, leaf in layout.items()
    }
    # HF's token ids would only make it warn that they are beyond a vocabulary of one.
    ids = {"bos_token_id": None, "eos_token_id": None}
    config = (
        fields
        | discrete
        | FIXED
        | ids
        | {"architectures": ["DecisionTransformerModel"]}
    )

    Path(folder).mkdir(parents=True, exist_ok=True)
    _replace(Path(folder) / "model.safetensors", save(tensors, {"format": "pt"}))
    if normalization is not None:
        text = json.dumps(normalization, indent=2) + "\n"
        _replace(Path(folder) / NORMALIZATION, text.encode())
    # The last: a folder without it is none, so a first export is whole or not there.
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    _replace(Path(folder) / "config.json", text.encode())


def _layout(fields, prefix=""):
    """{HF's key: our leaf}, of every tensor that a model of these fields has."""
    hidden = fields["hidden_size"]
    inner = fields["n_inner"] or 4 * hidden
    modules = {
        "embed_return": ("Linear", 1, hidden),
        "embed_state": ("Linear", fields["state_dim"], hidden),
        "embed_action": ("Linear", fields["act_dim"], hidden),
        "embed_timestep": ("Embedding", fields["max_ep_len"], hidden),
        "embed_ln": ("LayerNorm", hidden),
        "encoder.wpe": ("Embedding", fields["n_positions"], hidden),
        "encoder.wte": ("Embedding", fields["vocab_size"], hidden),
    }
    for layer in range(fields["n_layer"]):
        modules |= {
            f"encoder.h.{layer}.ln_1": ("LayerNorm", hidden),
            f"encoder.h.{layer}.attn.c_attn": ("Conv1D", hidden, 3 * hidden),
            f"encoder.h.{layer}.attn.c_proj": ("Conv1D", hidden, hidden),
            f"encoder.h.{layer}.ln_2": ("LayerNorm", hidden),
            f"encoder.h.{layer}.mlp.c_fc": ("Conv1D", hidden, inner),
            f"encoder.h.{layer}.mlp.c_proj": ("Conv1D", inner, hidden),
        }
    modules |= {
        "encoder.ln_f": ("LayerNorm", hidden),
        "predict_action.0": ("Linear", hidden, fields["act_dim"]),
        "predict_state": ("Linear", hidden, fields["state_dim"]),
        "predict_return": ("Linear", hidden, 1),
    }
    layout = {}
    for module, (layer, *shape) in modules.items():
        name, transposed = LAYERS[layer]
        layout[f"{prefix}{module}.weight"] = Leaf(
            module, name, tuple(shape), transposed
        )
        if layer != "Embedding":
            layout[f"{prefix}{module}.bias"] = Leaf(module, "bias", (shape[-1],))
    return layout


def _float32(array, transposed):
    # Contiguous: safetensors writes the memory as it lies, whatever the strides.
    return np.ascontiguousarray(array.T if transposed else array, np.float32)


def _read_config(file):
    config = {ALIASES.get(key, key): value for key, value in read_json(file).items()}
    for key, only in FIXED.items():
        if config.get(key, only) != only:
            raise ValueError(f"{file}: {key} is {config[key]!r}, expected {only!r}")
    fields = {key: config.get(key, default) for key, default in FIELDS.items()}
    _check_fields(file, fields)
    if ACTION_SIZES in config:
        fields[ACTION_SIZES] = _action_sizes(file, config[ACTION_SIZES])
    return fields


def _action_sizes(file, sizes):
    if not (isinstance(sizes, list) and all(type(n) is int and n > 0 for n in sizes)):
        raise ValueError(
            f"{file}: {ACTION_SIZES} is {sizes!r}, expected whole numbers above 0"
        )
    return tuple(sizes)


def _read_weights(folder):
    """The file that holds or lists the tensors, and {its key: array}."""
    for name, read in (
        ("model.safetensors", _read_safetensors),
        ("pytorch_model.bin", _read_pytorch),
    ):
        if (file := folder / name).is_file():
            return file, read(file)
        if (file := folder / f"{name}.index.json").is_file():
            shards = read_json(file).get("weight_map")
            if not isinstance(shards, dict):
                raise ValueError(
                    f"{file}: weight_map is {shards!r}, expected an object"
                )
            tensors = {}
            for shard in sorted(set(map(str, shards.values()))):
                tensors |= read(folder / shard)
            return file, tensors
    raise FileNotFoundError(
        f"{folder}: no model.safetensors nor pytorch_model.bin, nor an index of either"
    )


def _read_safetensors(file):
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error})") from None


def _read_pytorch(file):
    try:
        import torch
    except ImportError:
        raise ValueError(f"{file}: needs torch; or save model.safetensors") from None
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
        # By float32, because torch hands no bfloat16 to NumPy.
        return {
            key: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
            for key, tensor in tensors.items()
        }
    except FileNotFoundError:
        raise
    except Exception as error:  # by the damage: RuntimeError, EOFError, KeyError, ...
        kind = type(error).__name__
        raise ValueError(f"{file}: not a file of tensors ({kind})") from None


def _check_fields(where, fields):
    for key, default in FIELDS.items():
        value = fields[key]
        if isinstance(default, float):
            fits = type(value) in (int, float) and 0 <= value < math.inf
        elif isinstance(default, bool | str):
            fits = type(value) is type(default) and value not in REFUSED_ACTIVATIONS
        else:
            fits = (type(value) is int and value > 0) or value is default is None
        if not fits:
            raise ValueError(
                f"{where}: {key} is {value!r}, expected a value like {default!r}"
            )


def _check_tensors(where, tensors, shapes):
    for word, keys in (
        ("missing", [key for key in shapes if key not in tensors]),
        ("not expected", [key for key in tensors if key not in shapes]),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"{where}: {keys[0]}{more} {word}")
    for key, shape in shapes.items():
        array = tensors[key]
        if array.shape != shape:
            raise ValueError(f"{where}: {key} is {array.shape}, expected {shape}")
        if array.dtype.name not in ("float64", "float32", "float16", "bfloat16"):
            raise ValueError(f"{where}: {key} is {array.dtype}, expected float32")
        if not np.isfinite(array).all():
            raise ValueError(f"{where}: {key} is not finite")
        if np.abs(array).max() > np.finfo(np.float32).max:
            raise ValueError(
                f"{where}: {key} has {np.abs(array).max():.3g}, beyond float32"
            )


def _replace(file, data):
    with replacing(file) as unfinished:
        unfinished.write_bytes(data)

# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden: what torch and transformers say, so that tests need neither.

    pip install torch transformers
    python tests/make_golden.py

Written with transformers 5.23 and torch 2.13; the same versions give the same bytes.
Nothing of dt_jax is used here: a golden number must not come from what it checks.

    golden/<name>/          config.json and model.safetensors as HF saves them;
                            golden.npz: the arguments of HF's forward and its *_preds
    golden/optimizer.npz    initial/, gradients/ (one row per update), final/ and
                            final_heavy/ (weight decay 1) for every <module>/<leaf> by
                            our names; grad_norm before clipping; linear, cosine and
                            constant_with_warmup: the rate that each update uses
    golden/initial.json     by 'state_dim x act_dim': parameters, {HF key: [mean, std]}
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from transformers import DecisionTransformerConfig, DecisionTransformerModel
from transformers.trainer_pt_utils import get_parameter_names

GOLDEN = Path(__file__).parent / "golden"
TINY = {"hidden_size": 16, "max_ep_len": 24, "n_positions": 4}
MODELS = {
    "base": {"state_dim": 5, "act_dim": 3, "n_layer": 2},
    "two_heads": {
        "state_dim": 11,
        "act_dim": 1,
        "n_head": 2,
        "n_layer": 2,
        "n_inner": 24,
        "activation_function": "gelu_new",
        "action_tanh": False,
    },
    "four_heads": {
        "state_dim": 2,
        "act_dim": 6,
        "n_head": 4,
        "n_layer": 2,
        "activation_function": "silu",
        "scale_attn_by_inverse_layer_idx": True,
        "layer_norm_epsilon": 1e-3,
    },
    "unscaled": {
        "state_dim": 4,
        "act_dim": 2,
        "n_head": 2,
        "n_layer": 1,
        "n_inner": 10,
        "vocab_size": 3,
        "activation_function": "gelu",
        "scale_attn_weights": False,
    },
}
UPDATES, WARMUP = 50, 5


def main():
    transformers.logging.set_verbosity_error()
    GOLDEN.mkdir(exist_ok=True)
    for seed, (name, fields) in enumerate(MODELS.items()):
        make_model(GOLDEN / name, DecisionTransformerConfig(**TINY | fields), seed)
    make_optimizer(GOLDEN / "optimizer.npz")
    make_initial(GOLDEN / "initial.json")


def make_model(folder, config, seed):
    torch.manual_seed(seed)
    model = random_model(config)
    batch = random_batch(config, lengths=(7, 4, 1, 6), context_length=7)
    with torch.no_grad():
        predictions = model(**batch)
    model.save_pretrained(folder)
    heads = ("action_preds", "state_preds", "return_preds")
    arrays = batch | {head: predictions[head] for head in heads}
    np.savez(folder / "golden.npz", **{key: x.numpy() for key, x in arrays.items()})


def random_model(config):
    """Weights far from the initial ones: no bias is 0, no scale 1, attention peaked."""
    model = DecisionTransformerModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3).add_("ln" in name and "weight" in name)
    return model


def random_batch(config, lengths, context_length):
    """HF's arguments, left-padded as in training: actions with -10, the rest with 0."""
    padding = context_length - torch.tensor(lengths)
    valid = torch.arange(context_length) >= padding[:, None]
    starts = torch.randint(config.max_ep_len - context_length, valid.shape[:1])
    timesteps = starts[:, None] + valid.cumsum(1) - 1

    def features(size, elsewhere=0.0):
        values = torch.randn(*valid.shape, size)
        return torch.where(valid[:, :, None], values, elsewhere)

    return {
        "states": features(config.state_dim),
        "actions": features(config.act_dim, elsewhere=-10.0),
        "rewards": features(1),
        "returns_to_go": features(1),
        "timesteps": torch.where(valid, timesteps, 0),
        "attention_mask": valid.long(),
    }


def make_optimizer(file):
    arrays = optimize(weight_decay=1e-4)
    # The recipe's decay moves nothing by more than a rounding in so few updates.
    heavy = optimize(weight_decay=1.0)
    arrays |= {
        name.replace("final/", "final_heavy/"): array
        for name, array in heavy.items()
        if name.startswith("final/")
    }
    arrays["cosine"] = learning_rates(transformers.get_cosine_schedule_with_warmup)
    arrays["constant_with_warmup"] = learning_rates(
        lambda optimizer, warmup, _: transformers.get_constant_schedule_with_warmup(
            optimizer, warmup
        )
    )
    np.savez(file, **arrays)


def optimize(weight_decay):
    """The updates of HF's Trainer on a tiny model, for gradients drawn at random."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 4, "n_inner": 4, "max_ep_len": 5, "n_positions": 2}
    config = DecisionTransformerConfig(state_dim=3, act_dim=2, n_layer=1, **sizes)
    model = random_model(config)
    # As Trainer.get_decay_parameter_names, less the patterns that no name here has.
    decayed = set(get_parameter_names(model, [nn.LayerNorm], ["bias"]))
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [parameters[name] for name in parameters if name in decayed]},
        {
            "params": [parameters[name] for name in parameters if name not in decayed],
            "weight_decay": 0.0,
        },
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay
    )
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, WARMUP, UPDATES)
    arrays = {f"initial/{name}": x for name, x in our_arrays(model).items()}
    gradients, norms, rates = [], [], []
    for _ in range(UPDATES):
        # Norms from about 0.05 to 1.5: the clip at 0.25 acts on some, not on all.
        scale = 0.05 * 30 ** torch.rand(()) / math.sqrt(model.num_parameters())
        for name, parameter in parameters.items():
            parameter.grad = scale * torch.randn_like(parameter)
            if name.startswith(("encoder.wte", "predict_state", "predict_return")):
                parameter.grad = None  # not in the loss, as in HF's model
        gradients.append(our_arrays(model, lambda parameter: parameter.grad))
        norms.append(nn.utils.clip_grad_norm_(parameters.values(), 0.25).item())
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    for name in gradients[0]:
        arrays[f"gradients/{name}"] = np.stack([rows[name] for rows in gradients])
    arrays |= {f"final/{name}": x for name, x in our_arrays(model).items()}
    return arrays | {"grad_norm": np.float32(norms), "linear": np.array(rates)}


def our_arrays(model, read=lambda parameter: parameter.detach()):
    """{module/leaf: array} by dt_jax's names; zeros for a gradient that is None."""
    arrays = {}
    for name, parameter in model.named_parameters():
        module, leaf = name.rsplit(".", 1)
        layer = type(model.get_submodule(module))
        if leaf == "weight":
            leaves = {nn.LayerNorm: "scale", nn.Embedding: "embedding"}
            leaf = leaves.get(layer, "kernel")
        value = read(parameter)
        value = torch.zeros_like(parameter) if value is None else value
        value = value.T if layer is nn.Linear and leaf == "kernel" else value
        arrays[f"{module}/{leaf}"] = value.numpy().copy()
    return arrays


def learning_rates(make_schedule):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-4)
    scheduler = make_schedule(optimizer, WARMUP, UPDATES)
    rates = []
    for _ in range(UPDATES):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return np.array(rates)


def make_initial(file):
    found = {}
    for state_dim, act_dim in ((17, 4), (291, 29)):
        torch.manual_seed(0)
        config = DecisionTransformerConfig(state_dim=state_dim, act_dim=act_dim)
        model = DecisionTransformerModel(config)
        found[f"{state_dim}x{act_dim}"] = {
            "parameters": model.num_parameters(),
            "initial": {
                name: [float(f"{x:.6g}") for x in (p.mean(), p.std(correction=0))]
                for name, p in model.named_parameters()
            },
        }
    file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

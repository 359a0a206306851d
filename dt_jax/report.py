# SPDX-License-Identifier: Apache-2.0
"""What a person reads: the data report, the pictures and the summary of a run.

In go a sampler, records and plain numbers; out come dicts for JSON, text for the prompt
and PNG files.
"""

import os

import numpy as np

from dt_jax.files import replacing
from dt_jax.segments import SegmentSampler
from dt_jax.trajectories import Trajectories

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
SAMPLED_STEPS = 1_000_000  # returns-to-go beyond this many are sampled evenly
WEAK_SIGNAL = 0.1  # returns-to-go below this hardly move the network

CARD = """\
---
library_name: transformers
tags: [decision-transformer, reinforcement-learning, offline-rl]
---
# Decision Transformer, {state_dim} state and {act_dim} action dimensions

Trained with dt-jax; opened by `transformers`. `normalization.json` holds the states'
mean and std, the scale of the returns, the context length and the last timestep.

## Acting

```python
import json

import torch
from transformers import DecisionTransformerModel

folder = "."  # this one
model = DecisionTransformerModel.from_pretrained(folder).eval()
norm = json.load(open(f"{{folder}}/normalization.json"))
mean, std = torch.tensor(norm["state_mean"]), torch.tensor(norm["state_std"])
K = norm["context_length"]


@torch.no_grad()
def act(states, actions, rewards, target_return):
    \"\"\"The next action, after t raw states (t x {state_dim}), the t - 1 actions
    (t - 1 x {act_dim}) and t - 1 rewards so far; target_return in raw reward.\"\"\"
    t = len(states)
    done = torch.cat([torch.zeros(1), torch.cumsum(rewards, 0)])
    fill = torch.zeros(max(0, K - t))
    padding = torch.full((len(fill), {act_dim}), -10.0)
    states = torch.cat([fill[:, None].expand(-1, {state_dim}), states[-K:]])
    actions = torch.cat([actions, torch.zeros(1, {act_dim})])[-K:]
    to_go = (target_return - done)[-K:] / norm["return_scale"]
    time = torch.arange(t).clamp(max=norm["max_ep_len"] - 1)[-K:]
    return model(
        states=((states - mean) / std)[None],
        actions=torch.cat([padding, actions])[None],
        returns_to_go=torch.cat([fill, to_go])[None, :, None],
        timesteps=torch.cat([fill.long(), time])[None],
        attention_mask=torch.cat([fill, torch.ones(K - len(fill))])[None],
    ).action_preds[0, -1]


print(act(torch.zeros(1, {state_dim}), torch.zeros(0, {act_dim}), torch.zeros(0), 0.0))
```

## Data

{data[trajectories]:,} trajectories, {data[steps]:,} steps; actions from
{data[action_range][0]:.4g} to {data[action_range][1]:.4g}.

| | min | 10 % | median | 90 % | max |
|---|---|---|---|---|---|
{quantiles}

{evaluation}## Training

| update | loss (mean squared error of the actions) |
|---|---|
{losses}

| key | value |
|---|---|
{recipe}
"""


def data_report(
    sampler: SegmentSampler,
    *,
    whole: Trajectories,
    action_tanh: bool,
    placement: str,
    plan: dict,
) -> dict:
    """What is in the data, and under 'warnings' what its owner should know.

    `sampler` is training's, `whole` has what is held out too; `placement` and `plan`
    are where the store will lie and `feed.memory_plan`.
    """
    trajectories = sampler.trajectories
    lengths_E = trajectories.lengths
    returns_E = np.sort(sampler.returns_to_go[trajectories.starts])
    report = {
        "trajectories": trajectories.num_trajectories,
        "steps": trajectories.num_steps,
        "state_dim": trajectories.state_dim,
        "act_dim": trajectories.act_dim,
        "bytes": trajectories.nbytes,
        "fingerprint": whole.fingerprint(),
        "held_out_trajectories": whole.num_trajectories - trajectories.num_trajectories,
        "lengths": _quantiles(lengths_E),
        "returns": _quantiles(returns_E),
        "return_mean": float(returns_E.mean(dtype=np.float64)),
        "return_std": float(returns_E.std(dtype=np.float64)),
        "returns_to_go": _quantiles(_returns_to_go(sampler)),
        "action_range": [
            float(trajectories.action_min.min()),
            float(trajectories.action_max.max()),
        ],
        "constant_features": np.flatnonzero(
            trajectories.state_min == trajectories.state_max
        ).tolist(),
        "repeated_trajectories": trajectories.num_trajectories
        - len(np.unique(trajectories.digests)),
        "trajectories_with_inner_dones": _inner_dones(trajectories),
        "clipped_timesteps": int(np.maximum(0, lengths_E - sampler.max_ep_len).sum()),
        "placement": placement,
        "memory_plan": plan,
    }
    report["warnings"] = _warnings(report, sampler, action_tanh)
    return report


def describe(report: dict) -> str:
    """The data report as text, one screen."""

    def row(name, quantiles):
        return f"  {name:22s}" + "".join(f"{quantiles[q]:>12.5g}" for q in quantiles)

    low, high = report["action_range"]
    constant = report["constant_features"]
    inner = report["trajectories_with_inner_dones"]
    held_out = report["held_out_trajectories"]
    lines = [
        f"Data: {report['trajectories']:,} trajectories, {report['steps']:,} steps, "
        f"state_dim {report['state_dim']}, act_dim {report['act_dim']}, "
        f"{_bytes(report['bytes'])}",
        *([f"  held out besides: {held_out:,} trajectories"] if held_out else []),
        "  " + " " * 22 + "".join(f"{q:>12s}" for q in report["lengths"]),
        row("length", report["lengths"]),
        row("return / scale", report["returns"]),
        row("return-to-go / scale", report["returns_to_go"]),
        f"  actions from {low:.4g} to {high:.4g}; constant features: {len(constant)}"
        + (f" ({_few(constant)})" if constant else ""),
        f"  repeated trajectories: {report['repeated_trajectories']}; "
        f"with a done inside: {'unknown' if inner is None else inner}; "
        f"clipped timesteps: {report['clipped_timesteps']}",
        *(
            f"  memory, placement '{name}': {_bytes(plan['device_bytes'])} on each "
            f"device, {_bytes(plan['host_bytes'])} on the host"
            for name, plan in report["memory_plan"].items()
        ),
        f"  placement: {report['placement']}",
    ]
    return "\n".join(lines + [f"  warning: {text}" for text in report["warnings"]])


def describe_run(
    workdir: str | os.PathLike, summary: dict, last_loss: float, held_out: dict | None
) -> str:
    """A finished run as text: its figures, where everything lies, what to do next.

    `held_out` is what `HeldOut.evaluate` says, None when no data is held out.
    """
    errors, pictures = "", {}
    if held_out:
        pictures = {
            "report/held_out.png": "the error on held-out data by return-to-go",
            "report/held_out.json": "the same as numbers",
        }
        mean, previous = held_out["references"].values()
        errors = (
            f"\nHeld-out data: mean squared error {held_out['mse']:.4g}\n  "
            f"beside {mean:.4g} of the mean action, {previous:.4g} of the previous one"
        )
    files = {
        "report/index.html": "all of it on one page",
        "report/loss.png": "the loss curve",
        **pictures,
        "metrics.jsonl": "the same as numbers; tensorboard/ too",
        "summary.json": "these figures",
        "data_report.json": "what is in the data",
        f"checkpoints/{summary['global_step']}": "weights, optimiser, statistics",
        "config.json": "the whole config",
    }
    width = max(map(len, files))
    listing = "\n".join(
        f"  {os.path.join(workdir, name.ljust(width))}  {text}"
        for name, text in files.items()
    )
    return f"""
Done: {summary["global_step"]:,} updates in {summary["train_runtime"]:.0f} s, \
{summary["train_steps_per_second"]:.2f} a second, \
{summary["train_samples_per_second"]:.0f} segments a second
Loss: {last_loss:.4g} at the end, {summary["train_loss"]:.4g} on average{errors}

{listing}

Next:
  pip install tensorboard && tensorboard --logdir {os.path.join(workdir, "tensorboard")}
  python main.py --config configs/base.py --config.data.path=YOUR_DATASET"""


def model_card(
    recipe: dict,
    data: dict,
    records: list[dict],
    fields: dict,
    evaluation: str = "",
) -> str:
    """The README.md of an exported folder: recipe, data, loss, how to act in torch.

    `recipe`, `data` and `records` are a run's config.json, data_report.json and
    metrics.jsonl; `fields` are the model's; `evaluation` is text, '' where there was
    none.
    """
    if evaluation:
        evaluation = f"## Evaluation\n\n```\n{evaluation}\n```\n\n"
    quantiles = "\n".join(
        f"| {name} | "
        + " | ".join(f"{level:.5g}" for level in data[key].values())
        + " |"
        for name, key in (
            ("length", "lengths"),
            ("return / scale", "returns"),
            ("return-to-go / scale", "returns_to_go"),
        )
    )
    keys = "\n".join(
        f"| {section}.{key} | {value} |"
        for section in ("data", "model", "optimizer", "train")
        for key, value in recipe[section].items()
        if key not in ("path", "init_from")
    )
    losses = "\n".join(
        f"| {record['step']} | {record['loss']:.5g} |"
        for record in records[:: -max(1, len(records) // 10)][::-1]
    )
    return CARD.format(
        data=data,
        quantiles=quantiles,
        recipe=keys,
        losses=losses,
        evaluation=evaluation,
        **fields,
    )


def draw_loss(path: str | os.PathLike, records: list[dict]) -> None:
    """The loss (logarithmic) and the learning rate by update, as PNG."""
    # matplotlib is slow to import, and only this function needs it.
    from matplotlib.figure import Figure

    steps = [record["step"] for record in records]
    marker = "." if len(steps) < 30 else None  # a lone record draws no line
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="update", ylabel="loss (mean squared error)")
    axes.semilogy(
        steps,
        [record["loss"] for record in records],
        color="tab:blue",
        marker=marker,
        label="loss",
    )
    axes.grid(alpha=0.3, which="both")
    rate_axes = axes.twinx()
    rate_axes.plot(
        steps,
        [record["learning_rate"] for record in records],
        color="tab:gray",
        linestyle="--",
        label="learning rate",
    )
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")


def draw_held_out(path: str | os.PathLike, errors: dict) -> None:
    """What `HeldOut.evaluate` says: the error in each bin, beside the references."""
    from matplotlib.figure import Figure

    bins, references = errors["bins"], errors["references"]
    names = [f"{bin['from']:.4g} to\n{bin['to']:.4g}" for bin in bins]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(
        xlabel="return-to-go / scale", ylabel="mean squared error, held out"
    )
    axes.semilogy(names, [bin["mse"] for bin in bins], marker="o", label="model")
    for name, color in (("mean_action", "gray"), ("previous_action", "orange")):
        label = name.replace("_", " ")
        axes.axhline(references[name], color=f"tab:{color}", ls="--", label=label)
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")


def _returns_to_go(sampler):
    trajectories = sampler.trajectories
    ends_E = np.cumsum(trajectories.lengths)
    count = min(SAMPLED_STEPS, trajectories.num_steps)
    steps = np.arange(count) * trajectories.num_steps // count
    owner = np.searchsorted(ends_E, steps, side="right")
    offset = steps - (ends_E - trajectories.lengths)[owner]
    return sampler.returns_to_go[trajectories.starts[owner] + offset]


def _quantiles(values):
    names = ("min", "10 %", "median", "90 %", "max")
    levels = np.quantile(values, QUANTILES)
    return {name: float(level) for name, level in zip(names, levels, strict=True)}


def _inner_dones(trajectories):
    """How many trajectories go on after a done; None when the data has no dones."""
    if trajectories.dones is None:
        return None
    count_N = np.concatenate(([0], np.cumsum(trajectories.dones)))
    start_E = trajectories.starts
    last_E = start_E + trajectories.lengths - 1
    return int((count_N[last_E] > count_N[start_E]).sum())


def _warnings(report, sampler, action_tanh):
    warnings = []
    low, high = report["action_range"]
    if action_tanh and max(-low, high) > 1:
        warnings.append(
            f"actions reach from {low:.4g} to {high:.4g}, but model.action_tanh=True "
            "predicts within (-1, 1)"
        )
    if report["constant_features"]:
        warnings.append(
            f"{len(report['constant_features'])} features never change: their std "
            "is near 0, and one that moves later is multiplied by up to a million"
        )
    if report["repeated_trajectories"]:
        warnings.append(
            f"{report['repeated_trajectories']} trajectories repeat another one exactly"
        )
    if report["trajectories_with_inner_dones"]:
        warnings.append(
            f"{report['trajectories_with_inner_dones']} trajectories go on after a "
            "done, and their returns run across a reset; data.split_on_dones=True "
            "cuts there"
        )
    if report["clipped_timesteps"]:
        warnings.append(
            f"{report['clipped_timesteps']} timesteps lie beyond "
            f"data.max_ep_len={sampler.max_ep_len} and are clipped"
        )
    reach = max(abs(level) for level in report["returns_to_go"].values())
    if reach < WEAK_SIGNAL:
        warnings.append(
            f"returns-to-go reach only {reach:.3g} after data.return_scale: hardly a "
            "signal; targets must be of this size too"
        )
    return warnings


def _few(numbers):
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (", ..." if len(numbers) > 8 else "")


def _bytes(count):
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"

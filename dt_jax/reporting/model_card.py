# SPDX-License-Identifier: Apache-2.0
"""The README.md of an exported folder."""

CARD = """\
---
library_name: transformers
tags: [decision-transformer, reinforcement-learning, offline-rl]
---
# Decision Transformer, {state_dim} state and {act_dim} action dimensions

Trained with dt-jax; opened by `transformers`. `normalization.json` holds the states'
mean and std, the scale and discount of the returns, the context length and the last
timestep.

## Acting

```python
import json

import torch
from transformers import DecisionTransformerModel

folder = "."  # this one
model = DecisionTransformerModel.from_pretrained(folder).eval()
norm = json.load(open(f"{{folder}}/normalization.json"))
mean, std = torch.tensor(norm["state_mean"]), torch.tensor(norm["state_std"])
K, discount = norm["context_length"], norm["discount"]


@torch.no_grad()
def act(states, actions, rewards, target_return):
    \"\"\"The next action, after t raw states (t x {state_dim}), the t - 1 actions
    (t - 1 x {act_dim}) and t - 1 rewards so far; target_return in raw reward.\"\"\"
    t = len(states)
    to_go = [float(target_return)]
    for reward in rewards.tolist():  # with a discount of 0 the target is each step's
        to_go.append((to_go[-1] - reward) / discount if discount else to_go[-1])
    fill = torch.zeros(max(0, K - t))
    padding = torch.full((len(fill), {act_dim}), -10.0)
    states = torch.cat([fill[:, None].expand(-1, {state_dim}), states[-K:]])
    actions = torch.cat([actions, torch.zeros(1, {act_dim})])[-K:]
    to_go = torch.tensor(to_go)[-K:] / norm["return_scale"]
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

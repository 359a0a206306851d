# SPDX-License-Identifier: Apache-2.0
"""The README.md of an exported folder: all of it of one update.

Its header is what the Hugging Face Hub reads; the body says how to act, and what the
data, the evaluation, the loss and the recipe were.
"""

from dt_jax.reporting.evaluation_tables import describe_evaluation

LICENSE = "apache-2.0"
CARD = """\
---
{header}
---
# Decision Transformer, {state_dim} state and {act_dim} action dimensions

Trained with dt-jax for {step:,} updates; opened by `transformers`.
`normalization.json` holds the states' mean and std, the scale and discount of the
returns, the context length and the last timestep. The license in the header is
dt-jax's: change it if your data asks for another.

## Acting

```python
import sys
from pathlib import Path

source = "."  # this folder, or its id on the Hub: "USER/NAME"
file = Path(source, "acting.py").resolve()
if not file.is_file():
    from huggingface_hub import hf_hub_download

    file = Path(hf_hub_download(source, "acting.py"))
sys.path.insert(0, str(file.parent))
from acting import Policy

policy = Policy(source)
policy.reset(target_return={target:.6g})  # in units of the reward
action = policy.act(state=[0.0] * {state_dim})
action = policy.act(state=[0.0] * {state_dim}, reward=0.0)  # what it brought
```

## Data

{data[trajectories]:,} trajectories, {data[steps]:,} steps; actions from
{data[action_range][0]:.4g} to {data[action_range][1]:.4g}.

| | min | 10 % | median | 90 % | max |
|---|---|---|---|---|---|
{quantiles}

{evaluation}## Training

| update | loss ({loss}) |
|---|---|
{losses}
{held_out}
{recipe}
"""


def model_card(
    changed: dict,
    data: dict,
    records: list[dict],
    fields: dict,
    *,
    step: int,
    return_scale: float,
    evaluation: dict | None = None,
    held_out: dict | None = None,
) -> str:
    """The README.md of the weights of update `step`.

    Args:
      changed: the config keys that differ from the defaults.
      data, records: a run's data_report.json and metrics.jsonl; records beyond the step
        are left out. fields: the model's.
      evaluation, held_out: evaluation.json and held_out.json, None where there is none;
        of another step they are left out.
    """
    evaluation, held_out = (
        found if found and found.get("step") == step else None
        for found in (evaluation, held_out)
    )
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
    records = [record for record in records if record["step"] <= step]
    losses = "\n".join(
        f"| {record['step']} | {record['loss']:.5g} |"
        for record in records[:: -max(1, len(records) // 10)][::-1]
    )
    keys = "\n".join(
        ("| key | value |\n|---|---|", *(f"| {k} | {v} |" for k, v in changed.items()))
    )
    return CARD.format(
        header=_header(evaluation),
        data=data,
        **fields,
        step=step,
        target=return_scale * data["returns"]["90 %"],
        quantiles=quantiles,
        evaluation=f"## Evaluation\n\n```\n{describe_evaluation(evaluation)}\n```\n\n"
        if evaluation
        else "",
        losses=losses,
        loss="cross-entropy of the actions"
        if fields.get("action_sizes")
        else "mean squared error of the actions",
        held_out=_held_out(held_out) if held_out else "",
        recipe=f"These keys differ from dt-jax's defaults:\n\n{keys}"
        if changed
        else "All keys are dt-jax's defaults.",
    )


def _header(evaluation) -> str:
    """The YAML that the Hub reads."""
    from huggingface_hub import EvalResult, ModelCardData  # slow to import

    task = "reinforcement-learning"
    results = {}
    if evaluation:
        environment = evaluation["environment"]
        results["model_name"] = "decision-transformer"
        results["eval_results"] = [
            EvalResult(
                task_type=task,
                dataset_type=environment,
                dataset_name=environment,
                metric_type="mean_reward",
                metric_name=f"mean return, target {actor['target']:.6g}",
                metric_value=f"{actor['mean']:.5g} +/- {actor['std']:.5g}",
            )
            for actor in evaluation["actors"]
            if actor["target"] is not None
        ]
    return ModelCardData(
        license=LICENSE,
        library_name="transformers",
        pipeline_tag=task,
        tags=["decision-transformer", task, "offline-rl"],
        **results,
    ).to_yaml()


def _held_out(errors) -> str:
    if "accuracy" in errors:
        return f"\nAccuracy on held-out data: {errors['accuracy']:.1%}.\n"
    return f"\nMean squared error on held-out data: {errors['mse']:.5g}.\n"

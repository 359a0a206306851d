# SPDX-License-Identifier: Apache-2.0
"""What the prompt shows when a run is finished."""

import os
import sys
from pathlib import Path


def describe_run(
    workdir: str | os.PathLike,
    summary: dict,
    last_loss: float,
    held_out: dict | None,
    *,
    data_path: str,
    target: float | None,
) -> str:
    """A finished run as text: its figures, where everything lies, what to do next.

    Args:
      held_out: what `HeldOut.evaluate` says, None when no data is held out.
      data_path: of the user's data, '' for the simulated market.
      target: the largest return that the evaluation aimed at; None: there was none.
    """
    errors, pictures = "", {}
    if held_out:
        pictures = {
            "report/held_out.json": "the errors on held-out data",
        }
        constant, previous = held_out["references"].values()
        if "accuracy" in held_out:
            name, kind, found = "accuracy", "most frequent", held_out["accuracy"]
        else:
            name, kind, found = "mean squared error", "mean", held_out["mse"]
        errors = (
            f"\nHeld-out data: {name} {found:.4g}\n  beside {constant:.4g} of the "
            f"{kind} action, {previous:.4g} of the previous one"
        )
    files = {
        "report/index.html": "all of it on one page",
        "report/loss.svg": "the loss curve",
        **pictures,
        "metrics.jsonl": "the same as numbers; tensorboard/ too",
        "summary.json": "these figures",
        "data_report.json": "what is in the data",
        f"checkpoints/{summary['global_step']}": "weights, optimiser, statistics",
        "config.json": "the whole config",
    }
    width = max(map(len, files))
    listing = "\n".join(f"  {name:{width}}  {text}" for name, text in files.items())
    return f"""\
Done: {summary["global_step"]:,} updates in {summary["train_runtime"]:.0f} s, \
{summary["train_steps_per_second"]:.2f} a second, \
{summary["train_samples_per_second"]:.0f} segments a second
Loss: {last_loss:.4g} at the end, {summary["train_loss"]:.4g} on average{errors}

In {workdir}:
{listing}

Next:
{_next(workdir, data_path, target)}"""


def _next(workdir, data_path, target):
    program = "dt-jax" if Path(sys.argv[0]).name == "dt-jax" else "python main.py"
    steps = {
        f"--mode=export --workdir {workdir}": "for Hugging Face's transformers",
    }
    if target is None:
        evaluate = f"--mode=evaluate --workdir {workdir} \\\n    "
        environment = "--config.eval.environment=YOUR_ENVIRONMENT"
        steps = {evaluate + environment: "let it act"} | steps
    if not data_path:
        steps = {"--config.data.path=YOUR_DATASET": "train on your data"} | steps
    lines = []
    for arguments, what in steps.items():
        lines += [f"  # {what}", f"  {program} {arguments}"]
    return "\n".join(
        [
            *lines,
            "  # act in Python",
            f"  policy = dt_jax.Policy.load({str(workdir)!r})",
            f"  policy.reset({'YOUR_TARGET' if target is None else f'{target:.6g}'})",
            "  action = policy.act(state)",
        ]
    )

# SPDX-License-Identifier: Apache-2.0
"""What the prompt shows when a run is finished."""

import os


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

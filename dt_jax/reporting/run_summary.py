# SPDX-License-Identifier: Apache-2.0
"""What the prompt shows when a run is finished."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from dt_jax.system.files import free_folder
from dt_jax.system.text import WIDTH, command, fit


def describe_run(
    workdir: str | os.PathLike,
    summary: dict,
    last: Mapping[str, float],
    held_out: dict | None,
    *,
    data_path: str,
    target: float | None,
    exports: bool = True,
) -> str:
    """A finished run as text: its figures, where everything lies, what to do next.

    Args:
      last: the last record.
      held_out: what `HeldOut.evaluate` says, None when no data is held out.
      data_path: of the user's data, '' for the simulated market.
      target: the largest return that the evaluation aimed at; None: there was none.
      exports: Hugging Face's model can be this one.
    """
    errors, pictures = "", {}
    if "accuracy" in last:
        errors = f"\nAccuracy: {last['accuracy']:.1%} at the end"
    if held_out:
        pictures = {
            "report/held_out.json": "the errors on held-out data",
        }
        constant, previous = held_out["references"].values()
        if "accuracy" in held_out:
            name, kind, found = "accuracy", "most frequent", held_out["accuracy"]
        else:
            name, kind, found = "mean squared error", "mean", held_out["mse"]
        errors += (
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
    steps = summary["train_steps_per_second"], summary["train_samples_per_second"]
    listing = "\n".join(f"  {name:{width}}  {text}" for name, text in files.items())
    text = f"""\
Done: {summary["global_step"]:,} updates in {summary["train_runtime"]:.0f} s, \
{steps[0]:.2f} a second, {steps[1]:.0f} segments a second
Loss: {last["loss"]:.4g} at the end, {summary["train_loss"]:.4g} on average{errors}

In {workdir}:
{listing}

Next:"""
    return f"{fit(text)}\n{_next(workdir, data_path, target, exports)}"


def describe_complete(
    workdir: str | os.PathLike, step: int, *, environment: str, exports: bool = True
) -> str:
    """What is said of a run that has made all its updates, and what can be done.

    `environment`: what an evaluation has to be told; '' where the run has its own.
    `exports`: as `describe_run` takes it.
    """
    here = f"--workdir {workdir}"
    evaluate = ["--mode=evaluate", here]
    if environment:
        evaluate.append(f"--config.eval.environment={environment}")
    ways = {
        "let it act": evaluate,
        **(_to_export(here) if exports else {}),
        "its page anew": ["--mode=report", here],
    }
    return "\n".join(
        [
            fit(f"complete at update {step:,}, nothing to do in {workdir}"),
            "You can:",
            *_commands(ways),
            "  # more updates, or a new run: the same command with",
            f"  --config.train.max_steps={2 * step}",
            f"  --workdir {free_folder(Path(workdir))}",
        ]
    )


def _to_export(here):
    return {"for Hugging Face's transformers": ["--mode=export", here]}


def _next(workdir, data_path, target, exports):
    here = f"--workdir {workdir}"
    ways = _to_export(here) if exports else {}
    if target is None:
        environment = "--config.eval.environment=YOUR_ENVIRONMENT"
        ways = {"let it act": ["--mode=evaluate", here, environment]} | ways
    if not data_path:
        ways = {"train on your data": ["--config.data.path=YOUR_DATASET"]} | ways
    return "\n".join(
        [
            *_commands(ways),
            "  # act in Python",
            _load(workdir),
            f"  policy.reset({'YOUR_TARGET' if target is None else f'{target:.6g}'})",
            "  action = policy.act(state)",
        ]
    )


def _load(workdir):
    begin, end = "  policy = dt_jax.Policy.load(", ")"
    line = f"{begin}{str(workdir)!r}{end}"
    return line if len(line) <= WIDTH else f"{begin}\n      {str(workdir)!r}\n  {end}"


def _commands(ways: Mapping[str, list[str]]) -> Iterator[str]:
    for what, arguments in ways.items():
        yield f"  # {what}"
        yield command(*arguments)

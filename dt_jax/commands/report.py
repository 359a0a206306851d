# SPDX-License-Identifier: Apache-2.0
"""The page of a run and the pictures of its training, from what lies in its workdir."""

from pathlib import Path

from ml_collections import ConfigDict

from dt_jax.reporting.html_page import write_page
from dt_jax.reporting.plots import draw_held_out, draw_loss
from dt_jax.system.files import read_json
from dt_jax.training.metrics import read_metrics


def report(config: ConfigDict, workdir: Path) -> None:
    """Write `report/index.html` anew, of a run that is finished or not.

    Raises:
      FileNotFoundError: there is no record of a run.
    """
    del config  # everything lies in the workdir
    if not read_metrics(workdir / "metrics.jsonl"):
        raise FileNotFoundError(
            f"{workdir}/metrics.jsonl: no records yet; --mode=report expects the "
            "--workdir of a run"
        )
    draw_training(workdir)
    print(f"{write_page(workdir)}  all of it on one page")


def draw_training(workdir: Path) -> None:
    """Draw the loss curve and, where data is held out, its error."""
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    draw_loss(folder / "loss.png", read_metrics(workdir / "metrics.jsonl"))
    if (folder / "held_out.json").is_file():
        errors = read_json(folder / "held_out.json")
        draw_held_out(folder / "held_out.png", errors)

# SPDX-License-Identifier: Apache-2.0
"""The page of a run, or of all runs of a folder, from what lies there."""

from pathlib import Path

from ml_collections import ConfigDict

from dt_jax.reporting.comparison import write_comparison
from dt_jax.reporting.population import (
    POPULATION,
    describe_population,
    write_population,
)
from dt_jax.reporting.run_page import PAGE, write_run_page
from dt_jax.system.files import read_json
from dt_jax.system.text import fit
from dt_jax.training.metrics import read_metrics


def report(config: ConfigDict, workdir: Path) -> None:
    """Write `report/index.html` anew, of a run that is finished or not.

    Of a sweep it is the page by setting; in a folder of workdirs a page of all of
    them, and `report/runs.csv` beside.

    Raises:
      FileNotFoundError: there is no record of a run.
    """
    del config  # everything lies in the workdir
    if read_metrics(workdir / "metrics.jsonl"):
        write_run_page(workdir)
        print(fit(f"{workdir / PAGE}  all of it on one page"))
    elif (workdir / POPULATION).is_file():
        members = read_json(workdir / POPULATION)["members"]
        found = write_population(workdir, [member["name"] for member in members])
        print(describe_population(workdir, found))
    else:
        page, table = write_comparison(workdir)
        print(fit(f"{page}  all runs on one page\n{table}  the same as numbers"))

# SPDX-License-Identifier: Apache-2.0
"""Look at the data before training."""

from pathlib import Path

from ml_collections import ConfigDict

from dt_jax.commands.setup import Setup
from dt_jax.config import naming_keys


@naming_keys()
def inspect(config: ConfigDict, workdir: Path) -> None:
    """Print the data report and leave it as `data_report.json`; train nothing.

    Raises:
      ValueError, FileNotFoundError: the config or the data are at fault.
    """
    setup = Setup(config, workdir)
    setup.report_data(setup.placement(), with_memory=True)

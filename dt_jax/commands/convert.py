# SPDX-License-Identifier: Apache-2.0
"""A dataset of another format, as one that is memory-mapped."""

from pathlib import Path

from ml_collections import ConfigDict

from dt_jax.config import naming_keys
from dt_jax.data.conversion import convert as convert_dataset
from dt_jax.system.files import another
from dt_jax.system.text import command, fit


@naming_keys()
def convert(config: ConfigDict, workdir: Path) -> None:
    """Write the dataset at `data.path` to `<workdir>/dataset`.

    Raises:
      ValueError, FileNotFoundError: it is at fault or of no known format, or there is a
        dataset already.
    """
    path, folder = config.data.path, workdir / "dataset"
    if not path:
        raise ValueError("data.path is empty; expected the dataset to convert")
    if folder.exists():  # or it is said below a progress bar
        raise ValueError(f"{folder} exists already; {another(workdir)}")
    convert_dataset(Path(path), folder, split=config.data.split)
    print(fit(f"{path}: converted\n\nNext:"))
    print(command(f"--config.data.path={folder}"))

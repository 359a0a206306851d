# SPDX-License-Identifier: Apache-2.0
"""The compiled update of a TPU reads the store where it lies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_no_call_copies_the_store():
    pytest.importorskip("libtpu")
    command = [sys.executable, "-m", "benchmarks.tpu_compile", "v5e:2x2", "1"]
    lines = subprocess.run(
        [*command, "--rows", "20000"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.splitlines()
    assert "0 copies of the store, 0 all-reduces" in lines
    # Less than half the store: 20,000 rows of 3,968 and 512 columns are 0.36 GB.
    (temporaries,) = (line for line in lines if line.startswith("temporaries"))
    assert float(temporaries.split()[1]) < 0.1

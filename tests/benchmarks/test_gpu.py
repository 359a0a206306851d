# SPDX-License-Identifier: Apache-2.0
"""What is to run on a GPU runs to its end on a CPU, with a small model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_device_script_runs_and_finds_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", f"--out={out}"]
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads(out.read_text())
    same = found["the same command, killed and resumed"]
    assert same["arrays"] > 50
    assert same["different"] == 0
    assert same["same records"]
    assert found["dt-jax, 8 members, 291/29"] > 0
    times = found["notebook, empty cache"]
    assert 0 < times["first record"] < times["seconds"]

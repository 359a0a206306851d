# SPDX-License-Identifier: Apache-2.0
"""What `import dt_jax` offers, and what it leaves alone."""

import ast
import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dt_jax

ROOT = Path(__file__).parents[1]
CONTRACT = (
    *("load_trajectories", "save_trajectories", "Trajectories", "SegmentSampler"),
    *("DecisionTransformer", "import_hf", "export_hf", "make_optimizer", "TrainState"),
    *("train_step", "Policy", "TradingEnv", "load_market", "default_config", "train"),
    *("evaluate", "Run"),
)


def test_importing_starts_nothing():
    slow = {"jax", "datasets", "numpy", "pandas", "gymnasium", "ml_collections"}
    code = f"import dt_jax, sys; print(*{slow} & set(sys.modules))"
    told = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert told == "\n"


@pytest.mark.parametrize("name", CONTRACT)
def test_what_a_user_calls_is_offered(name):
    assert name in dir(dt_jax)
    assert callable(getattr(dt_jax, name))
    assert getattr(dt_jax, name).__doc__


def test_the_stub_names_the_home_of_everything():
    tree = ast.parse((ROOT / "dt_jax/__init__.pyi").read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            (name,) = node.names
            assert name.name == name.asname
            # Where it is defined, so that its help is found there too.
            assert getattr(dt_jax, name.name).__module__ == f"dt_jax.{node.module}"


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version", "dependencies"]
    if found := importlib.metadata.packages_distributions().get("dt_jax"):
        assert importlib.metadata.version(found[0]) == dt_jax.__version__

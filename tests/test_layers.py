# SPDX-License-Identifier: Apache-2.0
"""The walls of the house: imports run one way, and each library has its own rooms."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A file may import only what stands in a line above its own.
LAYERS = (
    {"__init__"},
    {"rows", "files", "process", "config_file"},
    {"trajectories", "interruption"},
    {"readers", "segments", "trading"},
    {"feed", "model", "hf_weights", "optimizer", "metrics", "backtest", "hosts"},
    {"train_step", "checkpoint"},
    {"policy", "held_out"},
    {"rollout", "report", "evaluation"},
    {"pictures", "page"},
    {"evaluate"},
    {"train"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
WITHOUT_JAX = {
    *LAYERS[1],
    *LAYERS[2],
    *LAYERS[3],
    "hf_weights",
    "metrics",
    "backtest",
    "report",
}
WITHOUT_JAX |= {"evaluation", "pictures", "page"}
TREES = {
    path.stem: ast.parse(path.read_text()) for path in (ROOT / "dt_jax").glob("*.py")
}


def imports(tree):
    """Every module that is imported anywhere in the file, `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the package"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(library):
    return {
        name
        for name, tree in TREES.items()
        if any(module.split(".")[0] == library for module in imports(tree))
    }


def functions_that_name(tree, attribute):
    """The names of the innermost functions in which `.attribute` or it alone stands."""
    found = []

    def visit(node, function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        names = (getattr(node, key, None) for key in ("attr", "id", "name"))
        if attribute in names:
            found.append(function)
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(tree, "")
    return found


@pytest.mark.parametrize("name", sorted(TREES))
def test_imports_run_one_way(name):
    assert name in LEVEL, f"{name}.py has no place in LAYERS yet"
    ours = {m.split(".")[1] for m in imports(TREES[name]) if m.startswith("dt_jax.")}
    assert {other for other in ours if LEVEL[other] >= LEVEL[name]} == set()


def test_the_datas_half_knows_no_jax():
    for library in ("jax", "flax", "optax", "orbax"):
        assert importers(library) & WITHOUT_JAX == set()


def test_the_datas_half_does_not_start_jax():
    modules = ", ".join(f"dt_jax.{name}" for name in sorted(WITHOUT_JAX & set(TREES)))
    code = f"import {modules}, sys; sys.exit('jax' in sys.modules)"
    assert not subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode


def test_flax_is_known_to_the_model_alone():
    assert importers("flax") == {"model"}


def test_pmap_stands_in_one_function():
    found = {name: functions_that_name(tree, "pmap") for name, tree in TREES.items()}
    found = {name: functions for name, functions in found.items() if functions}
    assert found == {"train_step": ["make_train_call"]}


def test_the_config_is_read_by_train_and_evaluate_alone():
    assert importers("ml_collections") == {"train", "evaluate"}
    # `jax.config` and HF's config.json are other things: only what is given counts.
    readers = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.arg) and node.arg == "config"
    }
    assert readers == {"train", "evaluate"}

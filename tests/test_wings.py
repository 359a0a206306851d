# SPDX-License-Identifier: Apache-2.0
"""The walls of the house: imports run down, and each library has its own rooms."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the top floor down; a wing may import itself and what stands below it.
FLOORS = (
    {"__main__", "__init__"},
    {"commands", "prompt"},
    {"reporting", "acting"},
    {"training"},
    {"data", "model"},
    {"trading", "config"},
    {"system"},
)
FLOOR = {wing: floor for floor, wings in enumerate(FLOORS) for wing in wings}
TREES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted((ROOT / "dt_jax").rglob("*.py"))
}
WITHOUT_JAX = {
    name
    for name in TREES
    if name.split(".")[1] in ("config", "data", "trading", "system", "reporting")
    or name in ("dt_jax.model.hf_weights", "dt_jax.training.metrics")
} - {"dt_jax.system.distributed"}


def imports(tree):
    """Every module that is imported anywhere in the file, `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the package"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_imported(name):
    """Our files that a file imports; `dt_jax.a.b.name` is in the file dt_jax.a.b."""
    for module in imports(TREES[name]):
        if module.startswith("dt_jax."):
            while module not in TREES:
                module = module.rpartition(".")[0] or "dt_jax.__init__"
            yield module


def runs_up(importer, imported):
    wings = importer.split(".")[1], imported.split(".")[1]
    return wings[0] != wings[1] and FLOOR[wings[0]] >= FLOOR[wings[1]]


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


def test_every_wing_has_its_floor():
    assert {name.split(".")[1] for name in TREES} == set(FLOOR)


@pytest.mark.parametrize("name", sorted(TREES))
def test_imports_run_down(name):
    assert [other for other in files_imported(name) if runs_up(name, other)] == []


def test_no_imports_go_round():
    graphlib.TopologicalSorter({n: set(files_imported(n)) for n in TREES}).prepare()


@pytest.mark.parametrize(
    ("importer", "imported", "up"),
    [
        ("dt_jax.training.loop", "dt_jax.data.rows", False),
        ("dt_jax.training.loop", "dt_jax.training.feed", False),
        ("dt_jax.data.rows", "dt_jax.training.loop", True),
        ("dt_jax.data.rows", "dt_jax.model.layers", True),  # beside is not below
        ("dt_jax.config", "dt_jax.commands.train", True),
    ],
)
def test_what_up_means(importer, imported, up):
    assert runs_up(importer, imported) == up


def test_what_knows_no_jax():
    for library in ("jax", "flax", "optax", "orbax"):
        assert importers(library) & WITHOUT_JAX == set()


def test_what_does_not_start_jax():
    code = f"import {', '.join(sorted(WITHOUT_JAX))}, sys; exit('jax' in sys.modules)"
    assert not subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode


def test_each_library_is_known_to_its_own_wing():
    wings = {
        library: {name.split(".")[1] for name in importers(library)}
        for library in (
            *("flax", "optax", "orbax", "datasets", "h5py", "minari"),
            "stable_baselines3",
        )
    }
    assert wings == {
        "flax": {"model"},
        "optax": {"training"},
        "orbax": {"training"},
        "datasets": {"data"},
        "h5py": {"data"},
        "minari": {"data"},
        "stable_baselines3": {"acting"},
    }


def test_pmap_stands_in_one_function():
    found = {name: functions_that_name(tree, "pmap") for name, tree in TREES.items()}
    found = {name: functions for name, functions in found.items() if functions}
    assert found == {"dt_jax.training.train_call": ["_on_devices"]}


def test_the_config_is_read_by_the_commands_alone():
    upstairs = {"commands", "config", "__main__"}
    assert {name.split(".")[1] for name in importers("ml_collections")} == upstairs
    # `jax.config` and HF's config.json are other things: only what is given counts.
    readers = {
        name.split(".")[1]
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.arg) and node.arg == "config"
    }
    assert readers <= upstairs

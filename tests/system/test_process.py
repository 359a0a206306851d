# SPDX-License-Identifier: Apache-2.0
"""Huge pages, and a cache of what is compiled, of which a kill costs one entry."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dt_jax.system.process import (
    HUGE_PAGES,
    compute_deterministically,
    give_back_memory,
    keep_compiled,
)

RESTART = """
import json, os, sys
from dt_jax.system.process import use_huge_pages
pid = os.environ.setdefault("FIRST_PID", str(os.getpid()))
use_huge_pages()
print(json.dumps([os.environ["GLIBC_TUNABLES"], sys.argv[1:], int(pid), os.getpid()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
@pytest.mark.parametrize("given", [{}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}])
def test_a_process_gets_huge_pages_unless_the_user_says_otherwise(given):
    others = {k: v for k, v in os.environ.items() if k not in HUGE_PAGES}
    command = [sys.executable, "-c", RESTART, "--flag=a b", "c"]
    told = subprocess.run(
        command,
        env={**others, **given},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
    ).stdout
    setting, arguments, first, last = json.loads(told)
    assert setting == (given or HUGE_PAGES)["GLIBC_TUNABLES"]
    assert arguments == ["--flag=a b", "c"]  # nothing is lost on the way
    assert first == last  # nor does who has started it have to look for it


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's doing")
def test_what_is_freed_goes_back_to_the_system():
    def megabytes():
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1000

    # 120 MB, each block too small for a map of its own; one stays at the far end.
    blocks = [b"x" * 60_000 for _ in range(2000)]
    last = blocks.pop()
    blocks.clear()
    kept = megabytes()
    give_back_memory()
    assert kept - megabytes() > 100
    assert len(last) == 60_000


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """The folder of what is compiled, with a whole entry in it and half a one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for key in ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.setenv(key, "")  # so that it is as before in the end
        monkeypatch.delenv(key)
    folder = tmp_path / "dt_jax"
    folder.mkdir()
    for name in ("whole-cache", "whole-atime", "half-cache", ".lockfile"):
        (folder / name).touch()
    return folder


def test_what_a_kill_cut_short_is_removed(compiled):
    keep_compiled()
    assert Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) == compiled
    names = {path.name for path in compiled.iterdir()}
    assert names == {"whole-cache", "whole-atime", ".lockfile"}


def test_a_folder_of_the_users_is_left_alone(compiled, monkeypatch):
    # Where its size has no limit, JAX writes no atime: all entries look cut short.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled))
    keep_compiled()
    assert (compiled / "half-cache").exists()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(compiled)
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "--xla_gpu_deterministic_ops=true"),
        ("--xla_a=1", "--xla_a=1 --xla_gpu_deterministic_ops=true"),
        ("--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_deterministic_flags_stand_beside_those_of_the_user(monkeypatch, before, after):
    if before is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", before)
    compute_deterministically()
    compute_deterministically()  # once is enough
    assert os.environ["XLA_FLAGS"] == after

# SPDX-License-Identifier: Apache-2.0
"""A kill while JAX writes what it compiled costs one compilation, not all that come."""

import os
from pathlib import Path

from dt_jax.process import keep_compiled


def test_what_a_kill_cut_short_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    for name in ("whole-cache", "whole-atime", "half-cache", ".lockfile"):
        (tmp_path / name).touch()
    keep_compiled()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"whole-cache", "whole-atime", ".lockfile"}


def test_the_users_folder_comes_before_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for key in ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.delenv(key, raising=False)
    keep_compiled()
    assert Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) == tmp_path / "dt_jax"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    keep_compiled()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"

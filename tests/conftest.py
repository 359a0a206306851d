# SPDX-License-Identifier: Apache-2.0
"""Every test runs on the CPU with four devices, and shapes never broadcast by rank."""

import os
import resource
import runpy
import sys
from contextlib import contextmanager
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["GLIBC_TUNABLES"] = ""  # set, so that main.py does not start pytest again
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
# XLA's older code for fusions runs slower, but compiles in half the time; in programs
# as small as these, threads of its own cost more than they save.
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
    "--xla_cpu_multi_thread_eigen=false"
)
# What one test, or the process it starts, has compiled no other need compile.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    Path(__file__).parents[1]
    / ".pytest_cache"
    / "compiled"
    / os.environ.get("PYTEST_XDIST_WORKER", "alone")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest
from absl import flags

import dt_jax.__main__
from dt_jax.commands import setup
from dt_jax.reporting import population, run_page

ROOT = Path(__file__).parents[1]

jax.config.update("jax_numpy_rank_promotion", "raise")
# With more devices than cores, collectives dispatched one upon another deadlock.
jax.config.update("jax_cpu_enable_async_dispatch", False)


@pytest.fixture(scope="module")
def compile_fast():
    """XLA takes half the time, here and in the processes that the tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_CPU_ENABLE_ASYNC_DISPATCH", "0")
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def without_pictures(request):
    """Pages without pictures, which take seconds, here and in the processes that tests
    start: but for the tests of reporting and of the examples."""
    if "reporting" in request.path.parts or request.path.stem == "test_examples":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_page, "run_pictures", lambda run: {})
        patch.setattr(population, "_pictures", lambda *_: {})
        patch.setenv("PYTHONPATH", str(ROOT / "tests" / "no_pictures"), prepend=":")
        yield


@pytest.fixture
def limit_files():
    """Within it no file grows beyond so many bytes: to who writes, a full disk."""

    @contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:  # before pytest says how it went, to a file perhaps
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture
def prompt(monkeypatch, capsys):
    """Runs main.py with these arguments, in this process; its status and output."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setup, "join", lambda config: None)  # JAX has started long ago
    monkeypatch.setattr(dt_jax.__main__, "watch", lambda: None)  # pytest is not ours
    known = set(flags.FLAGS)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, args)])
        try:
            with pytest.raises(SystemExit) as end:
                runpy.run_path("main.py", run_name="__main__")
        finally:
            # Else the next config is loaded into this one, as into a module reloaded.
            sys.modules.pop("config_config", None)
            for name in set(flags.FLAGS) - known:
                delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()
        return end.value.code, *capsys.readouterr()

    return run

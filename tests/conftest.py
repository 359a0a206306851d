# SPDX-License-Identifier: Apache-2.0
"""Every test runs on the CPU with four devices, and shapes never broadcast by rank."""

import os
import resource
from contextlib import contextmanager

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# With more devices than cores, collectives dispatched one upon another deadlock.
jax.config.update("jax_cpu_enable_async_dispatch", False)


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

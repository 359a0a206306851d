# SPDX-License-Identifier: Apache-2.0
"""Every test runs on the CPU with four devices, and shapes never broadcast by rank."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
# With more devices than cores, collectives dispatched one upon another deadlock.
jax.config.update("jax_cpu_enable_async_dispatch", False)

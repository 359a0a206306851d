# SPDX-License-Identifier: Apache-2.0
"""Whether the store lies on the devices or on the host: what each needs of memory.

In go a sampler and the bytes of a train state, out come a plan and a `Placement`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax

from dt_jax.data.segments import SegmentSampler
from dt_jax.system.text import check_choice
from dt_jax.training.population import Population
from dt_jax.training.store import STORE_DTYPES, shapes_of

PLACEMENTS = ("auto", "host", "device")
CALLS_AHEAD = 4  # one being computed, one waiting for it, one ready, one being made
DEVICE_SHARE = 0.8  # of a device's memory that 'auto' gives to store and state
TPU_COLUMNS = 128  # a TPU keeps rows in multiples of so many


class Placement(NamedTuple):
    """Where the store lies, 'host' or 'device', why, and what each of them takes;
    `tight`: the store on the device takes more than half of its memory."""

    name: str
    reason: str
    plan: dict
    tight: bool = False


def best_updates_per_call(placement: str) -> int:
    """Of a GPU or TPU with the store in its memory 40, else 10.

    An H200 makes 890 updates a second in calls of 10 and 980 in calls of 40; of batches
    from the host, calls of 40 would hold four times as many in memory.
    """
    return 40 if placement == "device" and jax.default_backend() != "cpu" else 10


def memory_plan(
    sampler: SegmentSampler,
    updates_per_call: int,
    state_bytes: int,
    store_dtype: str,
    population: Population | None = None,
) -> dict:
    """Bytes on one device (and on the host) for each placement.

    `updates_per_call` is 0 for `best_updates_per_call`.

    Counts what stays: the train state (`state_bytes`, of one member where there are
    many), the calls sent ahead, and the store. The temporaries of an update come on
    top: `Feed.compile`.

    Raises:
      ValueError: the batch does not divide by the devices, or no such `store_dtype`.
    """
    check_choice("store_dtype", store_dtype, STORE_DTYPES)
    trajectories = sampler.trajectories
    if population is None:
        segments = per_device(sampler.batch_size)
    else:
        segments = population.segments
        state_bytes = state_bytes * population.places
    step_bytes = 4 * (trajectories.states.shape[1] + trajectories.actions.shape[1] + 2)
    store = shapes_of(trajectories, store_dtype)

    def ahead(placement, step_bytes):
        updates = CALLS_AHEAD * (updates_per_call or best_updates_per_call(placement))
        return updates * sampler.context_length * segments * step_bytes

    batches, rows = ahead("host", step_bytes + 8), ahead("device", 12)
    return {
        "host": {
            "host_bytes": batches * jax.local_device_count(),
            "device_bytes": state_bytes + batches,
        },
        "device": {
            "host_bytes": rows * jax.local_device_count(),
            "device_bytes": state_bytes + rows + sum(map(_device_bytes, store)),
        },
    }


def choose_placement(placement: str, plan: dict) -> Placement:
    """What `placement` asks for.

    'auto' takes 'device' where the store fits into a device's own memory; a CPU has
    none, its 'device' would be a second copy beside the page cache.

    Raises:
      ValueError: no such `placement`, or the store on the device exceeds its memory.
    """
    check_choice("placement", placement, PLACEMENTS)
    limit, needed = memory_limit(), plan["device"]["device_bytes"]
    if placement == "device" and limit and needed > limit:
        raise ValueError(
            too_large(placement, f"{needed / 1e9:.1f} of {limit / 1e9:.1f} GB")
        )
    tight = bool(limit) and 2 * needed > limit
    if placement != "auto":
        return Placement(placement, f"placement={placement}", plan, tight)
    if not limit:
        return Placement("host", "a CPU reads the store where it lies", plan)
    fits = needed <= DEVICE_SHARE * limit
    return Placement(
        "device" if fits else "host",
        f"{needed / 1e9:.1f} GB {'fit' if fits else 'do not fit'} into "
        f"{DEVICE_SHARE:.0%} of the device's {limit / 1e9:.1f} GB",
        plan,
        tight,
    )


def bytes_of_call(compiled) -> int:
    """That a compiled call needs on one device while it runs."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


@contextmanager
def naming_memory(placement: str) -> Iterator[None]:
    """Within it, memory that a device does not have is a ValueError of one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        cause = str(error).splitlines()[0][:200]
        raise ValueError(too_large(placement, cause)) from error


def too_large(placement: str, cause: str) -> str:
    """Why a run does not fit, and the ways out."""
    ways_out = {
        "device": "placement=host or store_dtype=bfloat16 needs less",
        "host": "updates_per_call=1 or a smaller batch needs less",
    }
    return (
        f"placement={placement} needs more memory than a device has: {cause}; "
        f"{ways_out[placement]}"
    )


def memory_limit() -> int:
    """Bytes of a device's own memory; 0 where it has none or does not tell."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    return stats["bytes_limit"] if stats and device.platform != "cpu" else 0


def _device_bytes(array) -> int:
    *rows, columns = array.shape
    if jax.local_devices()[0].platform == "tpu":
        columns += -columns % TPU_COLUMNS
    return math.prod(rows) * columns * array.dtype.itemsize


def per_device(batch_size: int) -> int:
    """Segments of a batch on each device.

    Raises:
      ValueError: they do not divide by the devices.
    """
    num_devices = jax.device_count()
    if batch_size % num_devices:
        below = batch_size // num_devices * num_devices
        nearest = [size for size in (below, below + num_devices) if size]
        raise ValueError(
            f"batch_size={batch_size} does not divide by the {num_devices} "
            f"devices; the nearest that do are {' and '.join(map(str, nearest))}"
        )
    return batch_size // num_devices

# SPDX-License-Identifier: Apache-2.0
"""The train call compiled for TPUs, on a machine that has none.

    pip install libtpu  # 200 MB, in a virtual environment of its own
    python -m benchmarks.tpu_compile v5e:2x2 1
    python -m benchmarks.tpu_compile v5e:2x4 8 --changes '{"model.dtype": "bfloat16"}'

The default recipe at the notebook's dims, compiled for as many chips of a described
topology. Prints what one chip needs, bytes of arguments and of temporaries, the copies
of the store (there should be none) and the all-reduces. Where a chip's memory does not
suffice, compilation fails as it would on a TPU. Nothing runs, so there are no times.
"""

import argparse
import json
import os
import re
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

STATE_DIM, ACT_DIM, NUM_ROWS = 3941, 394, 499_900
PER_CALL = 40


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topology")
    parser.add_argument("devices", type=int)
    parser.add_argument("--rows", type=int, default=NUM_ROWS, help="of the store")
    parser.add_argument("--changes", type=json.loads, default={}, help="config keys")
    parser.add_argument("--out", type=Path, help="where to save the optimised HLO")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would ask Google's cloud

    from jax.experimental import topologies

    found = topologies.get_topology_desc(topology_name=args.topology, platform="tpu")
    print(f"{len(found.devices)} x {found.devices[0].device_kind}")
    lowered = lower_call(found.devices[: args.devices], args.changes, args.rows)
    start = time.perf_counter()
    compiled = lowered.compile()
    print(f"compiled in {time.perf_counter() - start:.0f} s")
    text, memory = compiled.as_text(), compiled.memory_analysis()
    print(f"arguments {memory.argument_size_in_bytes / 1e9:.2f} GB on a chip")
    print(f"temporaries {memory.temp_size_in_bytes / 1e9:.3f} GB on a chip")
    copies = re.findall(rf"f\w+\[{args.rows},\d+\]\S* copy\(", text)
    reduces = text.count(" all-reduce(") + text.count(" all-reduce-start(")
    print(f"{len(copies)} copies of the store, {reduces} all-reduces")
    if args.out:
        args.out.write_text(text)


def lower_call(devices, changes, num_rows=NUM_ROWS, dims=(STATE_DIM, ACT_DIM)):
    """The train call of the default recipe, lowered for devices that need not exist.

    The store lies on them unless `changes`, {config key: value}, says otherwise; with
    `sweep` among them it is that of all members, for one device. JAX itself is to run
    on a CPU (JAX_PLATFORMS).
    """
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from dt_jax.commands.setup import Setup
    from dt_jax.commands.sweep import Sweep
    from dt_jax.config import default_config
    from dt_jax.data.segments import SegmentSampler
    from dt_jax.data.writer import save_trajectories
    from dt_jax.training.feed import pick_returns
    from dt_jax.training.store import gather_resident, segments, store_shapes

    config = default_config()
    config.data.placement, config.train.max_steps = "device", 10**6
    config.train.updates_per_call = PER_CALL
    config.update_from_flattened_dict(changes)
    with tempfile.TemporaryDirectory() as folder:
        config.data.path = f"{folder}/data"
        save_trajectories(config.data.path, [episode(*dims)])
        setup = Setup(config, Path(folder))
        fetch, gather = pick_returns, SegmentSampler.gather
        if on_device := config.data.placement == "device":
            fetch, gather = gather_resident, segments
        one = gather(setup.sampler, *setup.sampler.draw(0))
    leading, per_call = (len(devices),), config.train.updates_per_call
    everywhere = NamedSharding(Mesh(np.array(devices), ("devices",)), PartitionSpec())
    shapes = num_rows, *dims, config.data.store_dtype, np.float32, everywhere
    state, store = setup.state_shapes(), store_shapes(*shapes)
    if config.sweep:
        setup = Sweep(setup, setup.members)
        items = setup.population.items(gather, 0, per_call)
        state = jax.tree.map(lambda x: with_axes(leading, x), setup.state_shapes())
        returns = with_axes((), store.returns_to_go, setup.population.num_kinds)
        store = store._replace(returns_to_go=returns)
    else:
        items = jax.tree.map(
            lambda x: with_axes((*leading, per_call), x, 1 / len(devices)), one
        )
    with mock.patch("jax.pmap", partial(jax.pmap, devices=devices)):
        call = setup.train_call(SimpleNamespace(fetch=fetch))
    return call.lower(state, store if on_device else (), items)


def with_axes(leading, array, times=1):
    """Its shape behind others, the first axis `times` as long."""
    import jax

    first = tuple(int(size * times) for size in array.shape[:1])
    shape = (*leading, *first, *array.shape[1:])
    return jax.ShapeDtypeStruct(
        shape, array.dtype, sharding=getattr(array, "sharding", None)
    )


def episode(state_dim, act_dim):
    """Of random numbers: a mean of 0 and a std of 1 XLA would simplify away."""
    generator = np.random.default_rng(0)
    return {
        "observations": generator.random((20, state_dim), np.float32),
        "actions": 2 * generator.random((20, act_dim), np.float32) - 1,
        "rewards": generator.random(20, np.float32),
        "dones": np.arange(20) == 19,
    }


if __name__ == "__main__":
    main()

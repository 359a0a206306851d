# SPDX-License-Identifier: Apache-2.0
"""Bytes on the device while a run trains, beside what the memory plan said.

    python -m benchmarks.memory

Trains 100 updates on 300 trajectories at 3941/394 as `main.py` does, in a process of
its own for each placement and store. From the first record on it looks every 10 ms: on
a GPU or TPU at what the device says is in use, on a CPU at the arrays that JAX holds
there (an update's temporaries do not count). Prints the plan, the most that was seen
and their ratio; writes memory.json here.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from benchmarks.updates import write_dataset

HERE = Path(__file__).parent
SETTINGS = (("host", "float32"), ("device", "float32"), ("device", "bfloat16"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    table = {}
    print(f"{'placement, states':20s}{'planned MB':>12s}{'most MB':>12s}{'ratio':>8s}")
    with tempfile.TemporaryDirectory() as folder:
        data = write_dataset(Path(folder) / "data", "3941/394")
        for setting in SETTINGS:
            command = [sys.executable, "-m", "benchmarks.memory", "--measure", data]
            lines = subprocess.run(
                [*command, *setting], check=True, stdout=subprocess.PIPE, text=True
            ).stdout.splitlines()
            name, found = ", ".join(setting), json.loads(lines[-1])
            table[name] = found
            planned, most = found["planned"], found["most"]
            print(
                f"{name:20s}{planned / 1e6:12.1f}{most / 1e6:12.1f}"
                f"{most / planned:8.3f}",
                flush=True,
            )
    (HERE / "memory.json").write_text(json.dumps(table, indent=2) + "\n")


def measure(data, placement, store_dtype):
    """Bytes on one device: as planned, and the most that were there."""
    from dt_jax.commands.train import train
    from dt_jax.config import default_config
    from dt_jax.training.feed import Feed

    config = default_config()
    config.data.path, config.train.max_steps = data, 100
    config.data.placement, config.data.store_dtype = placement, store_dtype
    most, ended, items = [], threading.Event(), Feed.items

    def kept_while_they_run(self, calls):
        # Of a running call's item JAX tells nothing, once Python has let go of it.
        before = None
        for item in items(self, calls):
            yield item
            before = item  # noqa: F841

    def look(metrics):
        while not ended.wait(0.01):
            if metrics.exists() and metrics.stat().st_size:
                most.append(bytes_in_use())

    Feed.items = kept_while_they_run
    with tempfile.TemporaryDirectory() as workdir:
        thread = threading.Thread(target=look, args=[Path(workdir) / "metrics.jsonl"])
        thread.start()
        train(config, Path(workdir))
        ended.set()
        thread.join()
        report = json.loads((Path(workdir) / "data_report.json").read_text())
    planned = report["memory_plan"][placement]["device_bytes"]
    return {"planned": planned, "most": max(most)}


def bytes_in_use():
    import jax

    device = jax.local_devices()[0]
    if stats := device.memory_stats():
        return stats["bytes_in_use"]
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.live_arrays()
        if not x.is_deleted() and device in x.sharding.device_set
    )


if __name__ == "__main__":
    main()

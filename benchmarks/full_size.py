# SPDX-License-Identifier: Apache-2.0
"""Open a dataset of the notebook's size: how long, and how much memory.

    python -m benchmarks.full_size [FOLDER] [--trajectories 4999]

Writes the dataset to FOLDER first when there is none (4,999 x 100 x (3941 + 394)
float32, 8.7 GB in 18 shards; it needs twice that on disk while it is written), then
opens it in a fresh process and prints a table: seconds until it is open, seconds until
the first batch, anonymous memory then. Run it twice to see it warm.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

STATE_DIM, ACT_DIM, NUM_STEPS = 3941, 394, 100


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="runs/full_size", type=Path)
    parser.add_argument("--trajectories", type=int, default=4999)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.folder)))
        return
    if not args.folder.exists():
        from dt_jax.data.writer import save_trajectories

        start = time.perf_counter()
        save_trajectories(args.folder, episodes(args.trajectories))
        print(f"written in {time.perf_counter() - start:.0f} s")
    command = [sys.executable, "-m", "benchmarks.full_size", args.folder, "--measure"]
    figures = json.loads(
        subprocess.run(command, check=True, capture_output=True).stdout
    )
    for name, figure in figures.items():
        print(f"{name:32s} {figure:10.3f}")


def episodes(count):
    """Random walks of the notebook's shape, quick to draw."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {
            "observations": rng.random((NUM_STEPS, STATE_DIM), np.float32),
            "actions": rng.random((NUM_STEPS, ACT_DIM), np.float32) * 2 - 1,
            "rewards": rng.random(NUM_STEPS, np.float32),
            "dones": np.zeros(NUM_STEPS, bool),
        }


def measure(folder):
    """Open and sample once, in a process that has done nothing else."""
    from dt_jax.data.readers import load_trajectories
    from dt_jax.data.segments import SegmentSampler

    start = time.perf_counter()
    trajectories = load_trajectories(folder)
    opened = time.perf_counter()
    sampler = SegmentSampler(
        trajectories,
        batch_size=64,
        context_length=20,
        max_ep_len=985,
        return_scale=1000.0,
        weighting="length",
        seed=0,
    )
    sampler.batch(0)
    return {
        "trajectories": trajectories.num_trajectories,
        "gigabytes": trajectories.nbytes / 1e9,
        "seconds to open": opened - start,
        "seconds to the first batch": time.perf_counter() - start,
        "anonymous memory, gigabytes": anonymous_bytes() / 1e9,
    }


def anonymous_bytes():
    """What this process has of its own: the page cache of the map does not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return float("nan")


if __name__ == "__main__":
    main()

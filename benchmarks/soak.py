# SPDX-License-Identifier: Apache-2.0
"""Whether a long training grows: memory, threads, file descriptors.

    python -m benchmarks.soak [--minutes 30] [--updates 2000]

One process trains on the simulated market, saves every 20 updates, measures held-out
data every 10, and after every `--updates` evaluates in the environment and goes on.
Looks into /proc once a second, and at the end into metrics.jsonl for a gap or a double.
The minutes are those in which the process ran: a pause (SIGSTOP) does not count.
Prints a table; writes soak.json here.
"""

import argparse
import gc
import json
import os
import re
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from configs import base
from dt_jax import train
from dt_jax.metrics import read_metrics
from dt_jax.process import give_back_memory, use_huge_pages

HERE = Path(__file__).parent
WARM_UP = 1 / 4  # of the time, for caches and allocators to fill
LOGGING_STEPS = 10
CHANGES = {
    "data.validation_fraction": 0.1,
    "train.logging_steps": LOGGING_STEPS,
    "train.save_steps": 20,
    "eval.episodes": 4,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--updates", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as workdir:
        found = soak(Path(workdir), 60 * args.minutes, args.updates, CHANGES)
    print(describe(found))
    (HERE / "soak.json").write_text(json.dumps(found, indent=2) + "\n")


def soak(workdir: Path, seconds: float, updates: int, changes: dict) -> dict:
    """Train in `workdir` for so long, to the next evaluation, which is every `updates`.

    Raises:
      AssertionError: metrics.jsonl has a gap, a double, or a record without its
        held-out loss.
    """
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    rounds = []
    with sampling() as samples:
        while len(samples) < seconds:
            config.train.max_steps = updates * (len(rounds) + 1)
            train.train(config, workdir)
            rounds.append(sample(len(samples)))
            # A process starts once, as a rule. Here each start compiles anew, and what
            # the one before compiled waits in JAX's caches and Python's cycles.
            jax.clear_caches()
            gc.collect()
            give_back_memory()
    records = read_metrics(workdir / "metrics.jsonl")
    logging_steps = config.train.logging_steps
    expected = range(logging_steps, config.train.max_steps + 1, logging_steps)
    assert [record["step"] for record in records] == list(expected)
    assert all(record["validation_loss"] > 0 for record in records)
    warm = [s for s in samples if s["seconds"] > WARM_UP * samples[-1]["seconds"]]
    return {
        "minutes": samples[-1]["seconds"] / 60,
        "updates": config.train.max_steps,
        "saves": config.train.max_steps // config.train.save_steps,
        "records": len(records),
        "mb_per_hour": 3600 * slope(warm, "mb"),
        "threads_per_hour": 3600 * slope(warm, "threads"),
        "files_per_hour": 3600 * slope(warm, "files"),
        "after_each_evaluation": rounds,
        "every_15_seconds": samples[::15],
    }


@contextmanager
def sampling():
    """A list that grows by a sample a second, while the process runs."""
    samples, ended = [], threading.Event()

    def run():
        while not ended.wait(1.0):
            samples.append(sample(len(samples)))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def sample(seconds: int) -> dict:
    """At this second: anonymous memory in MB, threads, descriptors."""
    status = Path("/proc/self/status").read_text()
    return {
        "seconds": seconds,
        "mb": int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1000,
        "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
        "files": len(os.listdir("/proc/self/fd")),
    }


def slope(samples, key) -> float:
    """Of a straight line through the samples, per second."""
    return float(
        np.polyfit([s["seconds"] for s in samples], [s[key] for s in samples], 1)[0]
    )


def describe(found) -> str:
    lines = [
        f"{found['minutes']:.0f} minutes: {found['updates']:,} updates, "
        f"{found['saves']:,} saves, {len(found['after_each_evaluation'])} evaluations, "
        f"{found['records']:,} records, none missing and none double",
        "",
        f"{'after minute':>12}{'MB':>8}{'threads':>9}{'files':>7}",
    ]
    lines += [
        f"{s['seconds'] / 60:12.1f}{s['mb']:8.0f}{s['threads']:9}{s['files']:7}"
        for s in found["after_each_evaluation"]
    ]
    growth = [found[f"{key}_per_hour"] for key in ("mb", "threads", "files")]
    return "\n".join([*lines, "an hour gives{:+7.1f}{:+9.2f}{:+7.2f}".format(*growth)])


if __name__ == "__main__":
    use_huge_pages()  # as main.py does
    main()

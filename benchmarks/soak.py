# SPDX-License-Identifier: Apache-2.0
"""Whether a long training grows: memory, threads, file descriptors.

    python -m benchmarks.soak [--minutes 30] [--evaluations 8]

`main.py` trains on the simulated market, saves every 20 updates and measures held-out
data every 10. In between it is evaluated in the environment, by `main.py
--mode=evaluate` beside it. At the end it gets a SIGTERM, and must end with its state
saved. Looks into /proc once a second, and at the end into metrics.jsonl for a gap or a
double. Prints a table; writes soak.json here.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dt_jax.training.metrics import read_metrics

HERE = Path(__file__).parent
WARM_UP = 1 / 6  # of the time, for caches and allocators to fill
LOGGING_STEPS, SAVE_STEPS = 10, 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--evaluations", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as workdir:
        found = soak(Path(workdir), 60 * args.minutes, args.evaluations)
    print(describe(found))
    (HERE / "soak.json").write_text(json.dumps(found, indent=2) + "\n")


def soak(workdir: Path, seconds: float, evaluations: int) -> dict:
    """Train in `workdir` for so long.

    Raises:
      AssertionError: the training did not end as it should, or metrics.jsonl has a gap,
        a double, or a record without its held-out loss.
    """
    command = [sys.executable, "main.py", "--config=configs/base.py"]
    command += [f"--workdir={workdir}", "--config.data.validation_fraction=0.1"]
    training = subprocess.Popen(
        [
            *command,
            "--config.train.max_steps=100000",  # more than it will make
            f"--config.train.logging_steps={LOGGING_STEPS}",
            f"--config.train.save_steps={SAVE_STEPS}",
        ],
        cwd=HERE.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    samples, evaluated, evaluation, started = [], 0, None, time.monotonic()
    while (now := time.monotonic() - started) < seconds:
        time.sleep(1.0)
        samples.append({"seconds": now, **sample(training.pid)})
        if now > (evaluated + 1) * seconds / (evaluations + 1):
            assert evaluation is None or evaluation.wait() == 0
            evaluation = subprocess.Popen(
                [*command, "--mode=evaluate", "--config.eval.episodes=4"],
                cwd=HERE.parent,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            evaluated += 1
    assert evaluation.wait() == 0
    training.send_signal(signal.SIGTERM)
    assert training.wait() == 128 + signal.SIGTERM
    records = read_metrics(workdir / "metrics.jsonl")
    last = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    expected = range(LOGGING_STEPS, last + 1, LOGGING_STEPS)
    assert [record["step"] for record in records] == list(expected)
    assert all(record["validation_loss"] > 0 for record in records)
    warm = [s for s in samples if s["seconds"] > WARM_UP * seconds]
    return {
        "minutes": seconds / 60,
        "updates": last,
        "saves": last // SAVE_STEPS,
        "evaluations": evaluated,
        "records": len(records),
        "mb_per_hour": 3600 * slope(warm, "mb"),
        "threads_per_hour": 3600 * slope(warm, "threads"),
        "files_per_hour": 3600 * slope(warm, "files"),
        "every_15_seconds": samples[::15],
    }


def sample(pid: int) -> dict:
    """Of a process: anonymous memory in MB, threads, descriptors."""
    status = Path(f"/proc/{pid}/status").read_text()
    return {
        "mb": int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1000,
        "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
    }


def slope(samples, key) -> float:
    """Of a straight line through the samples, per second."""
    return float(
        np.polyfit([s["seconds"] for s in samples], [s[key] for s in samples], 1)[0]
    )


def describe(found) -> str:
    lines = [
        f"{found['minutes']:.0f} minutes: {found['updates']:,} updates, "
        f"{found['saves']:,} saves, {found['evaluations']} evaluations, "
        f"{found['records']:,} records, none missing and none double",
        "",
        f"{'after minute':>12}{'MB':>8}{'threads':>9}{'files':>7}",
    ]
    lines += [
        f"{s['seconds'] / 60:12.1f}{s['mb']:8.0f}{s['threads']:9}{s['files']:7}"
        for s in found["every_15_seconds"][::8]
    ]
    growth = [found[f"{key}_per_hour"] for key in ("mb", "threads", "files")]
    return "\n".join([*lines, "an hour gives{:+7.1f}{:+9.2f}{:+7.2f}".format(*growth)])


if __name__ == "__main__":
    main()

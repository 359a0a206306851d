# SPDX-License-Identifier: Apache-2.0
"""Seconds from the command to the first update, at the notebook's dims.

    python -m benchmarks.start [FOLDER] [--rounds 3]

FOLDER holds a dataset that `benchmarks.full_size` wrote (run it before, so that the
pages are cached). Starts `main.py` with an empty compilation cache, then with the one
that this left, and waits for the first record. Prints both; writes start.json here.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="runs/full_size", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found = {"empty cache": [], "compiled before": []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name, seconds in found.items():
                seconds.append(first_update(args.folder, cache))
                print(f"{name:16s}{seconds[-1]:8.2f} s", flush=True)
    (HERE / "start.json").write_text(json.dumps(found, indent=2) + "\n")


def first_update(data, cache):
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            *(sys.executable, "main.py", "--config=configs/base.py"),
            f"--workdir={workdir}",
            f"--config.data.path={data}",
            "--config.train.logging_steps=1",
        ]
        metrics = Path(workdir) / "metrics.jsonl"
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=HERE.parent,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not (metrics.is_file() and metrics.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended early")
            time.sleep(0.01)
        took = time.perf_counter() - start
        process.kill()
        process.wait()
    return took


if __name__ == "__main__":
    main()

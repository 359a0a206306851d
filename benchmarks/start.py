# SPDX-License-Identifier: Apache-2.0
"""Seconds from the command to the first record, without and with what it had compiled.

    python -m benchmarks.start [FOLDER] [--rounds 3]

FOLDER holds a dataset that `benchmarks.full_size` wrote (run it before, so that the
pages are cached). Starts `main.py` with an empty compilation cache, then with the one
that this left, and waits for the first record: after ten updates on that dataset, and
after 20 of configs/base.py as it is. Prints all; writes start.json here.
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
    full_size = (f"--config.data.path={args.folder}", "--config.train.logging_steps=1")
    recipes = {"full size": full_size, "configs/base.py": ()}
    found = {recipe: {"empty cache": [], "compiled before": []} for recipe in recipes}
    for _ in range(args.rounds):
        for recipe, flags in recipes.items():
            with tempfile.TemporaryDirectory() as cache:
                for name, seconds in found[recipe].items():
                    seconds.append(first_record(flags, cache))
                    print(f"{recipe}, {name}: {seconds[-1]:.2f} s", flush=True)
    (HERE / "start.json").write_text(json.dumps(found, indent=2) + "\n")


def first_record(flags, cache):
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            *(sys.executable, "main.py", "--config=configs/base.py"),
            f"--workdir={workdir}",
            *flags,
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

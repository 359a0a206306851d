# SPDX-License-Identifier: Apache-2.0
"""A run killed by SIGKILL 50 times ends like one that nothing disturbed.

    python -m benchmarks.kills [--seed 0]
    python -m benchmarks.kills --sweep '{"seed": [0, 1]}'

Trains a small model on the simulated market twice. One of the runs is killed at random
moments and started again each time: while the market is written, anywhere in the start,
while XLA compiles, between updates, while a checkpoint is saved, and in the evaluation.
Weights, moments, `metrics.jsonl` (but for what a clock says) and the evaluation must be
the same bytes; of a sweep those of each member, and `population.json`. Prints a table;
writes kills.json here, of a sweep kills_sweep.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dt_jax.commands.members import MEMBERS
from dt_jax.reporting.population import POPULATION
from dt_jax.training.checkpoint import Checkpoints

HERE = Path(__file__).parent
TIMES = r', "(?:(?:steps|samples)_per_second|train_runtime)": [^,}]+'
CHANGES = {
    "data.validation_fraction": 0.1,
    "model.hidden_size": 16,
    "model.n_layer": 1,
    "train.max_steps": 400,
    "train.updates_per_call": 5,
    "train.logging_steps": 5,
    "train.save_steps": 10,
    "eval.episodes": 1,
}
AIMS = {"start": 8, "compilation": 7, "updates": 12, "saving": 12}
# After the updates: after which new file of a run to kill, within seconds.
MEMBERS_SAVED = {"checkpoints": 0.1}  # of a sweep, whose members save at its end
EVALUATED = {
    "report/held_out.json": 0.6,  # the episodes follow
    "report/evaluation.json": 1.0,  # the pictures follow
    "report/loss.svg": 0.5,
    "report/index.html": 0.1,
}
START = 4.0  # seconds that a start takes, about


class Kill(NamedTuple):
    """When to kill: `seconds` after the `count`-th event of the kind `aim`."""

    aim: str
    count: int
    seconds: float


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sweep", default="", help="config.sweep; empty: a run alone")
    args = parser.parse_args()
    changes = CHANGES | {"sweep": args.sweep}
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        finish(whole, changes)
        kills = []
        for kill in draw_kills(args.seed, of_sweep=bool(args.sweep)):
            kills.append(start_and_kill(killed, changes, kill))
            print(json.dumps(kills[-1]), flush=True)
        finish(killed, changes)
        different = differences(whole, killed)
    print(describe(kills, different))
    found = {"kills": kills, "different": different}
    path = HERE / ("kills_sweep.json" if args.sweep else "kills.json")
    path.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(bool(different))


def draw_kills(seed: int, of_sweep: bool = False) -> list[Kill]:
    """50 of them, of a sweep 52; the market is written first, the evaluation comes
    last."""
    generator = np.random.default_rng(seed)
    kills = [Kill("market", 1, generator.uniform(0.0, 0.03)) for _ in range(3)]
    for aim in generator.permutation(
        [a for a, count in AIMS.items() for _ in range(count)]
    ):
        longest = {"start": START, "compilation": 1.0, "saving": 0.05}.get(aim, 0.02)
        kills.append(
            Kill(
                str(aim), int(generator.integers(1, 9)), generator.uniform(0.0, longest)
            )
        )
    for file, longest in ((MEMBERS_SAVED if of_sweep else {}) | EVALUATED).items():
        kills += [Kill(file, 1, generator.uniform(0.0, longest)) for _ in range(2)]
    return kills


def start(workdir: Path, changes: dict) -> subprocess.Popen:
    """main.py, its words in a file beside the workdir."""
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(workdir.parent),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONUNBUFFERED": "1",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    flags = (f"--config.{key}={value}" for key, value in changes.items())
    command = ["main.py", "--config=configs/base.py", f"--workdir={workdir}", *flags]
    with words(workdir).open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=HERE.parent,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def words(workdir) -> Path:
    return workdir.with_suffix(".log")


def finish(workdir: Path, changes: dict) -> None:
    process = start(workdir, changes)
    if process.wait():
        raise RuntimeError(f"status {process.returncode}: {words(workdir).read_text()}")


def start_and_kill(workdir: Path, changes: dict, kill: Kill) -> dict:
    """What the kill hit, and from where the run had gone on.

    Raises:
      RuntimeError: the run came to an end before.
    """
    if kill.aim == "compilation":  # else it would be read from the folder
        for file in (workdir.parent / "dt_jax").glob("*-*"):
            file.unlink()
    began = time.time_ns()
    process = start(workdir, changes)
    market = workdir / ".simulated_market.partial"

    def wait_until(happened):
        while not happened() and process.poll() is None:
            time.sleep(0.001)

    def is_new(path):
        return path.exists() and path.stat().st_mtime_ns > began

    def new(name):
        """The first new file of this name in a run."""
        return next(filter(is_new, (run / name for run in runs_of(workdir))), None)

    def records():
        path = new("metrics.jsonl")
        return path.read_text() if path else ""

    def num_records():
        return records().count("\n")

    def saving():
        return any((workdir / "checkpoints").glob("*tmp*"))

    if kill.aim == "market":
        made = workdir / "simulated_market"
        wait_until(lambda: is_new(market) or made.exists())
    elif kill.aim == "compilation":
        wait_until(lambda: "compiling" in words(workdir).read_text())
    elif kill.aim in ("updates", "saving"):
        wait_until(lambda: new("metrics.jsonl"))
        first = num_records()
        wait_until(lambda: num_records() >= first + kill.count)
        if kill.aim == "saving":
            wait_until(saving)
    elif kill.aim != "start":
        wait_until(lambda: new(kill.aim))
    time.sleep(kill.seconds)
    process.kill()
    if process.wait() != -9:
        raise RuntimeError(f"status {process.returncode}: {words(workdir).read_text()}")

    text = words(workdir).read_text()
    going_on = re.search("going on from update ([0-9,]+)", text)
    came_from = int(going_on[1].replace(",", "")) if going_on else 0
    trained = records().rpartition('"step": ')[2]
    reached = int(trained.split(",")[0]) if trained else 0
    last = Path("checkpoints", str(changes["train.max_steps"]))
    saved = [(run / last).is_dir() for run in {workdir, *runs_of(workdir)}]
    if all(saved):
        hit = "evaluation"
    elif any(saved) or (saving() and reached > came_from):
        hit = "saving"
    elif reached > came_from:
        hit = "updates"
    elif "compiling" in text:
        hit = "compilation"
    elif is_new(market):
        hit = "market"
    else:
        hit = "start"
    return {"aim": kill.aim, "hit": hit, "from_update": came_from, "reached": reached}


def runs_of(workdir: Path) -> list[Path]:
    """The workdirs of the members of a sweep, or its own."""
    return sorted((workdir / MEMBERS).glob("*")) or [workdir]


def differences(workdir: Path, other: Path) -> list[str]:
    """What is not the same bytes in two runs or sweeps, or should have gone."""
    runs = [path.relative_to(workdir) for path in runs_of(workdir)]
    different = []
    for run in dict.fromkeys((Path(), *runs)):
        arrays, moments = arrays_of(workdir / run), arrays_of(other / run)
        names = [x for x in arrays | moments if arrays.get(x) != moments.get(x)]
        different += [str(run / name) for name in names]
    read = {
        "metrics.jsonl": without_times,
        "report/evaluation.json": Path.read_bytes,
        "report/held_out.json": Path.read_bytes,
    }
    files = {run / name: read[name] for run in runs for name in read}
    if Path() not in runs:
        files[Path(POPULATION)] = Path.read_bytes
    different += [
        str(file)
        for file, of in files.items()
        if of(workdir / file) != of(other / file)
    ]
    scratch = [*other.rglob("*.partial"), *other.rglob("*tmp*"), *other.rglob(".lock")]
    return different + [str(path.relative_to(other)) for path in scratch]


def arrays_of(workdir: Path) -> dict[str, bytes]:
    """The step of the newest good checkpoint, and each of its arrays."""
    with closing(Checkpoints(workdir / "checkpoints", None)) as checkpoints:
        checkpoint = checkpoints.restore()
    arrays = {name: array.tobytes() for name, array in checkpoint.arrays.items()}
    return arrays | {"step": checkpoint.step}


def without_times(path: Path) -> str:
    """The text of a metrics.jsonl but for what a clock gives."""
    return re.sub(TIMES, "", path.read_text())


def describe(kills, different) -> str:
    hits = Counter(kill["hit"] for kill in kills)
    starts = Counter(kill["from_update"] for kill in kills)
    lines = [f"{'killed in':16}{'times':>6}"]
    lines += [f"{hit:16}{count:6}" for hit, count in hits.most_common()]
    lines += ["", f"{len(kills)} kills, started from {len(starts)} different updates"]
    return "\n".join([*lines, f"different: {', '.join(different) or 'nothing'}"])


if __name__ == "__main__":
    main()

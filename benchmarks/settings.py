# SPDX-License-Identifier: Apache-2.0
"""What changes of configs/base.py give in speed, and cost in loss.

    python -m benchmarks.settings [--rounds 5] [--seeds 3] [--updates 500]

Updates a second at 3941/394, from the dataset on disk, each setting in a process of its
own and in turn; final losses (the mean of the last 50 of 500 updates) on a simulated
market, by seed. All settings but the first have the store on the device, as a GPU has
it anyhow; the last is configs/fast.py, whose table this is. Prints it; writes
settings.json here.
"""

import argparse
import json
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from benchmarks.hf_training import LAST, save_dataset, train_ours
from benchmarks.updates import start, write_dataset
from configs import fast
from dt_jax.config import default_config, flatten

HERE = Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=500)
    args = parser.parse_args()
    settings = {"configs/base.py": {}} | on_the_device()
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(Path(folder), settings, args.rounds)
        losses = train(Path(folder), settings, args.seeds, args.updates)
    print(f"{'setting':32s}{'updates/s':>10s}{'final loss, by seed':>28s}")
    table = {}
    for name in settings:
        table[name] = {"updates a second": rates[name], "final losses": losses[name]}
        loss = f"{np.mean(losses[name]):.5f} [{min(losses[name]):.5f}, "
        print(f"{name:32s}{np.median(rates[name]):10.2f}", end="")
        print(f"{loss}{max(losses[name]):.5f}]".rjust(28))
    (HERE / "settings.json").write_text(json.dumps(table, indent=2) + "\n")


def on_the_device():
    """{name: changes}: none of fast.py's, each alone, all of them."""
    before = flatten(default_config().to_dict())
    after = flatten(fast.get_config().to_dict())
    changes = {key: value for key, value in after.items() if before[key] != value}
    alone = {f"{key}={value}": {key: value} for key, value in changes.items()}
    device = {"data.placement": "device"}
    settings = {"data.placement=device": {}} | alone | {"configs/fast.py": changes}
    return {name: device | changes for name, changes in settings.items()}


def measure(folder, settings, rounds):
    """{setting: updates a second of each round}."""
    path, rates = write_dataset(folder / "data", "3941/394"), {s: [] for s in settings}
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(closing(start("dt-jax", path, changes=changes)))
            for name, changes in settings.items()
        }
        for process in processes.values():
            next(process)
        for _ in range(rounds):
            for name, process in processes.items():
                rates[name].append(next(process)[0])
                time.sleep(6.0)  # until the call in flight is over
    return rates


def train(folder, settings, seeds, updates):
    """{setting: the final loss of each seed}."""
    save_dataset(folder / "market")
    losses = {}
    for number, (name, changes) in enumerate(settings.items()):
        flags = [f"--config.{key}={value}" for key, value in changes.items()]
        runs = [
            train_ours(
                folder / "market", folder / f"{number}_{seed}", seed, updates, *flags
            )
            for seed in range(seeds)
        ]
        losses[name] = [float(np.mean(run[-LAST:])) for run in runs]
    return losses


if __name__ == "__main__":
    main()

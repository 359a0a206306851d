# SPDX-License-Identifier: Apache-2.0
"""Member-updates a second of many runs in one program, beside one run after another.

    python -m benchmarks.population [--members 2 4 8 16 32] [--dims 3941/394 11/3]
    python -m benchmarks.population --updates-per-call 40  # on a GPU

Members of `config.sweep` that differ in their seed, each with the default recipe, and a
single run take turns, so that a machine whose speed drifts treats them alike; the feed
is included, compilation is not. As many single runs one after another make as many
updates a second as one. Prints medians and ratios; writes population.json here.
"""

import argparse
import json
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

import jax
import numpy as np

from benchmarks.updates import SHAPES, start, write_dataset

HERE = Path(__file__).parent
MEMBERS = (2, 4, 8, 16, 32)
PER_CALL = 2  # updates: of 32 members they take a CPU half a minute


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--members", type=int, nargs="+", default=MEMBERS)
    parser.add_argument("--dims", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--updates-per-call", type=int, default=PER_CALL)
    args = parser.parse_args()
    path = HERE / "population.json"
    table = json.loads(path.read_text()) if path.is_file() else {}
    device = jax.devices()[0].device_kind
    for dims in args.dims:
        with tempfile.TemporaryDirectory() as folder:
            data = write_dataset(Path(folder) / "data", dims)
            for count in args.members:
                one, many = measure(data, count, args.rounds, args.updates_per_call)
                found = {
                    "member-updates a second": many,
                    "one run after another": one,
                    "ratio": many / one,
                }
                table.setdefault(device, {}).setdefault(dims, {})[str(count)] = found
                print(
                    f"{dims}, {count} members: {many:.2f} member-updates a second, "
                    f"{one:.2f} one run after another: {many / one:.2f} times",
                    flush=True,
                )
                path.write_text(json.dumps(table, indent=2) + "\n")


def measure(data, count, rounds, updates_per_call):
    """Updates a second, of one run and of all members together: medians."""
    seeds = json.dumps({"seed": list(range(count))})
    ways = {1: {}, count: {"sweep": seeds}}
    for changes in ways.values():
        changes["train.updates_per_call"] = updates_per_call
    rates = {number: [] for number in ways}
    with ExitStack() as stack:
        processes = {
            number: stack.enter_context(closing(start("dt-jax", data, "", changes)))
            for number, changes in ways.items()
        }
        for process in processes.values():
            next(process)
        for _ in range(rounds):
            for number, process in processes.items():
                rate, _ = next(process)
                rates[number].append(number * rate)
                # Until its call in flight is over.
                time.sleep(2 + 2 * updates_per_call / rate)
    return (float(np.median(rates[number])) for number in ways)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Updates a second, from the dataset on disk to the weights, beside Hugging Face's.

    pip install torch==2.13.0 transformers accelerate omegaconf pydantic
    git clone https://github.com/nissymori/JAX-CORL runs/JAX-CORL
    git -C runs/JAX-CORL checkout d747dd8  # its API has changed twice
    python -m benchmarks.updates [--rounds 5] [--dims 3941/394 291/29 11/3]

Four ways to train the notebook's model on one dataset in its layout, all at batch 64,
context 20, dropout 0.1: the notebook as written (its collator; `datasets` decodes each
row to lists, once for the loader and once for the collator), the same collator over
NumPy arrays held in memory (stronger than any user has), JAX-CORL's own update on
batches that lie ready on the device, and ours as `main.py` runs it (memory map, feed,
train call). HF's updates are a plain loop, without what `Trainer` adds. Each way has a
process of its own, started as its users start it, and they take turns, so that a
machine whose speed drifts treats them alike; compilation and the first updates do not
count. Prints medians, ratios and the share of the time for which ours waited for its
input; writes updates.json here.
"""

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from functools import partial
from itertools import count, cycle
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

from dt_jax.system.process import HUGE_PAGES

HERE = Path(__file__).parent
SHAPES = {  # state_dim/act_dim: trajectories, steps of each
    "3941/394": (300, 100),
    "291/29": (1000, 100),
    "11/3": (500, 1000),
}
SECONDS = 3.0  # that each way trains in a round, at least
BATCH_SIZE, CONTEXT_LENGTH, MAX_EP_LEN, RETURN_SCALE = 64, 20, 985, 1000.0
WAYS = ("notebook", "NumPy collator", "JAX-CORL", "dt-jax")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dims", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--jax-corl", type=Path, default=Path("runs/JAX-CORL"))
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--changes", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.data, args.jax_corl, args.changes)
        return
    table = {}
    for dims in args.dims:
        with tempfile.TemporaryDirectory() as folder:
            path = write_dataset(Path(folder) / "data", dims)
            rates, waited = measure(path, args.rounds, args.jax_corl)
        table[dims] = {"updates a second": rates, "share waiting for input": waited}
        ours = np.median(rates["dt-jax"])
        print(f"{dims}: input wait {waited:.2%}")
        for way in WAYS:
            median, low, high = (f(rates[way]) for f in (np.median, min, max))
            print(
                f"  {way:16s}{median:8.2f} [{low:.2f}, {high:.2f}]".ljust(44)
                + f"dt-jax: {ours / median:6.2f} times",
                flush=True,
            )
    (HERE / "updates.json").write_text(json.dumps(table, indent=2) + "\n")


def write_dataset(path, dims):
    from dt_jax.data.writer import save_trajectories

    state_dim, act_dim = map(int, dims.split("/"))
    trajectories, steps = SHAPES[dims]
    rng = np.random.default_rng(0)
    save_trajectories(
        path,
        (
            {
                "observations": rng.standard_normal((steps, state_dim), np.float32),
                "actions": rng.random((steps, act_dim), np.float32) * 2 - 1,
                "rewards": rng.random(steps, np.float32),
                "dones": np.arange(steps) == steps - 1,
            }
            for _ in range(trajectories)
        ),
    )
    return path


def measure(path, rounds, jax_corl):
    """{way: updates a second of each round}, and the share of the time ours waited."""
    rates, waited = {way: [] for way in WAYS}, []
    with ExitStack() as stack:
        processes = {
            way: stack.enter_context(closing(start(way, path, jax_corl)))
            for way in WAYS
        }
        for process in processes.values():
            next(process)
        for _ in range(rounds):
            for way, process in processes.items():
                rate, waiting = next(process)
                rates[way].append(rate)
                if way == "dt-jax":
                    waited.append(waiting)
                    time.sleep(2.0)  # until the call in flight is over
    return rates, float(np.mean(waited))


def start(way, path, jax_corl="", changes=None):
    """Yields when the process is ready, then what each round gave that is asked for.

    `changes`: {config key: value} of ours, else as configs/base.py has them.
    """
    command = [sys.executable, "-m", "benchmarks.updates", "--serve", way]
    options = ["--jax-corl", jax_corl, "--changes", json.dumps(changes or {})]
    process = subprocess.Popen(
        [*command, "--data", path, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(HUGE_PAGES if way == "dt-jax" else {})},
    )
    try:
        while line := process.stdout.readline():
            yield json.loads(line)
            process.stdin.write("\n")
            process.stdin.flush()
        raise RuntimeError(f"{way} ended early")
    finally:
        process.kill()
        process.wait()


def serve(way, path, jax_corl, changes):
    """Train for a round whenever a line comes in; prints [updates a second, waited]."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a way prints is no answer
    waits = []
    updates = {
        "notebook": partial(hf_updates, path, loader=True),
        "NumPy collator": partial(hf_updates, path, loader=False),
        "JAX-CORL": partial(jax_corl_updates, path, jax_corl / "algos" / "dt.py"),
        "dt-jax": partial(our_updates, path, waits, changes),
    }[way]()
    next(updates)
    next(updates)
    print("null", file=answers, flush=True)
    for _ in sys.stdin:
        next(updates)  # ours has had a call in flight since its last round
        waits.clear()
        made, start = 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            made += next(updates)
        took = time.perf_counter() - start
        rate = json.dumps([made / took, sum(waits) / took])
        print(rate, file=answers, flush=True)


def our_updates(path, waits, changes):
    """Train as train.py does; yields how many updates each call has finished.

    `waits` collects the seconds between asking for a call's input and having it.
    """
    import jax

    from dt_jax.commands.setup import Setup
    from dt_jax.commands.sweep import Sweep
    from dt_jax.config import default_config

    config = default_config()
    config.data.path, config.train.max_steps = str(path), 100_000
    config.update_from_flattened_dict(changes)
    setup = Setup(config, Path(path))
    if config.sweep:
        setup = Sweep(setup, setup.members)
    placement = setup.placement().name
    feed = setup.feed(placement)
    call = setup.train_call(feed)
    state, running = setup.place(setup.first_state()), None
    with closing(feed.items(setup.intervals(placement).calls(0))) as items:
        while True:
            asked = time.perf_counter()
            item = next(items)
            waits.append(time.perf_counter() - asked)
            state, metrics = call(state, feed.store, item)
            if running is not None:
                yield len(jax.device_get(running).loss)
            running = metrics


def hf_updates(path, *, loader):
    """HF's model and what its Trainer does in a step; yields 1 for each update.

    `loader`: rows as `datasets` decodes them, fetched once more for the DataLoader,
    which hands them to the collator, which drops them; else NumPy arrays in memory.
    """
    import datasets
    import torch
    from transformers import (
        DecisionTransformerConfig,
        DecisionTransformerModel,
        get_linear_schedule_with_warmup,
    )

    dataset = datasets.load_from_disk(str(path))
    arrays = [
        {key: np.asarray(value) for key, value in row.items()}
        for row in dataset.with_format("numpy")["train"]
    ]
    states = np.concatenate([row["observations"] for row in arrays])
    mean, std = states.mean(0), states.std(0) + 1e-6
    episodes = dataset["train"] if loader else arrays
    model = DecisionTransformerModel(
        DecisionTransformerConfig(
            state_dim=len(mean), act_dim=arrays[0]["actions"].shape[1]
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    schedule = get_linear_schedule_with_warmup(optimizer, 10_000, 100_000)
    random.seed(0)
    for step in count():
        if loader:
            for number in range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE):
                episodes[number % len(episodes)]
        batch = collate(episodes, mean, std)
        predicted = model(**batch).action_preds
        valid = batch["attention_mask"] > 0
        loss = ((predicted - batch["actions"])[valid] ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.item()
        yield 1


def jax_corl_updates(path, source):
    """`DT.update` of JAX-CORL's file, compiled as it does, on eight batches; yields 1
    for each."""
    import jax

    for name in ("d4rl", "gym", "wandb"):  # imported there, not used by an update
        sys.modules.setdefault(name, MagicMock())
    sys.argv = sys.argv[:1]  # it reads its config from there
    spec = importlib.util.spec_from_file_location("jax_corl_dt", source)
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    sampler = sampler_of(path)
    trajectories = sampler.trajectories
    batches = []
    for batch in map(sampler.batch, range(8)):
        states = (batch.states - trajectories.state_mean) / trajectories.state_std
        columns = batch.timesteps, states, batch.actions, batch.returns_to_go
        batches.append(jax.device_put(peer.Trajectory(*columns, batch.attention_mask)))
    key = jax.random.key(0)
    state = peer.create_dt_train_state(
        key, trajectories.state_dim, trajectories.act_dim, peer.DTConfig()
    )
    update = jax.jit(peer.DT.update)
    for step, batch in enumerate(cycle(batches)):
        state, loss = update(state, batch, jax.random.fold_in(key, step))
        loss.block_until_ready()
        yield 1


def sampler_of(path):
    from dt_jax.data.readers import load_trajectories
    from dt_jax.data.segments import SegmentSampler

    return SegmentSampler(
        load_trajectories(path),
        batch_size=BATCH_SIZE,
        context_length=CONTEXT_LENGTH,
        max_ep_len=MAX_EP_LEN,
        return_scale=RETURN_SCALE,
        weighting="length",
        seed=0,
    )


def collate(episodes, mean, std):
    """The notebook's collator in our words: a Python loop over rows, in float64."""
    import torch

    columns = {key: [] for key in ("s", "a", "r", "g", "t", "m")}
    for _ in range(BATCH_SIZE):
        row = episodes[random.randrange(len(episodes))]
        start = random.randrange(len(row["rewards"]))
        stop = start + CONTEXT_LENGTH
        states = np.array(row["observations"][start:stop], np.float64)
        actions = np.array(row["actions"][start:stop], np.float64)
        rewards = np.array(row["rewards"][start:], np.float64)
        to_go = np.cumsum(rewards[::-1])[::-1][: len(states), None] / RETURN_SCALE
        padding = ((CONTEXT_LENGTH - len(states), 0), (0, 0))
        times = np.minimum(np.arange(start, start + len(states)), MAX_EP_LEN - 1)
        columns["s"].append((np.pad(states, padding) - mean) / std)
        columns["a"].append(np.pad(actions, padding, constant_values=-10.0))
        columns["r"].append(np.pad(rewards[: len(states), None], padding))
        columns["g"].append(np.pad(to_go, padding))
        columns["t"].append(np.pad(times, padding[0]))
        columns["m"].append(np.pad(np.ones(len(states)), padding[0]))
    tensors = {key: torch.from_numpy(np.stack(c)) for key, c in columns.items()}
    return {
        "states": tensors["s"].float(),
        "actions": tensors["a"].float(),
        "rewards": tensors["r"].float(),
        "returns_to_go": tensors["g"].float(),
        "timesteps": tensors["t"].long(),
        "attention_mask": tensors["m"].float(),
    }


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Updates a second, from the dataset on disk to the weights, beside Hugging Face's.

    pip install torch==2.13.0 transformers accelerate
    python -m benchmarks.updates [--rounds 5] [--dims 3941/394 291/29 11/3]

Three ways to train the notebook's model on one dataset in its layout, all at batch 64,
context 20, dropout 0.1: the notebook as written (its collator; `datasets` decodes each
row to lists, once for the loader and once for the collator), the same collator over
NumPy arrays held in memory (stronger than any user has), and ours as `main.py` runs it
(memory map, feed, train call). HF's updates are a plain loop, without what `Trainer`
adds. The ways take turns, so that a machine whose speed drifts treats them alike;
compilation and the first updates do not count. Prints medians and ratios; writes
updates.json here.
"""

import argparse
import json
import random
import tempfile
import time
from contextlib import closing
from itertools import count
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SHAPES = {  # state_dim/act_dim: trajectories, steps of each
    "3941/394": (300, 100),
    "291/29": (1000, 100),
    "11/3": (500, 1000),
}
SECONDS = 4.0  # that each way trains in a round, at least
BATCH_SIZE, CONTEXT_LENGTH, MAX_EP_LEN, RETURN_SCALE = 64, 20, 985, 1000.0
WAYS = ("notebook", "NumPy collator", "dt-jax")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dims", nargs="+", default=list(SHAPES), choices=SHAPES)
    args = parser.parse_args()
    table = {}
    print(f"{'dims':10s}" + "".join(f"{way:>26s}" for way in WAYS) + f"{'ratios':>16s}")
    for dims in args.dims:
        with tempfile.TemporaryDirectory() as folder:
            path = write_dataset(Path(folder) / "data", dims)
            rates = measure(path, args.rounds)
        table[dims] = rates
        medians = [float(np.median(rates[way])) for way in WAYS]
        cells = "".join(
            f"{median:10.2f} [{min(rates[way]):.2f}, {max(rates[way]):.2f}]".rjust(26)
            for median, way in zip(medians, WAYS, strict=True)
        )
        ratios = " ".join(f"{medians[-1] / median:.2f}x" for median in medians[:-1])
        print(f"{dims:10s}{cells}{ratios:>16s}", flush=True)
    (HERE / "updates.json").write_text(json.dumps(table, indent=2) + "\n")


def write_dataset(path, dims):
    from dt_jax.readers import save_trajectories

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


def measure(path, rounds):
    """{way: updates a second of each round}; each way keeps its model and its data."""
    import datasets

    dataset = datasets.load_from_disk(str(path))
    episodes = dataset["train"]
    arrays = [
        {key: np.asarray(value) for key, value in row.items()}
        for row in dataset.with_format("numpy")["train"]
    ]
    if "state_mean" in dataset.column_names:
        width = arrays[0]["observations"].shape[1]
        mean, std = (np.array(dataset[n][:width]) for n in ("state_mean", "state_std"))
    else:
        states = np.concatenate([a["observations"] for a in arrays])
        mean, std = states.mean(0), states.std(0) + 1e-6
    ways = {
        "notebook": hf_updates(episodes, mean, std, loader=True),
        "NumPy collator": hf_updates(arrays, mean, std, loader=False),
        "dt-jax": our_updates(path),
    }
    for updates in ways.values():
        next(updates)
        next(updates)
    rates = {way: [] for way in ways}
    for _ in range(rounds):
        for way, updates in ways.items():
            made, start = 0, time.perf_counter()
            while time.perf_counter() - start < SECONDS:
                made += next(updates)
            rates[way].append(made / (time.perf_counter() - start))
    for updates in ways.values():
        updates.close()
    return rates


def our_updates(path):
    """Train as train.py does; yields how many updates each call has finished."""
    import jax

    from configs.base import get_config
    from dt_jax.feed import Feed
    from dt_jax.train import _Run
    from dt_jax.train_step import make_train_call, replicate

    config = get_config()
    config.data.path, config.train.max_steps = str(path), 100_000
    run = _Run(config, path)
    feed = Feed(run.sampler, "host")
    call = make_train_call(
        run.model,
        run.optimizer,
        state_mean=run.trajectories.state_mean,
        state_std=run.trajectories.state_std,
        seed=0,
        fetch=feed.fetch,
    )
    state, running = replicate(jax.jit(run.first_state)(None)), None
    with closing(feed.items(run.calls(0))) as items:
        for item in items:
            state, metrics = call(state, feed.store, item)
            if running is not None:
                yield len(jax.device_get(running).loss)
            running = metrics


def hf_updates(episodes, mean, std, *, loader):
    """HF's model and what its Trainer does in a step; yields 1 for each update.

    `loader`: also fetch the rows that the DataLoader hands to the collator, which drops
    them.
    """
    import torch
    from transformers import (
        DecisionTransformerConfig,
        DecisionTransformerModel,
        get_linear_schedule_with_warmup,
    )

    first = episodes[0]
    model = DecisionTransformerModel(
        DecisionTransformerConfig(
            state_dim=len(first["observations"][0]), act_dim=len(first["actions"][0])
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

# SPDX-License-Identifier: Apache-2.0
"""How the cost of an update grows with what is asked of it.

    python -m benchmarks.growth

From the base recipe at 291/29 one quantity grows at a time: batch, context, hidden
size, state_dim, number of trajectories (beyond memory: a sparse file). Each point
trains as `main.py` does, feed and train call together, in a process of its own;
compilation does not count. Prints tables of updates, segments and GFLOP (of the matrix
products) a second; writes growth.json and growth.png here.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from dt_jax.system.process import HUGE_PAGES

HERE = Path(__file__).parent
BASE = {
    "batch_size": 64,
    "context_length": 20,
    "hidden_size": 128,
    "state_dim": 291,
    "trajectories": 1000,
}
GROWTH = {
    "batch_size": (16, 64, 256, 1024, 4096),
    "context_length": (10, 20, 50, 100, 200),
    "hidden_size": (64, 128, 256, 512, 1024),
    "state_dim": (11, 291, 1024, 3941, 16384),
    "trajectories": (100, 1000, 10_000, 100_000, 1_000_000),
}
NUM_STEPS, ACT_DIM = 200, 29
IN_MEMORY = 2 << 30  # bytes of states; above it a sparse file holds them
SECONDS = 4.0  # of training at each point


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(**json.loads(args.measure))))
        return
    table = {}
    for quantity, sizes in GROWTH.items():
        print(f"{quantity:16s}{'updates/s':>12s}{'segments/s':>12s}{'GFLOP/s':>10s}")
        table[quantity] = {}
        for size in sizes:
            point = json.dumps({**BASE, quantity: size})
            command = [sys.executable, "-m", "benchmarks.growth", "--measure", point]
            environment = {**os.environ, **HUGE_PAGES}  # as main.py has them
            found = json.loads(
                subprocess.run(
                    command, check=True, capture_output=True, env=environment
                ).stdout
            )
            table[quantity][size] = found
            print(
                f"{size:<16,}{found['updates']:12.3f}{found['segments']:12.1f}"
                f"{found['gflops']:10.1f}",
                flush=True,
            )
    (HERE / "growth.json").write_text(json.dumps(table, indent=2) + "\n")
    draw(table, HERE / "growth.png")


def measure(batch_size, context_length, hidden_size, state_dim, trajectories):
    """Updates and segments a second, and the GFLOP/s of the matrix products."""
    import jax

    from dt_jax.config import default_config
    from dt_jax.data.segments import SegmentSampler
    from dt_jax.model.decision_transformer import DecisionTransformer, init_params
    from dt_jax.training.feed import Feed
    from dt_jax.training.optimizer import make_optimizer
    from dt_jax.training.train_call import make_train_call, place
    from dt_jax.training.train_step import init_state

    config = default_config()
    sampler = SegmentSampler(
        simulate(trajectories, state_dim),
        batch_size=batch_size,
        context_length=context_length,
        max_ep_len=985,
        return_scale=1000.0,
        weighting="length",
        seed=0,
    )
    model = DecisionTransformer(
        state_dim=state_dim,
        act_dim=ACT_DIM,
        **{**config.model, "hidden_size": hidden_size},
    )
    optimizer = make_optimizer(total_steps=10**6, **config.optimizer)
    feed = Feed(sampler, "host", "float32")
    call = make_train_call(
        model,
        optimizer,
        state_mean=sampler.trajectories.state_mean,
        state_std=sampler.trajectories.state_std,
        seed=0,
        fetch=feed.fetch,
    )
    state = place(init_state(init_params(model, jax.random.key(0)), optimizer))
    flops = flops_of_update(model, batch_size, context_length)
    # As many updates in a call as fill about a second, ten at most.
    per_call = int(np.clip(2e11 // flops, 1, 10))
    calls = ((step, per_call) for step in range(0, 10**6, per_call))
    made, running = -2 * per_call, None
    with closing(feed.items(calls)) as items:
        for item in items:
            state, metrics = call(state, feed.store, item)
            if running is not None:
                jax.device_get(running)
                made += per_call
                if made <= 0:  # the first two calls compile and warm up
                    start = time.perf_counter()
                elif time.perf_counter() - start > SECONDS:
                    break
            running = metrics
        rate = made / (time.perf_counter() - start)
        jax.block_until_ready(state)
    return {
        "updates": rate,
        "segments": rate * batch_size,
        "gflops": rate * flops / 1e9,
    }


def simulate(count, state_dim):
    """Trajectories of noise; where they do not fit into memory, holes in a file."""
    from dt_jax.data.rows import Rows
    from dt_jax.data.trajectories import Trajectories

    rng = np.random.default_rng(0)
    lengths = np.full(min(count, 1000), NUM_STEPS)
    rows = len(lengths) * NUM_STEPS
    small = Trajectories.from_arrays(
        [rng.standard_normal((rows, state_dim), np.float32)],
        [rng.random((rows, ACT_DIM), np.float32)],
        rng.standard_normal(rows, np.float32),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
    )
    if count == len(lengths):
        return small
    # The checks of `from_arrays` would read every hole: the pieces are put in after it.
    num_rows = count * NUM_STEPS

    def noise(width):
        if 4 * num_rows * width > IN_MEMORY:
            file = tempfile.TemporaryFile()  # noqa: SIM115
            file.truncate(4 * num_rows * width)
            return np.memmap(file, np.float32, "r", shape=(num_rows, width))
        return rng.standard_normal((num_rows, width), np.float32)

    lengths = np.full(count, NUM_STEPS)
    return dataclasses.replace(
        small,
        states=Rows([noise(state_dim)]),
        actions=Rows([noise(ACT_DIM)]),
        rewards=np.zeros(num_rows, np.float32),
        returns_to_go=np.zeros(num_rows),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
    )


def flops_of_update(model, batch_size, context_length):
    """Of the matrix products of one update: forward, and twice that backward.

    Counted as the model computes them: the last block's queries, projection and MLP at
    the state tokens alone; the inputs of the embeddings need no gradient.
    """
    D, T = model.hidden_size, 3 * context_length
    embed = context_length * D * (model.state_dim + model.act_dim + 1)
    head = context_length * D * model.act_dim

    def block(read):
        # c_attn (all of it at every token), scores and mixing, c_proj, MLP.
        return T * 3 * D * D + 2 * read * T * D + read * (D * D + 2 * D * 4 * D)

    blocks = (model.n_layer - 1) * block(T) + block(context_length)
    return 2 * batch_size * (2 * embed + 3 * (head + blocks))


def draw(table, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), layout="constrained")
    axes = figure.subplots(2, 3, sharey=True).ravel()
    for quantity, ax in zip(table, axes, strict=False):
        sizes = [int(size) for size in table[quantity]]
        points = list(table[quantity].values())
        ax.semilogx(sizes, [point["gflops"] for point in points], marker="o")
        ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
        ax.minorticks_off()
        ax.set_xlabel(quantity)
        ax.grid(alpha=0.3)
        ax.margins(x=0.1)
        for size, point in zip(sizes, points, strict=True):
            ax.annotate(
                f"{point['updates']:.3g}",
                (size, point["gflops"]),
                (0, 6),
                textcoords="offset points",
                ha="center",
            )
    # One scale for all, from 0, with room for what is written above the points.
    axes[0].set_ylim(0, 1.15 * axes[0].get_ylim()[1])
    figure.supylabel("GFLOP of matrix products a second; at the points, updates")
    axes[-1].axis("off")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

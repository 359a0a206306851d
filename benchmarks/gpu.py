# SPDX-License-Identifier: Apache-2.0
"""The notebook's updates on a GPU, beside Hugging Face's model in torch.

    pip install "jax[cuda13]" torch transformers
    python -m benchmarks.gpu --peak-tflops 67 --bandwidth-gb 4800

One run, in turn, at the notebook's dims: ours with the store on the device (float32,
and bfloat16 for states and layers), ours with NumPy batches from the host, and
`DecisionTransformerModel` with AdamW and clipping, eager and compiled, its data already
on the device and gathered there: its best case. Beside each rate stand the two floors,
FLOPs over the peak and bytes over the bandwidth that were given. Last a large model
(hidden 1024, 12 layers, context 64, bfloat16) and its share of `--peak-bf16-tflops`.
Prints a table; writes gpu.json here. On a CPU it runs too, with smaller numbers:
--trajectories 60 --updates 40 --small.
"""

import argparse
import json
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks.growth import flops_of_update

HERE = Path(__file__).parent
STATE_DIM, ACT_DIM, NUM_STEPS = 3941, 394, 100
BATCH_SIZE, CONTEXT_LENGTH = 64, 20
PER_CALL = 40


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=4999)
    parser.add_argument("--updates", type=int, default=9480)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, default=float("nan"))
    parser.add_argument("--peak-bf16-tflops", type=float, default=float("nan"))
    parser.add_argument("--bandwidth-gb", type=float, default=float("nan"))
    parser.add_argument("--small", action="store_true", help="leave out the large one")
    args = parser.parse_args()
    trajectories = simulate(args.trajectories)
    # The same number of updates in all for each of the first two floors.
    per_round = max(PER_CALL, args.updates // args.rounds)
    few = max(PER_CALL, per_round // 10)
    ways = {
        "dt-jax, store on the device": (ours(trajectories, "device"), per_round),
        "dt-jax, bfloat16": (
            ours(trajectories, "device", "bfloat16", {"dtype": "bfloat16"}),
            per_round,
        ),
        "dt-jax, NumPy batches": (ours(trajectories, "host"), few),
        "torch, eager": (torch_updates(trajectories, False), few),
        "torch, compiled": (torch_updates(trajectories, True), few),
    }
    rates = {name: [] for name in ways}
    for updates, _ in ways.values():
        for _ in range(3):
            next(updates)
    for _ in range(args.rounds):
        for name, (updates, count) in ways.items():
            next(updates)  # ours has had a call in flight since its last round
            made, start = 0, time.perf_counter()
            while made < count:
                made += next(updates)
            rates[name].append(made / (time.perf_counter() - start))
    for updates, _ in ways.values():
        updates.close()
    from dt_jax.model.decision_transformer import DecisionTransformer

    model = DecisionTransformer(state_dim=STATE_DIM, act_dim=ACT_DIM)
    flops = flops_of_update(model, BATCH_SIZE, CONTEXT_LENGTH)
    read = 4 * BATCH_SIZE * CONTEXT_LENGTH * (STATE_DIM + ACT_DIM)
    floors = {
        "FLOPs": args.peak_tflops * 1e12 / flops,
        "bytes": args.bandwidth_gb * 1e9 / read,
    }
    eager = np.median(rates["torch, eager"])
    print(f"{'way':32s}{'updates/s':>12s}{'x eager':>10s}{'9,480 take':>12s}")
    for name, values in rates.items():
        rate = np.median(values)
        print(f"{name:32s}{rate:12.1f}{rate / eager:10.2f}{9480 / rate:10.1f} s")
    for name, rate in floors.items():
        print(f"floor by {name:23s}{rate:12.1f}")
    table = {"updates a second": rates, "floors": floors}
    if not args.small:
        utilisation = large_model(trajectories) / (args.peak_bf16_tflops * 1e12)
        print(f"large model: {utilisation:.1%} of the peak")
        table["large model, share of the peak"] = utilisation
    (HERE / "gpu.json").write_text(json.dumps(table, indent=2) + "\n")


def simulate(count):
    from dt_jax.data.trajectories import Trajectories

    rng = np.random.default_rng(0)
    lengths = np.full(count, NUM_STEPS)
    rows = count * NUM_STEPS
    return Trajectories.from_arrays(
        [rng.random((rows, STATE_DIM), np.float32)],
        [2 * rng.random((rows, ACT_DIM), np.float32) - 1],
        rng.random(rows, np.float32),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
    )


def ours(
    trajectories,
    placement,
    store_dtype="float32",
    fields=None,
    context_length=CONTEXT_LENGTH,
    per_call=PER_CALL,
):
    """Train as train.py does; yields how many updates each call has finished."""
    import jax

    from dt_jax.config import default_config
    from dt_jax.data.segments import SegmentSampler
    from dt_jax.model.decision_transformer import DecisionTransformer, init_params
    from dt_jax.training.feed import Feed
    from dt_jax.training.optimizer import make_optimizer
    from dt_jax.training.train_step import init_state, make_train_call, replicate

    config = default_config()
    sampler = SegmentSampler(
        trajectories,
        batch_size=BATCH_SIZE,
        context_length=context_length,
        max_ep_len=985,
        return_scale=1000.0,
        weighting="length",
        seed=0,
    )
    fields = {**config.model, **(fields or {})}
    model = DecisionTransformer(state_dim=STATE_DIM, act_dim=ACT_DIM, **fields)
    optimizer = make_optimizer(total_steps=10**6, **config.optimizer)
    feed = Feed(sampler, placement, store_dtype)
    call = make_train_call(
        model,
        optimizer,
        state_mean=trajectories.state_mean,
        state_std=trajectories.state_std,
        seed=0,
        fetch=feed.fetch,
    )
    state, running = (
        replicate(init_state(init_params(model, jax.random.key(0)), optimizer)),
        None,
    )
    calls = ((step, per_call) for step in range(0, 10**6, per_call))
    with closing(feed.items(calls)) as items:
        for item in items:
            state, metrics = call(state, feed.store, item)
            if running is not None:
                yield len(jax.device_get(running).loss)
            running = metrics


def torch_updates(trajectories, compiled):
    """HF's model; data on the device, segments gathered there; yields 1 an update."""
    import torch
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    config = DecisionTransformerConfig(state_dim=STATE_DIM, act_dim=ACT_DIM)
    model = DecisionTransformerModel(config).to(device).train()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, weight_decay=1e-4, fused=device == "cuda"
    )
    mean = torch.tensor(trajectories.state_mean, device=device)
    std = torch.tensor(trajectories.state_std, device=device)
    states = torch.tensor(trajectories.states.pieces[0], device=device)
    actions = torch.tensor(trajectories.actions.pieces[0], device=device)
    to_go = trajectories.returns_to_go / 1000.0
    to_go = torch.tensor(to_go, dtype=torch.float32, device=device)
    steps = torch.arange(CONTEXT_LENGTH, device=device)
    episodes, latest = len(trajectories.lengths), NUM_STEPS - CONTEXT_LENGTH
    mask = torch.ones(BATCH_SIZE, CONTEXT_LENGTH, device=device)
    while True:
        start = torch.randint(latest + 1, (BATCH_SIZE, 1), device=device)
        episode = torch.randint(episodes, (BATCH_SIZE, 1), device=device)
        rows = episode * NUM_STEPS + start + steps
        target = actions[rows]
        predicted = forward(
            states=(states[rows] - mean) / std,
            actions=target,
            rewards=None,
            returns_to_go=to_go[rows][..., None],
            timesteps=start + steps,
            attention_mask=mask,
        ).action_preds
        loss = torch.nn.functional.mse_loss(predicted, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        yield 1


def large_model(trajectories):
    """FLOP/s of the matrix products of the large model."""
    from dt_jax.model.decision_transformer import DecisionTransformer

    fields = {"hidden_size": 1024, "n_layer": 12, "n_head": 16, "dtype": "bfloat16"}
    updates = ours(trajectories, "device", "bfloat16", fields, 64, 4)
    for _ in range(3):
        next(updates)
    made, start = 0, time.perf_counter()
    while made < 40:
        made += next(updates)
    rate = made / (time.perf_counter() - start)
    updates.close()
    model = DecisionTransformer(state_dim=STATE_DIM, act_dim=ACT_DIM, **fields)
    return rate * flops_of_update(model, BATCH_SIZE, 64)


if __name__ == "__main__":
    main()

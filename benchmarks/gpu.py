# SPDX-License-Identifier: Apache-2.0
"""All that a GPU can tell, in one run of at most 8 minutes.

    pip install "jax[cuda13]" torch transformers
    python -m benchmarks.gpu              # on a GPU
    python -m benchmarks.gpu --small      # anywhere, to see that it works: no figures

First the same command twice, each with an empty compilation cache, and once killed and
resumed: are weights and moments equal in every bit? Then rates at the notebook's dims,
each way in a process of its own: ours with the store on the device (float32, bfloat16,
and without `train.deterministic`), ours with batches from the host, and 8 and 32 seeds
in one program (updates of all of them together). A large model (hidden 1024, 12 layers,
16 heads, context 64, bfloat16) stands beside the peak that a product of 8192-cubed
bfloat16 matrices reaches. `DecisionTransformerModel` with AdamW and clipping has its
data on the device and gathers there, eager and in CUDA graphs
(`mode="reduce-overhead"`), float32 (with TF32, as XLA has it) and bfloat16. Then
`configs/notebook.py` on a dataset of the notebook's size, from prompt to prompt, with
an empty cache and with a full one. Last one run and 8 and 32 seeds at 291/29. gpu.json
here is written as it goes: what 8 minutes are too short for is not in it.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.full_size import ACT_DIM, NUM_STEPS, STATE_DIM, episodes
from benchmarks.growth import flops_of_update
from benchmarks.kills import arrays_of, without_times
from benchmarks.updates import our_updates, write_dataset
from dt_jax.data.writer import save_trajectories
from dt_jax.system.process import DETERMINISTIC

HERE = Path(__file__).parent
LIMIT = 8 * 60  # seconds
BATCH_SIZE, CONTEXT_LENGTH = 64, 20
DEVICE = {"data.placement": "device", "train.updates_per_call": 40}
BFLOAT16 = {**DEVICE, "data.store_dtype": "bfloat16", "model.dtype": "bfloat16"}
LARGE_MODEL = "large model"
MEMBERS = {f"dt-jax, {count} members": count for count in (8, 32)}
NARROW = "291/29"
WAYS = {  # what the config says besides
    "dt-jax, float32": DEVICE,
    "dt-jax, bfloat16": BFLOAT16,
    "dt-jax, not deterministic": {**DEVICE, "train.deterministic": False},
    "dt-jax, batches from the host": {"data.placement": "host"},
    **{
        way: {**DEVICE, "sweep": json.dumps({"seed": [*range(count)]})}
        for way, count in MEMBERS.items()
    },
    LARGE_MODEL: {
        **BFLOAT16,
        **{"model.hidden_size": 1024, "model.n_layer": 12, "model.n_head": 16},
        **{"data.context_length": 64, "train.updates_per_call": 4},
    },
}
TORCH = {  # compiled, bfloat16
    "torch, eager, float32": (False, False),
    "torch, eager, bfloat16": (False, True),
    "torch, CUDA graphs, float32": (True, False),
    "torch, CUDA graphs, bfloat16": (True, True),
}
SMALL = {
    **{"model.hidden_size": 16, "model.n_layer": 1},
    **{"train.batch_size": 8, "train.updates_per_call": 2},
}
PEAK = "peak of bfloat16 products"
RUNS = ("again", "killed and resumed")
CACHES = ("empty cache", "compiled before")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small models")
    parser.add_argument("--out", type=Path, default=HERE / "gpu.json")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure, args.small)))
        return
    signal.signal(signal.SIGALRM, _end)
    signal.alarm(LIMIT)
    try:
        measure_all(args.small, args.out)
    except TimeoutError:
        print(f"{LIMIT} s are over")


def _end(*_):
    raise TimeoutError


def measure_all(small, out):
    start, found = time.perf_counter(), {"small": small}

    def tell(key, value):
        found[key] = value
        print(f"{time.perf_counter() - start:5.0f} s  {key}: {value}", flush=True)
        out.write_text(json.dumps(found, indent=2) + "\n")

    one = next(iter(WAYS))
    ways = [one] if small else [*WAYS, PEAK, *TORCH]
    narrow_ways = [*MEMBERS][:1] if small else [one, *MEMBERS]
    changes = {**SMALL, "train.max_steps": 40} if small else {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        few, whole = folder / "few", folder / "whole"
        save_trajectories(few, episodes(20 if small else 1000))
        runs = RUNS[1:] if small else RUNS
        for key, value in bits({"data.path": few, **changes}, folder, runs).items():
            tell(key, value)
        for way in ways:
            tell(way, in_a_process(way, few, small))
        if not small:
            share = found[LARGE_MODEL] * flops_of_large_model() / found[PEAK]
            tell("large model, share of the peak", share)
            save_trajectories(whole, episodes(4999))
            changes = {"data.path": whole}
        else:
            changes = {"data.path": few, **changes}
        for name in CACHES[:1] if small else CACHES:
            tell(f"notebook, {name}", from_prompt_to_prompt(changes, folder, name))
        narrow = few if small else write_dataset(folder / "narrow", NARROW)
        for way in narrow_ways:
            tell(f"{way}, {NARROW}", in_a_process(way, narrow, small))


def in_a_process(way, data, small):
    """Updates a second of one way, the median of its rounds; FLOP/s of the peak."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--measure", way, str(data)]
    flags = os.environ.get("XLA_FLAGS", "")
    if WAYS.get(way, {}).get("train.deterministic", True):
        flags += f" --{DETERMINISTIC}=true"
    told = subprocess.run(
        command + ["--small"] * small,
        env={**os.environ, "XLA_FLAGS": flags.strip()},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return json.loads(told.splitlines()[-1])


def measure(way, data, small):
    if way == PEAK:
        return peak()
    if way in TORCH:
        updates = torch_updates(data, *TORCH[way])
    else:
        updates = our_updates(data, [], WAYS[way] | (SMALL if small else {}))
    rounds, seconds = (1, 0.5) if small else (3, 2.0)
    rates = []
    for _ in range(3):
        next(updates)
    for _ in range(rounds):
        made, start = 0, time.perf_counter()
        while (took := time.perf_counter() - start) < seconds:
            made += next(updates)
        rates.append(MEMBERS.get(way, 1) * made / took)
    updates.close()
    return median(rates)


def torch_updates(data, compiled, bfloat16):
    """HF's model; data on the device, segments gathered there; yields 1 an update."""
    import torch
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    from dt_jax.data.readers import load_trajectories

    trajectories = load_trajectories(data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32
    torch.manual_seed(0)
    config = DecisionTransformerConfig(state_dim=STATE_DIM, act_dim=ACT_DIM)
    model = DecisionTransformerModel(config).to(device).train()
    if compiled:
        how = {"mode": "reduce-overhead"} if device == "cuda" else {}
        forward = torch.compile(model, **how)
    else:
        forward = model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, weight_decay=1e-4, fused=device == "cuda"
    )
    mean = torch.tensor(trajectories.state_mean, device=device)
    std = torch.tensor(trajectories.state_std, device=device)
    states, actions = (
        torch.cat([torch.tensor(piece, device=device) for piece in rows.pieces])
        for rows in (trajectories.states, trajectories.actions)
    )
    to_go = trajectories.returns_to_go / 1000.0
    to_go = torch.tensor(to_go, dtype=torch.float32, device=device)
    steps = torch.arange(CONTEXT_LENGTH, device=device)
    count, latest = len(trajectories.lengths), NUM_STEPS - CONTEXT_LENGTH
    mask = torch.ones(BATCH_SIZE, CONTEXT_LENGTH, device=device)
    while True:
        start = torch.randint(latest + 1, (BATCH_SIZE, 1), device=device)
        episode = torch.randint(count, (BATCH_SIZE, 1), device=device)
        rows = episode * NUM_STEPS + start + steps
        target = actions[rows]
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            predicted = forward(
                states=(states[rows] - mean) / std,
                actions=target,
                rewards=None,
                returns_to_go=to_go[rows][..., None],
                timesteps=start + steps,
                attention_mask=mask,
            ).action_preds
        loss = torch.nn.functional.mse_loss(predicted.float(), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        yield 1


def peak():
    """FLOP/s of a product of bfloat16 matrices of 8192 x 8192."""
    import jax
    import jax.numpy as jnp

    square = jax.random.normal(jax.random.key(0), (8192, 8192), jnp.bfloat16)
    times = jax.jit(lambda x: jax.lax.fori_loop(0, 50, lambda _, y: x @ y * 0.01, x))
    times(square).block_until_ready()
    start = time.perf_counter()
    times(square).block_until_ready()
    return 50 * 2 * 8192**3 / (time.perf_counter() - start)


def flops_of_large_model():
    from dt_jax.config import default_config
    from dt_jax.model.decision_transformer import DecisionTransformer

    config = default_config()
    config.update_from_flattened_dict(WAYS[LARGE_MODEL])
    model = DecisionTransformer(state_dim=STATE_DIM, act_dim=ACT_DIM, **config.model)
    return flops_of_update(model, config.train.batch_size, config.data.context_length)


def run(workdir, cache, config, changes):
    """main.py with its own compilation cache, started."""
    flags = (f"--config.{key}={value}" for key, value in changes.items())
    command = ["main.py", f"--config=configs/{config}.py", f"--workdir={workdir}"]
    return subprocess.Popen(
        [sys.executable, *command, *flags],
        cwd=HERE.parent,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
        stdout=subprocess.DEVNULL,
    )


def bits(changes, folder, runs):
    """In how many arrays of weights and moments the same command differs.

    `runs`: which of RUNS are compared with one that was left alone.
    """
    saved = {"train.max_steps": 200, "train.save_steps": 20}
    changes = {**DEVICE, **saved, **changes}
    whole, again, resumed = (folder / name for name in ("whole", *RUNS))
    for workdir in (whole, again) if "again" in runs else (whole,):
        end(run(workdir, workdir.with_suffix(".cache"), "base", changes))
    first = run(resumed, resumed.with_suffix(".cache"), "base", changes)
    while not (resumed / "checkpoints" / "20").is_dir() and first.poll() is None:
        time.sleep(0.01)
    first.kill()
    first.wait()
    shutil.rmtree(resumed.with_suffix(".cache"))  # all is compiled and tuned anew
    end(run(resumed, resumed.with_suffix(".cache"), "base", changes))
    expected, records = arrays_of(whole), without_times(whole / "metrics.jsonl")

    def compare(workdir):
        found = arrays_of(workdir)
        different = sum(found[key] != expected[key] for key in expected)
        same = without_times(workdir / "metrics.jsonl") == records
        return {"arrays": len(expected), "different": different, "same records": same}

    return {f"the same command, {name}": compare(folder / name) for name in runs}


def from_prompt_to_prompt(changes, folder, name):
    """Seconds of the notebook's run, and of these until the first record."""
    workdir = folder / name.split()[0]
    metrics, start = workdir / "metrics.jsonl", time.perf_counter()
    process = run(workdir, folder / "notebook.cache", "notebook", changes)
    try:
        while not (metrics.is_file() and metrics.stat().st_size):
            if process.poll():
                break
            time.sleep(0.01)
        first = time.perf_counter() - start
        end(process)
    finally:
        process.kill()  # where the time is over
    return {"first record": first, "seconds": time.perf_counter() - start}


def end(process):
    if process.wait():
        raise RuntimeError(f"{' '.join(process.args)} ended with {process.returncode}")


if __name__ == "__main__":
    main()

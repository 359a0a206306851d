# SPDX-License-Identifier: Apache-2.0
"""The same training with Hugging Face's Trainer and here, loss curve beside loss curve.

    pip install torch==2.13.0 transformers accelerate
    python -m benchmarks.hf_training [--seeds 3] [--updates 500]

Data: trajectories of a simulated market of 29 stocks (291/29), in the notebook's
layout. Hugging Face: `DecisionTransformerModel` under `Trainer` with the notebook's
arguments; only its collator is replaced, by one that yields the batches of our sampler.
Ours: `main.py` with configs/base.py. Dropout 0.1 in both, weights and dropout drawn
anew by each seed. Prints a table; writes hf_training.json and hf_training.png here.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parent
SMOOTHING = 20  # updates in a point of the picture
LAST = 50  # updates in the final loss


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "hf_training")
    args = parser.parse_args()
    data = args.folder / "data"
    if not data.exists():
        save_dataset(data)
    losses = {
        "Hugging Face": [
            train_hf(data, args.folder, seed, args.updates)
            for seed in range(args.seeds)
        ],
        "dt-jax": [
            train_ours(data, args.folder / f"ours_{seed}", seed, args.updates)
            for seed in range(args.seeds)
        ],
    }
    final = {name: [np.mean(run[-LAST:]) for run in r] for name, r in losses.items()}
    print(f"mean loss of the last {LAST} of {args.updates} updates, by seed")
    print(f"{'':14s}{'mean':>10s}{'lowest':>10s}{'highest':>10s}")
    for name, values in final.items():
        print(
            f"{name:14s}" + "".join(f"{f(values):10.5f}" for f in (np.mean, min, max))
        )
    draw(losses, HERE / "hf_training.png")
    (HERE / "hf_training.json").write_text(
        json.dumps({name: list(map(float, f)) for name, f in final.items()}, indent=2)
        + "\n"
    )


def save_dataset(path):
    from dt_jax.data.writer import save_trajectories
    from dt_jax.trading.behaviours import behaviour_episodes
    from dt_jax.trading.simulation import SIMULATED, simulate_market

    market = simulate_market(1000, 29, seed=1)
    save_trajectories(
        path, behaviour_episodes(market, 1000, 100, seed=1, rules=SIMULATED)
    )


def train_ours(data, workdir, seed, updates, *flags):
    """The loss of every update, with configs/base.py and more flags."""
    subprocess.run(
        [
            sys.executable,
            "main.py",
            "--config=configs/base.py",
            f"--workdir={workdir}",
            f"--config.data.path={data}",
            f"--config.seed={seed}",
            f"--config.train.max_steps={updates}",
            "--config.train.logging_steps=1",
            *flags,
        ],
        cwd=ROOT,
        check=True,
    )
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def train_hf(data, folder, seed, updates):
    """The loss of every update; what was trained before is read from its file."""
    done = folder / f"hf_{seed}.json"
    if done.exists() and len(losses := json.loads(done.read_text())) == updates:
        return losses
    import torch
    import transformers

    from dt_jax.data.readers import load_trajectories
    from dt_jax.data.segments import SegmentSampler, normalize

    class TrainableDT(transformers.DecisionTransformerModel):
        def forward(self, **batch):
            predicted = super().forward(**batch).action_preds
            valid = batch["attention_mask"] > 0
            return {"loss": ((predicted - batch["actions"])[valid] ** 2).mean()}

    trajectories = load_trajectories(data)
    sampler = SegmentSampler(
        trajectories,
        batch_size=64,
        context_length=20,
        max_ep_len=985,
        return_scale=1000.0,
        weighting="length",
        seed=seed,
    )
    step = 0

    def collate(features):
        nonlocal step
        batch = sampler.batch(step)
        step += 1
        mean, std = trajectories.state_mean, trajectories.state_std
        batch = batch._replace(states=normalize(batch.states, mean, std))
        tensors = {k: torch.from_numpy(v) for k, v in batch._asdict().items()}
        return {**tensors, "timesteps": tensors["timesteps"].long()}

    transformers.set_seed(seed)
    model = TrainableDT(
        transformers.DecisionTransformerConfig(
            state_dim=trajectories.state_dim, act_dim=trajectories.act_dim
        )
    )
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(folder / "hf"),
            remove_unused_columns=False,
            max_steps=updates,
            per_device_train_batch_size=64,
            learning_rate=1e-4,
            weight_decay=1e-4,
            warmup_steps=0.1,  # transformers 5: below 1 it is the ratio
            optim="adamw_torch",
            max_grad_norm=0.25,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=[{}] * trajectories.num_trajectories,
        data_collator=collate,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    done.write_text(json.dumps(losses))
    return losses


def draw(losses, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="update", ylabel="loss (mean squared error)")
    for (name, runs), color in zip(
        losses.items(), ("tab:orange", "tab:blue"), strict=True
    ):
        for number, run in enumerate(runs):
            smooth = np.convolve(run, np.ones(SMOOTHING) / SMOOTHING, "valid")
            axes.semilogy(
                np.arange(len(smooth)) + SMOOTHING,
                smooth,
                color=color,
                alpha=0.8,
                linewidth=1,
                label=None if number else name,
            )
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

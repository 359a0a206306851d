# SPDX-License-Identifier: Apache-2.0
"""Milliseconds a decision, beside Hugging Face's model in torch.

    pip install torch==2.13.0 transformers
    python -m benchmarks.acting [--rounds 5]

The same weights (the notebook's model, context 20) act for E environments: HF's with
the loop of the scripts around it, which grows whole histories, normalises, cuts and
pads them each time (in eval mode, without gradients; for all E in one call, which is
more than scripts do), ours by `Policy`. A round is an episode of 25 decisions of each,
in turn, on random states; the episodes before the first round do not count. Prints
medians and ratios; writes acting.json here.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
DIMS = ("3941/394", "291/29")
ENVIRONMENTS = (1, 64)
DECISIONS, CONTEXT_LENGTH = 25, 20
WAYS = ("Hugging Face", "dt-jax")


class Script:
    """HF's torch model acting as scripts let it; the methods are those of `Policy`."""

    def __init__(self, folder):
        import torch
        from transformers import DecisionTransformerModel

        norm = json.loads((Path(folder) / "normalization.json").read_text())
        self.model = DecisionTransformerModel.from_pretrained(folder).eval()
        self.mean = torch.tensor(norm["state_mean"])
        self.std = torch.tensor(norm["state_std"])
        self.scale, self.max_length = norm["return_scale"], norm["context_length"]

    def reset(self, target_returns):
        import torch

        count = len(target_returns)
        self.states = torch.zeros(count, 0, self.model.config.state_dim)
        self.actions = torch.zeros(count, 0, self.model.config.act_dim)
        self.target_return = torch.tensor(target_returns).reshape(count, 1) / self.scale
        self.timesteps = torch.zeros(count, 1, dtype=torch.long)

    def act(self, states, rewards):
        import torch

        count, t = self.states.shape[:2]
        if t > 0:
            pred_return = self.target_return[:, -1] - torch.tensor(rewards) / self.scale
            self.target_return = torch.cat(
                [self.target_return, pred_return[:, None]], dim=1
            )
            now = torch.full((count, 1), t)
            self.timesteps = torch.cat([self.timesteps, now], dim=1)
        self.states = torch.cat([self.states, torch.tensor(states)[:, None]], dim=1)
        nothing = torch.zeros(count, 1, self.model.config.act_dim)
        self.actions = torch.cat([self.actions, nothing], dim=1)
        with torch.no_grad():
            action = self.get_action((self.states - self.mean) / self.std)
        self.actions[:, -1] = action
        return action.numpy()

    def get_action(self, states):
        import torch

        def cut(history):
            history = history[:, -self.max_length :]
            count, taken, *rest = history.shape
            shape = (count, self.max_length - taken, *rest)
            return torch.cat([torch.zeros(shape, dtype=history.dtype), history], dim=1)

        return self.model(
            states=cut(states),
            actions=cut(self.actions),
            returns_to_go=cut(self.target_return[..., None]),
            timesteps=cut(self.timesteps),
            attention_mask=cut(torch.ones(states.shape[:2], dtype=torch.long)),
        ).action_preds[:, -1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    table = {}
    print(f"{'dims':10s}{'E':>4s}" + "".join(f"{w:>26s}" for w in WAYS) + "     ratio")
    for dims in DIMS:
        with tempfile.TemporaryDirectory() as folder:
            ways = dict(zip(WAYS, load_both(folder, dims), strict=True))
        for count in ENVIRONMENTS:
            times = measure(ways, count, int(dims.split("/")[0]), args.rounds)
            table[f"{dims}, E={count}"] = times
            medians = [float(np.median(times[way])) for way in WAYS]
            cells = "".join(
                f"{median:10.2f} [{min(times[way]):.2f}, {max(times[way]):.2f}]".rjust(
                    26
                )
                for median, way in zip(medians, WAYS, strict=True)
            )
            ratio = medians[0] / medians[1]
            print(f"{dims:10s}{count:4d}{cells}{ratio:9.2f}x", flush=True)
    (HERE / "acting.json").write_text(json.dumps(table, indent=2) + "\n")


def load_both(folder, dims):
    """HF's script and our policy, of one folder with weights drawn at random."""
    import jax

    from dt_jax.acting.policy import Policy
    from dt_jax.model.decision_transformer import DecisionTransformer, init_params
    from dt_jax.model.hf_weights import export_hf

    state_dim, act_dim = map(int, dims.split("/"))
    model = DecisionTransformer(state_dim=state_dim, act_dim=act_dim)
    normalization = {
        "state_mean": [0.0] * state_dim,
        "state_std": [1.0] * state_dim,
        "return_scale": 1000.0,
        "context_length": CONTEXT_LENGTH,
        "max_ep_len": 985,
    }
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    export_hf(folder, model, params, normalization)
    return Script(folder), Policy.load(folder)


def measure(ways, count, state_dim, rounds):
    """{way: milliseconds a decision of each round}."""
    rng = np.random.default_rng(0)
    states = rng.standard_normal((DECISIONS, count, state_dim), np.float32)
    rewards = rng.standard_normal((DECISIONS, count), np.float32)
    times = {way: [] for way in ways}
    for _ in range(1 + rounds):
        for way, policy in ways.items():
            start = time.perf_counter()
            policy.reset([1000.0] * count)
            for step in range(DECISIONS):
                policy.act(states[step], rewards[step - 1])
            times[way].append(1e3 * (time.perf_counter() - start) / DECISIONS)
    return {way: measured[1:] for way, measured in times.items()}


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Is a model better that asks for the return which it predicts itself?

    pip install pybullet pybullet-envs-gymnasium
    python -m benchmarks.predict_return [--workdir runs/control]

Trains models with `model.predict_return` on the simulated market and on the data of
`benchmarks.control`, and asks them for more than there is. Beside them are models that
are asked for five returns, and clones, which `benchmarks.control` may have left in the
workdir. Prints mean returns of three seeds and the differences seed by seed; writes
predict_return.json here. An hour on two CPU cores.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import dt_jax
from benchmarks import control
from dt_jax.reporting.evaluation import standard_error

HERE = Path(__file__).parent
MARKET_UPDATES = (1000, 4000)
ENDLESS = 1e6  # a return that nobody has had


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/control"))
    args = parser.parse_args()
    runs = {}
    for name, mix in control.MIXES.items():
        folder = args.workdir / mix.agent
        runs[name] = control.configure(mix, folder), folder
    for updates in MARKET_UPDATES:
        folder = args.workdir / f"market, {updates} updates"
        runs[f"Simulated market, {updates:,} updates"] = market(updates), folder
    found = {}
    for name, (config, folder) in runs.items():
        found[name] = measure(config, folder)
        print(describe(name, found[name]), flush=True)
        path = HERE / "predict_return.json"
        path.write_text(json.dumps(found, indent=2) + "\n")


def market(updates):
    config = dt_jax.default_config()
    config.train.max_steps = config.train.save_steps = updates
    config.data.context_length = 10
    config.model.hidden_size = 64
    config.optimizer.learning_rate = 1e-3
    config.eval.targets = (-2000.0, 0.0, 1750.0, 3400.0, 5000.0)
    config.eval.baselines = control.CLONES
    return config


def measure(config, folder):
    """Means over the seeds, and what the model that predicts gains over the others."""
    runs = control.evaluations(config, folder)
    targets = [
        control.over_seeds(runs, f"target {target:,.6g}")
        for target in config.eval.targets
    ]
    best = max(targets, key=lambda target: target["mean"])
    others = {"best of five targets": best}
    others |= {name: control.over_seeds(runs, name) for name in control.CLONES}
    config.model.predict_return = True
    config.eval.targets, config.eval.baselines = (ENDLESS,), ()
    asking = control.evaluations(config, folder / "predict_return")
    found = {"predicts": control.over_seeds(asking, f"target {ENDLESS:,.6g}")} | others
    for one in others.values():
        differences = np.subtract(found["predicts"]["seeds"], one["seeds"])
        one["gain"] = float(differences.mean())
        one["gain_error"] = standard_error(differences)
    return found


def describe(name, found):
    lines = [f"{name}, mean return ± se; what predicting it gains"]
    for who, one in found.items():
        line = f"  {who:22}{one['mean']:8,.0f} ± {one['error']:.0f}"
        if "gain" in one:
            line += f"{one['gain']:+14,.0f} ± {one['gain_error']:.0f}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()

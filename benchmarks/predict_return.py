# SPDX-License-Identifier: Apache-2.0
"""Is a model better that asks for the return which it predicts itself?

    pip install pybullet pybullet-envs-gymnasium
    python -m benchmarks.predict_return [--workdir runs/control]

Trains models with `model.predict_return` on the simulated market and on the data of
`benchmarks.control`, and asks them for more than there is. Beside them are models that
are asked for five returns, and clones, which `benchmarks.control` may have left in the
workdir. Prints mean returns and the differences seed by seed; writes
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
MARKETS = {f"Simulated market, {count:,} updates": count for count in (1000, 4000)}
TASKS = (*control.MIXES, *MARKETS)
ENDLESS = 1e6  # a return that nobody has had


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/control"))
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--seeds", type=int, default=control.SEEDS)
    args = parser.parse_args()
    path = HERE / "predict_return.json"
    table = json.loads(path.read_text()) if path.is_file() else {}
    for name in args.tasks:
        if name in control.MIXES:
            mix = control.MIXES[name]
            folder = args.workdir / mix.agent
            config = control.configure(mix, folder)
        else:
            folder, config = args.workdir / name, market(MARKETS[name])
        table[name] = measure(config, folder, args.seeds)
        print(describe(name, table[name]), flush=True)
        path.write_text(json.dumps(table, indent=2) + "\n")


def market(updates):
    config = dt_jax.default_config()
    config.train.max_steps = config.train.save_steps = updates
    config.data.context_length = 10
    config.model.hidden_size = 64
    config.optimizer.learning_rate = 1e-3
    config.eval.targets = (-2000.0, 0.0, 1750.0, 3400.0, 5000.0)
    config.eval.baselines = control.CLONES
    return config


def measure(config, folder, seeds):
    """Means over the seeds, and what the model that predicts gains over the others."""
    runs = control.evaluations(config, folder, seeds)
    targets = [
        control.over_seeds(runs, f"target {target:,.6g}")
        for target in config.eval.targets
    ]
    best = max(targets, key=lambda target: target["mean"])
    others = {"best of five targets": best}
    others |= {name: control.over_seeds(runs, name) for name in control.CLONES}
    config.model.predict_return = True
    config.eval.targets, config.eval.baselines = (ENDLESS,), ()
    asking = control.evaluations(config, folder / "predict_return", seeds)
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

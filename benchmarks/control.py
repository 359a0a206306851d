# SPDX-License-Identifier: Apache-2.0
"""Real control: does a model follow its target, and act better than its data?

    pip install pybullet pybullet-envs-gymnasium
    python -m benchmarks.control [--workdir runs/control]

The agents that pybullet ships are made worse in four degrees. Models of three seeds,
trained on all of their episodes, are asked for five returns, beside their clones.
Prints a table, and writes control.json and control.png here. An hour on two CPU cores.
"""

import argparse
import ast
import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

import dt_jax
from dt_jax.acting.environments import make_environments
from dt_jax.acting.rollout import record_episodes
from dt_jax.data.formats.d4rl import known_by_name
from dt_jax.reporting.evaluation import standard_error

HERE = Path(__file__).parent
ENVIRONMENT = "pybullet_envs_gymnasium:{}BulletEnv-v0"
AT_ONCE = 40  # environments in which episodes are collected
EVALUATED = 10  # episodes for each target
SEEDS = 3
CLONES = ("clone", "clone-best-10%")


class Mix(NamedTuple):
    """Of an agent's behaviours `episodes` in all, as many of each. A behaviour: what
    its actions are multiplied by, and the standard deviation of noise added to them."""

    agent: str
    behaviours: tuple[tuple[float, float], ...]
    episodes: int
    updates: int


MIXES = {
    "Hopper, noisy": Mix("Hopper", ((1, 0), (1, 0.2), (1, 0.3), (1, 0.5)), 120, 1000),
    "Ant, scaled": Mix(
        "Ant", ((0.85, 0.1), (0.7, 0.1), (0.5, 0.1), (0.25, 0.1)), 120, 2000
    ),
    "Swingup, scaled": Mix(
        "InvertedPendulumSwingup",
        ((1, 0.05), (0.75, 0.05), (0.5, 0.05), (0.25, 0.05)),
        160,
        1000,
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/control"))
    args = parser.parse_args()
    found = {}
    for name, mix in MIXES.items():
        found[name] = measure(mix, args.workdir / mix.agent)
        print(describe(name, found[name]), flush=True)
        (HERE / "control.json").write_text(json.dumps(found, indent=2) + "\n")
    draw(found).savefig(HERE / "control.png")


def measure(mix, folder):
    config = configure(mix, folder)
    data = dt_jax.load_trajectories(config.data.path)
    returns = by_behaviour(mix, data)
    names = [f"x {scale:g}, noise {noise:g}" for scale, noise in mix.behaviours]
    runs = evaluations(config, folder)
    known = known_by_name(f"bullet-{mix.agent}-mixed-v0")
    return {
        "behaviours": {
            name: {"mean": float(column.mean()), "error": standard_error(column)}
            for name, column in zip(names, returns.T, strict=True)
        },
        "data": {"mean": float(returns.mean()), "steps": data.num_steps},
        "targets": {
            f"{target:.0f}": over_seeds(runs, f"target {target:,.6g}")
            for target in config.eval.targets
        },
        "clones": {name: over_seeds(runs, name) for name in CLONES},
        "rank correlation": [run["spearman"] for run in runs],
        "verdicts": [run["verdicts"] for run in runs],
        "score_range": known and known.score_range,
    }


def over_seeds(runs, name):
    """The mean of the seeds' means and its standard error; those means, too."""
    means = [
        actor["mean"]
        for run in runs
        for actor in run["actors"]
        if actor["name"] == name
    ]
    error = standard_error(means)
    return {"mean": float(np.mean(means)), "error": error, "seeds": means}


def collect(mix, path):
    environments = make_environments(ENVIRONMENT.format(mix.agent), {}, AT_ONCE)
    actor = mixture(agent(mix.agent), mix.behaviours)
    record_episodes(path, environments, actor, num_episodes=mix.episodes, seed=0)
    for environment in environments:
        environment.close()


def agent(name):
    """The weights in pybullet's example of that name, of which only numbers are read:
    two layers with relu and a linear one, whose output the environments clip."""
    package = Path(importlib.util.find_spec("pybullet_envs").origin).parent
    source = package / "examples" / f"enjoy_TF_{name}BulletEnv_v0_2017may.py"
    weights = [
        np.array(ast.literal_eval(node.value.args[0]))
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id.startswith("weights_")
    ]
    first, first_bias, second, second_bias, last, last_bias = weights

    def act(states_ExS):
        hidden = np.maximum(states_ExS @ first + first_bias, 0)
        hidden = np.maximum(hidden @ second + second_bias, 0)
        return (hidden @ last + last_bias).clip(-1, 1)

    return act


def mixture(act, behaviours):
    """An actor whose episode number i acts as behaviour i modulo their number."""
    rng = np.random.default_rng(0)

    def begin(num_episodes):
        scales_Ex1, noise_Ex1 = np.resize(behaviours, (num_episodes, 2)).T[..., None]

        def step(states_ExS, rewards_E):
            actions_ExA = act(states_ExS) * scales_Ex1
            return actions_ExA + noise_Ex1 * rng.normal(size=actions_ExA.shape)

        return step

    return begin


def by_behaviour(mix, data):
    """The returns of the episodes, a column for each behaviour."""
    returns = [episode["rewards"].sum(dtype=float) for episode in data]
    return np.reshape(returns, (-1, len(mix.behaviours)))


def configure(mix, folder):
    """A run on the mix, whose episodes are collected where that is yet to be done."""
    path = folder / "data"
    if not path.exists():
        collect(mix, path)
    means = by_behaviour(mix, dt_jax.load_trajectories(path)).mean(axis=0)
    targets = np.linspace(means.min(), means.max(), 5).tolist()
    config = dt_jax.default_config()
    data, model = config.data, config.model
    data.path = str(path)
    data.context_length, data.max_ep_len = 5, 1000
    model.n_layer, model.hidden_size = 2, 64
    model.resid_pdrop = model.embd_pdrop = model.attn_pdrop = 0.0
    config.optimizer.learning_rate = 1e-3
    config.train.max_steps = config.train.save_steps = mix.updates
    config.eval.environment = ENVIRONMENT.format(mix.agent)
    config.eval.targets, config.eval.episodes = tuple(targets), EVALUATED
    config.eval.baselines = CLONES
    return config


def evaluations(config, folder, seeds=SEEDS):
    """Of a run for each seed, in workdirs in the folder."""
    found = []
    for seed in range(seeds):
        config.seed = seed
        found.append(dt_jax.train(config, folder / f"seed={seed}").evaluation)
    return found


def rows(found):
    """(who, mean, standard error) of all that acted."""
    acted = [
        *found["behaviours"].items(),
        *((f"asked for {target}", one) for target, one in found["targets"].items()),
        *found["clones"].items(),
    ]
    return [(who, one["mean"], one["error"]) for who, one in acted]


def describe(name, found):
    data, correlations = found["data"], found["rank correlation"]
    low, high = found["score_range"] or (np.nan, np.nan)
    return "\n".join(
        [
            f"{name}: data's mean {data['mean']:.0f}, {data['steps']:,} steps",
            *(
                f"  {who:18}{mean:8.0f} ± {error:.0f}"
                + (f"  ({100 * (mean - low) / (high - low):.0f})" if low == low else "")
                for who, mean, error in rows(found)
            ),
            "  rank correlation with 5 targets, by seed: "
            + ", ".join(f"{correlation:.2f}" for correlation in correlations),
        ]
    )


def draw(found):
    """Achieved by asked for, beside what the model was shown and the clones."""
    figure, axes = plt.subplots(
        1, len(found), figsize=(4 * len(found), 3.6), dpi=150, layout="constrained"
    )
    for axis, (name, one) in zip(axes, found.items(), strict=True):
        asked = np.array(list(map(float, one["targets"])))
        means = [(each["mean"], each["error"]) for each in one["targets"].values()]
        axis.plot(asked, asked, color="0.8", label="as asked")
        for behaviour in one["behaviours"].values():
            axis.axhline(behaviour["mean"], color="0.6", linewidth=0.8, linestyle=":")
        axis.plot([], [], color="0.6", linestyle=":", label="behaviours")
        for colour, clone in zip(("C1", "C2"), CLONES, strict=True):
            mean, error = (one["clones"][clone][key] for key in ("mean", "error"))
            axis.axhline(mean, color=colour, linestyle="--", label=clone)
            axis.axhspan(mean - error, mean + error, color=colour, alpha=0.15, lw=0)
        axis.errorbar(
            asked, *np.transpose(means), color="C0", marker="o", label="achieved ± se"
        )
        axis.set(title=name, xlabel="return asked for")
    axes[0].set_ylabel("return")
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


if __name__ == "__main__":
    main()

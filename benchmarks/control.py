# SPDX-License-Identifier: Apache-2.0
"""Real control: does a model follow its target, and act better than its data?

    pip install pybullet pybullet-envs-gymnasium
    python -m benchmarks.control

The agents that pybullet ships are made worse in four degrees. A model trained on all of
their episodes is asked for five returns, beside a clone that sees no returns. Prints a
table, and writes control.json and control.png here. About an hour on two CPU
cores.
"""

import ast
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

import dt_jax
from dt_jax.acting.environments import make_environments
from dt_jax.acting.rollout import record_episodes
from dt_jax.data.formats.d4rl import known_by_name

HERE = Path(__file__).parent
ENVIRONMENT = "pybullet_envs_gymnasium:{}BulletEnv-v0"
AT_ONCE = 40  # environments in which episodes are collected
EVALUATED = 20  # episodes for each target


class Mix(NamedTuple):
    """Of an agent's behaviours `episodes` in all, as many of each. A behaviour: what
    its actions are multiplied by, and the standard deviation of noise added to them."""

    agent: str
    behaviours: tuple[tuple[float, float], ...]
    episodes: int
    updates: int


MIXES = {
    "Swingup, scaled": Mix(
        "InvertedPendulumSwingup",
        ((1, 0.05), (0.75, 0.05), (0.5, 0.05), (0.25, 0.05)),
        400,
        4000,
    ),
    "Ant, scaled": Mix(
        "Ant", ((0.85, 0.1), (0.7, 0.1), (0.5, 0.1), (0.25, 0.1)), 280, 8000
    ),
    "Hopper, noisy": Mix("Hopper", ((1, 0), (1, 0.2), (1, 0.3), (1, 0.5)), 240, 3000),
}


def main():
    found = {}
    for name, mix in MIXES.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(mix, Path(folder))
        print(describe(name, found[name]), flush=True)
    (HERE / "control.json").write_text(json.dumps(found, indent=2) + "\n")
    draw(found).savefig(HERE / "control.png")


def measure(mix, folder):
    collect(mix, folder / "data")
    data = dt_jax.load_trajectories(folder / "data")
    returns = np.array([episode["rewards"].sum(dtype=float) for episode in data])
    behaviours = returns.reshape(-1, len(mix.behaviours))
    names = [f"x {scale:g}, noise {noise:g}" for scale, noise in mix.behaviours]
    means = behaviours.mean(axis=0)
    targets = np.linspace(means.min(), means.max(), 5).tolist()
    follower = train(mix, folder, "follower", targets, return_scale=1000.0)
    # Divided by so much, all returns look alike: what is left is cloning.
    clone = train(mix, folder, "clone", targets[-1:], return_scale=1e12)
    known = known_by_name(f"bullet-{mix.agent}-mixed-v0")
    return {
        "behaviours": {
            name: {"mean": float(column.mean()), "std": float(column.std())}
            for name, column in zip(names, behaviours.T, strict=True)
        },
        "data": {"mean": float(returns.mean()), "steps": data.num_steps},
        "targets": actors(follower),
        "rank correlation": follower["spearman"],
        "clone": next(iter(actors(clone).values())),
        "score_range": known and known.score_range,
    }


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


def train(mix, folder, name, targets, return_scale):
    """What is found when the trained model is asked for these returns."""
    config = dt_jax.default_config()
    data, model = config.data, config.model
    data.path, data.return_scale = str(folder / "data"), return_scale
    data.context_length, data.max_ep_len = 5, 1000
    model.n_layer = 2
    model.resid_pdrop = model.embd_pdrop = model.attn_pdrop = 0.0
    config.optimizer.learning_rate = 1e-3
    config.train.max_steps = config.train.save_steps = mix.updates
    config.eval.environment = ENVIRONMENT.format(mix.agent)
    config.eval.targets, config.eval.episodes = tuple(targets), EVALUATED
    return dt_jax.train(config, folder / name).evaluation


def actors(evaluation):
    return {
        f"{actor['target']:.0f}": {key: actor[key] for key in ("mean", "std")}
        for actor in evaluation["actors"]
        if actor["target"] is not None
    }


def rows(found):
    """(who, mean, std) of all that acted."""
    behaviours, targets = found["behaviours"].items(), found["targets"].items()
    return [
        *((name, *actor.values()) for name, actor in behaviours),
        *((f"asked for {target}", *actor.values()) for target, actor in targets),
        ("clone", *found["clone"].values()),
    ]


def describe(name, found):
    data, correlation = found["data"], found["rank correlation"]
    low, high = found["score_range"] or (np.nan, np.nan)
    return "\n".join(
        [
            f"{name}: data's mean {data['mean']:.0f}, {data['steps']:,} steps",
            *(
                f"  {who:18}{mean:8.0f} ± {std:.0f}"
                + (f"  ({100 * (mean - low) / (high - low):.0f})" if low == low else "")
                for who, mean, std in rows(found)
            ),
            f"  rank correlation {correlation:.2f}",
        ]
    )


def draw(found):
    """Achieved by asked for, beside what the model was shown and the clone."""
    figure, axes = plt.subplots(
        1, len(found), figsize=(4 * len(found), 3.6), dpi=150, layout="constrained"
    )
    for axis, (name, one) in zip(axes, found.items(), strict=True):
        asked = np.array(list(map(float, one["targets"])))
        mean, std = np.array([list(a.values()) for a in one["targets"].values()]).T
        axis.plot(asked, asked, color="0.8", label="as asked")
        for behaviour in one["behaviours"].values():
            axis.axhline(behaviour["mean"], color="0.6", linewidth=0.8, linestyle=":")
        axis.plot([], [], color="0.6", linestyle=":", label="behaviours")
        axis.axhline(one["clone"]["mean"], color="C1", linestyle="--", label="clone")
        axis.errorbar(asked, mean, std, color="C0", marker="o", label="achieved ± sd")
        axis.set(title=name, xlabel="return asked for")
    axes[0].set_ylabel("return")
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


if __name__ == "__main__":
    main()

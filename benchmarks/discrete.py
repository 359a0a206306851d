# SPDX-License-Identifier: Apache-2.0
"""Discrete actions: do CartPole-v1 and Acrobot-v1 give the return that is asked for?

    python -m benchmarks.discrete

For each, a rule that acts well is made worse in seven degrees; a model trained on all
of their episodes is then asked for five returns. Prints the mean returns beside the
behaviours' own, each ± its standard error, and writes discrete.json here. Minutes on
two CPU cores.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

import dt_jax
from dt_jax.acting.actors import Actor
from dt_jax.acting.environments import make_environments
from dt_jax.acting.rollout import roll_out
from dt_jax.data.writer import save_trajectories
from dt_jax.reporting.evaluation import standard_error

HERE = Path(__file__).parent
EPISODES = 80  # of each behaviour


def balance(states_ExS, random_share, rng):
    """Pushes the cart of CartPole-v1 under its falling pole, or at random."""
    position, speed, angle, spin = states_ExS.T
    pushes_E = (angle + 0.5 * spin + 0.02 * position + 0.05 * speed > 0).astype(int)
    is_random_E = rng.random(len(pushes_E)) < random_share
    return np.where(is_random_E, rng.integers(2, size=len(pushes_E)), pushes_E)


def swing(states_ExS, limit, rng):
    """Turns the joint of Acrobot-v1 the way that the upper link swings, while the lower
    one turns no faster than the limit. (Made worse by chance instead, the most likely
    action would be the best behaviour's, whatever is asked for.)"""
    turns_E = np.where(states_ExS[:, 4] > 0, 0, 2)
    return np.where(np.abs(states_ExS[:, 5]) < limit, turns_E, 1)


# The rule, and what makes it worse and worse.
ENVIRONMENTS = {
    "CartPole-v1": (balance, (0.0, 0.6, 0.7, 0.8, 0.85, 0.9, 1.0)),
    "Acrobot-v1": (swing, (9.0, 5.0, 4.0, 3.5, 3.0, 2.5, 2.0)),
}


def main():
    found = {}
    for name, how in ENVIRONMENTS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, *how, Path(folder))
        print(describe(name, found[name]))
    (HERE / "discrete.json").write_text(json.dumps(found, indent=2) + "\n")


def measure(name, rule, grades, folder):
    environments = make_environments(name, {}, EPISODES)
    behaviours, episodes = {}, []
    for number, grade in enumerate(grades):
        steps = []
        rollout = roll_out(
            environments,
            graded(rule, grade, seed=number),
            range(1000 * number, 1000 * number + EPISODES),
            record=steps.append,
        )
        behaviours[f"{rule.__name__} {grade:g}"] = {
            "mean": float(rollout.returns_E.mean()),
            "error": standard_error(rollout.returns_E),
        }
        episodes += cut(steps, rollout.lengths_E)
    save_trajectories(folder / "data", episodes)
    returns = [episode["rewards"].sum() for episode in episodes]
    config = dt_jax.default_config()
    config.data.path = str(folder / "data")
    config.data.return_scale = 100.0
    config.data.max_ep_len = 500
    config.model.update({"hidden_size": 64, "n_layer": 2})
    config.optimizer.learning_rate = 1e-3
    config.train.max_steps = 1500
    config.eval.environment = name
    best, worst = max(one["mean"] for one in behaviours.values()), min(returns)
    config.eval.targets = tuple(np.linspace(worst, best, 6)[1:].tolist())
    evaluation = dt_jax.train(config, folder / "run").evaluation
    return {
        "behaviours": behaviours,
        "targets": {
            f"{actor['target']:.4g}": {key: actor[key] for key in ("mean", "error")}
            for actor in evaluation["actors"]
            if actor["target"] is not None
        },
        "rank correlation": evaluation["spearman"],
    }


def graded(rule, grade, seed) -> Actor:
    rng = np.random.default_rng(seed)
    return lambda num_episodes: (
        lambda states_ExS, rewards_E: rule(states_ExS, grade, rng)
    )


def cut(steps, lengths_E):
    """The recorded steps, an episode each."""
    columns = [np.stack(column, axis=1) for column in zip(*steps, strict=True)]
    names = ("observations", "actions", "rewards")
    return [
        {
            name: column[episode][:length]
            for name, column in zip(names, columns, strict=True)
        }
        for episode, length in enumerate(lengths_E)
    ]


def describe(name, found):
    targets = found["targets"]
    lines = [
        f"{name}, mean return ± standard error",
        *(f"  {who:16}{shown(one)}" for who, one in found["behaviours"].items()),
        *(f"  asked for {target:>6}{shown(one)}" for target, one in targets.items()),
        f"  rank correlation, {len(targets)} targets: {found['rank correlation']:.2f}",
    ]
    return "\n".join(lines)


def shown(one):
    return f"{one['mean']:8.1f} ± {one['error']:.1f}"


if __name__ == "__main__":
    main()

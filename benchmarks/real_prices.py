# SPDX-License-Identifier: Apache-2.0
"""Real prices: does a model do what it is asked for, and more than copy?

    pip install stable-baselines3
    python -m benchmarks.real_prices TABLE.csv.gz [--workdir runs/real_prices]

TABLE has date, tic and close. Days on which a ticker is missing are left out. On the
days before 2015 two kinds of traders play 400 episodes of 250 days: scripted behaviours
of graded skill, and a PPO agent of stable-baselines3, stopped at four ages. Both are
paid FinRL's reward, and what they gain beyond equal weights. Each of the four models is
asked for seven returns, in 20 windows of the same days and 20 of those from 2015 on,
beside clones. Every step but the agents' own training is a command of `main.py`, which
is printed. Prints a table; writes real_prices.json and real_prices.png here.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

import dt_jax
from dt_jax.trading.indicators import INDICATORS

HERE = Path(__file__).parent
SPLIT = "2015-01-01"
DAYS = 250
EPISODES = 400
WINDOWS = 20
TARGETS = 7
AGES = (0, 8192, 32768, 131072)  # steps of the agent's training
ENVIRONMENT = "--config.eval.environment=dt_jax/StockTrading-v0"
# Gains of a year are some ten after FinRL's reward scaling of 1e-4.
RETURN_SCALE = "--config.data.return_scale=10"
REWARDS = {"plain": {}, "relative": {"benchmark": "equal_weight"}}
_noise = np.random.default_rng(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--workdir", type=Path, default=Path("runs/real_prices"))
    parser.add_argument("--updates", type=int, default=600)
    args = parser.parse_args()
    markets = cut(args.table, args.workdir)
    agents = train_agents(args.workdir / "agents", markets["inside"])
    found = {}
    for data, collect in (("behaviours", behave), ("agents", mix(agents))):
        for reward, rules in REWARDS.items():
            folder = args.workdir / f"{data}, {reward}"
            places = {
                name: trading(market, **rules) for name, market in markets.items()
            }
            collect(folder, places["inside"])
            found[f"{data}, {reward}"] = measure(folder, places, args.updates)
    (HERE / "real_prices.json").write_text(json.dumps(found, indent=2) + "\n")
    print(describe(found))
    draw(found).savefig(HERE / "real_prices.png")


def cut(table, workdir):
    """The complete days before and from SPLIT on, as tables."""
    import pandas

    frame = pandas.read_csv(table, usecols=["date", "tic", "close"])
    full = frame.groupby("date")["tic"].transform("size") == frame["tic"].nunique()
    workdir.mkdir(parents=True, exist_ok=True)
    markets = {}
    for name, rows in (
        ("inside", frame.date < SPLIT),
        ("after", frame.date >= SPLIT),
    ):
        markets[name] = workdir / f"{name}.csv"
        frame[full & rows].to_csv(markets[name], index=False)
    return markets


def trading(market, **rules):
    """The arguments of an environment whose episodes begin on a random day."""
    return {"market": str(market), "start": None, "episode_length": DAYS} | rules


def flag(kwargs):
    return f"--config.eval.environment_kwargs={json.dumps(kwargs)}"


def run(*flags):
    command = ["main.py", "--config=configs/base.py", *flags]
    print("\npython", shlex.join(command), flush=True)
    subprocess.run([sys.executable, *command], check=True)


def behave(folder, kwargs):
    """Collect the episodes of the scripted behaviours in `<folder>/dataset`."""
    if not (folder / "dataset").exists():
        run(
            *(f"--workdir={folder}", "--mode=collect", ENVIRONMENT, flag(kwargs)),
            "--config.collect.actor=benchmarks.real_prices:behaviours",
            f"--config.collect.episodes={EPISODES}",
        )


def behaviours(observations_ExS):
    """ExM: buy what is cheap against its last 30 days, sell what is dear; by the row,
    from the opposite of that to all of it, plus noise."""
    num_stocks = (observations_ExS.shape[1] - 1) // 10
    first = 1 + (2 + INDICATORS.index("cci_30")) * num_stocks
    cci_ExM = observations_ExS[:, first : first + num_stocks]
    advice_ExM = np.clip(cci_ExM / -100.0, -1.0, 1.0)
    skill_E = np.linspace(-1.0, 1.0, len(observations_ExS))
    noise_ExM = 0.3 * _noise.standard_normal(advice_ExM.shape)
    return (skill_E[:, None] * advice_ExM + noise_ExM).astype(np.float32)


def train_agents(folder, market):
    """One agent of PPO at each of AGES; their zips, beside them what they normalise."""
    zips = [folder / f"{age}.zip" for age in AGES]
    if zips[-1].exists():
        return zips
    import gymnasium
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    def make():
        return gymnasium.make("dt_jax/StockTrading-v0", **trading(market))

    environments = VecNormalize(DummyVecEnv([make] * 8))
    agent = PPO("MlpPolicy", environments, n_steps=256, batch_size=256, seed=0)
    folder.mkdir(parents=True, exist_ok=True)
    for age, path in zip(AGES, zips, strict=True):
        if age:
            agent.learn(age - agent.num_timesteps, reset_num_timesteps=False)
        agent.save(path)
        environments.save(path.with_suffix(".vecnormalize.pkl"))
    return zips


def mix(agents):
    """As `behave`, of agents, as many episodes of each."""
    import datasets

    def collect(folder, kwargs):
        parts = [folder / agent.stem for agent in agents]
        for part, agent in zip(parts, agents, strict=True):
            if not (part / "dataset").exists():
                normalization = agent.with_suffix(".vecnormalize.pkl")
                run(
                    *(f"--workdir={part}", "--mode=collect", ENVIRONMENT, flag(kwargs)),
                    f"--config.collect.actor={agent}",
                    f"--config.collect.normalization={normalization}",
                    f"--config.collect.episodes={EPISODES // len(agents)}",
                )
        if not (folder / "dataset").exists():
            each = [datasets.load_from_disk(str(part / "dataset")) for part in parts]
            datasets.concatenate_datasets(each).save_to_disk(str(folder / "dataset"))

    return collect


def measure(folder, places, updates):
    """Train on `<folder>/dataset`; what is achieved in each of the places."""
    data = dt_jax.load_trajectories(folder / "dataset")
    returns = data.returns_to_go[data.starts]
    levels = np.linspace(0.02, 0.98, TARGETS)
    targets = tuple(np.quantile(returns, levels).round(3).tolist())
    found = {"data": {"mean": returns.mean(), "std": returns.std()}}
    for place, mode in (("after", "train"), ("inside", "evaluate")):
        run(
            *(f"--mode={mode}", f"--workdir={folder / 'model'}"),
            f"--config.data.path={folder / 'dataset'}",
            *(RETURN_SCALE, ENVIRONMENT, flag(places[place])),
            *("--config.data.context_length=10", f"--config.train.max_steps={updates}"),
            "--config.data.validation_fraction=0.1",
            f"--config.eval.targets={targets}",
            f"--config.eval.episodes={WINDOWS}",
            "--config.eval.baselines=('clone', 'clone-best-10%')",
        )
        report = json.loads((folder / "model/report/evaluation.json").read_text())
        found[place] = summarise(report)
    return found


def summarise(report):
    keep = ("name", "target", "mean", "error", "gain")
    actors = [{key: actor.get(key) for key in keep} for actor in report["actors"]]
    gains = [one["gain"]["mean"] for one in actors if one["target"] is not None]
    return {
        "actors": actors,
        "rank correlation": report["spearman"],
        "rank correlation of the gain": rank_correlation(gains),
        "verdicts": report["verdicts"],
    }


def rank_correlation(achieved):
    """Of what is achieved with targets that rise."""
    from scipy.stats import spearmanr

    return float(spearmanr(range(len(achieved)), achieved).statistic)


def describe(found):
    titles = f"{'rank':>11}{'rank, gain':>11}{'lowest':>16}{'highest':>16}{'clone':>16}"
    lines = [" " * 29 + titles]
    for name, one in found.items():
        for place in ("inside", "after"):
            actors = one[place]["actors"]
            aimed = [actor for actor in actors if actor["target"] is not None]
            clone = next(actor for actor in actors if actor["name"] == "clone")
            cells = (
                f"{actor['mean']:.2f} ± {actor['error']:.2f}"
                for actor in (aimed[0], aimed[-1], clone)
            )
            ranks = (
                one[place][key]
                for key in ("rank correlation", "rank correlation of the gain")
            )
            lines.append(
                f"{name}, {place}".ljust(29)
                + "".join(f"{rank:11.2f}" for rank in ranks)
                + "".join(f"{cell:>16}" for cell in cells)
            )
    return "\n".join(lines)


def draw(found):
    """Achieved by asked for, in the days of training and after, beside clones."""
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(
        *(2, len(found)), figsize=(3.2 * len(found), 6), dpi=150, layout="constrained"
    )
    for column, (name, one) in enumerate(found.items()):
        for axis, place in zip(grid[:, column], ("inside", "after"), strict=True):
            actors = one[place]["actors"]
            aimed = [actor for actor in actors if actor["target"] is not None]
            asked, mean, error = (
                [actor[key] for actor in aimed] for key in ("target", "mean", "error")
            )
            axis.plot(asked, asked, color="0.8", label="as asked")
            axis.errorbar(asked, mean, error, marker="o", label="achieved ± se")
            for colour, clone in zip(("C1", "C2"), actors[-2:], strict=True):
                mean, error = clone["mean"], clone["error"]
                axis.axhline(mean, color=colour, ls="--", label=clone["name"])
                axis.axhspan(mean - error, mean + error, color=colour, alpha=0.15, lw=0)
            axis.set(title=f"{name}, {place}", xlabel="return asked for")
            axis.title.set_fontsize(9)
    for axis in grid[:, 0]:
        axis.set_ylabel("return")
    grid[0, 0].legend(frameon=False, fontsize=7)
    return figure


if __name__ == "__main__":
    main()

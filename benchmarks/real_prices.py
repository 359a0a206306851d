# SPDX-License-Identifier: Apache-2.0
"""Real prices from end to end: collect, inspect, train, evaluate, report.

    python -m benchmarks.real_prices TABLE.csv.gz [--workdir runs/real_prices]

TABLE has date, tic and close. Days on which a ticker is missing are left out. On the
days before 2015 scripted behaviours of graded skill trade 400 episodes of 250 days; the
model is trained on these, and acts on 250-day episodes of the days from 2015 on. Every
step is a command of `main.py`, which is printed.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from dt_jax.trading.indicators import INDICATORS

SPLIT = "2015-01-01"
DAYS = 250
ENVIRONMENT = "--config.eval.environment=dt_jax/StockTrading-v0"
# Gains of a year are some ten after FinRL's reward scaling of 1e-4.
RETURN_SCALE = "--config.data.return_scale=10"
_noise = np.random.default_rng(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--workdir", type=Path, default=Path("runs/real_prices"))
    parser.add_argument("--updates", type=int, default=1500)
    args = parser.parse_args()

    import pandas

    frame = pandas.read_csv(args.table, usecols=["date", "tic", "close"])
    full = frame.groupby("date")["tic"].transform("size") == frame["tic"].nunique()
    args.workdir.mkdir(parents=True, exist_ok=True)
    kwargs = {}
    for name, rows in (
        ("train", frame.date < SPLIT),
        ("test", frame.date >= SPLIT),
    ):
        path = args.workdir / f"{name}.csv"
        frame[full & rows].to_csv(path, index=False)
        values = {"market": str(path), "start": None, "episode_length": DAYS}
        kwargs[name] = f"--config.eval.environment_kwargs={json.dumps(values)}"
    data, model = args.workdir / "collected", args.workdir / "model"
    path = f"--config.data.path={data / 'dataset'}"
    run(
        *(f"--workdir={data}", "--mode=collect", ENVIRONMENT, kwargs["train"]),
        "--config.collect.actor=benchmarks.real_prices:behaviours",
        "--config.collect.episodes=400",
    )
    run(f"--workdir={model}", "--mode=inspect", path, RETURN_SCALE)
    run(
        *(f"--workdir={model}", path, RETURN_SCALE, ENVIRONMENT, kwargs["test"]),
        f"--config.train.max_steps={args.updates}",
        "--config.data.validation_fraction=0.1",
    )


def run(*flags):
    command = ["main.py", "--config=configs/base.py", *flags]
    print("\npython", shlex.join(command), flush=True)
    subprocess.run([sys.executable, *command], check=True)


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


if __name__ == "__main__":
    main()

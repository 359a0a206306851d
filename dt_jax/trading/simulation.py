# SPDX-License-Identifier: Apache-2.0
"""The project's own market, simulated: what a run without a dataset learns to trade.

In comes a seed, out come prices, episodes of NumPy arrays and an environment.
"""

import numpy as np

from dt_jax.trading.behaviours import behaviour_episodes
from dt_jax.trading.environment import TradingEnv
from dt_jax.trading.indicators import WARM_UP_DAYS, compute_indicators
from dt_jax.trading.market import Market
from dt_jax.trading.rules import Rules

# Six stocks near 100: eight days of full buying spend the cash, so trades keep
# mattering, and returns of 60 to 100 days, divided by 1000, span -3 to 3.
SIMULATED = Rules(hmax=200, reward_scaling=0.01)


def simulate_market(num_days: int, num_stocks: int, seed: int) -> Market:
    """A market in which prices return, within days, to a value that wanders for months.

    The log price is a constant (of prices of 70 to 140), plus the value (half-life 69
    days, std 0.06), plus a gap (half-life 2.4 days, std 0.06), which `cci_30` shows and
    by which skill earns. Stocks are independent, so that luck averages out.
    """
    rng = np.random.default_rng(seed)
    base_M = rng.uniform(np.log(70.0), np.log(140.0), num_stocks)
    shape = (num_days + WARM_UP_DAYS, num_stocks)
    value_DxM = 0.06 * _returning(rng.standard_normal(shape), 0.01)
    gap_DxM = 0.06 * _returning(rng.standard_normal(shape), 0.25)
    close_DxM = np.exp(base_M + value_DxM + gap_DxM)
    indicators_DxIxM = compute_indicators(close_DxM, close_DxM, close_DxM)
    return Market(
        np.busday_offset("2000-01-03", np.arange(num_days)),
        tuple(f"S{stock:03d}" for stock in range(num_stocks)),
        close_DxM[WARM_UP_DAYS:],
        indicators_DxIxM[WARM_UP_DAYS:],
    )


def _returning(noise_DxM, pull):
    """A process of variance 1 that loses the fraction `pull` of its level every day."""
    level_DxM = noise_DxM.copy()
    for day in range(1, len(level_DxM)):
        level_DxM[day] *= np.sqrt(pull * (2.0 - pull))
        level_DxM[day] += (1.0 - pull) * level_DxM[day - 1]
    return level_DxM


def simulated_episodes(seed: int = 0) -> list[dict[str, np.ndarray]]:
    """The project's own dataset: 512 episodes of 60 to 100 steps, S = 61, M = 6."""
    market = simulate_market(1000, 6, seed)
    return list(behaviour_episodes(market, 512, (60, 100), seed, rules=SIMULATED))


def simulated_env(seed: int = 0, episode_length: int = 80) -> TradingEnv:
    """The market of `simulated_episodes(seed)`, from a random day at each reset."""
    market = simulate_market(1000, 6, seed)
    return TradingEnv(
        market, rules=SIMULATED, start=None, episode_length=episode_length
    )

# SPDX-License-Identifier: Apache-2.0
"""Scripted traders of known skill: episodes of NumPy arrays for `Trajectories`."""

from collections.abc import Iterator, Mapping

import numpy as np

from dt_jax.trading.environment import observe, open_accounts, trade_day
from dt_jax.trading.market import Market
from dt_jax.trading.rules import FINRL, Rules, rules_for

EPISODES_AT_ONCE = 256  # bounds the memory of a generator, not what it yields


def scripted_actions(
    market: Market, day_E: np.ndarray, skill_E: np.ndarray, noise_ExM: np.ndarray
) -> np.ndarray:
    """ExM float32 in [-1, 1]: skill times what to do, plus noise.

    What to do is to buy what is cheap against its last 30 days (`cci_30` below 0) and
    to sell what is dear. Skill 1 does so, 0 acts at random, -1 does the opposite.

    Raises:
      ValueError: the market is without this indicator.
    """
    if "cci_30" not in market.indicator_names:
        found = ", ".join(market.indicator_names) or "none"
        raise ValueError(f"indicators: found {found}, expected cci_30 among them")
    cci = market.indicator_names.index("cci_30")
    advice_ExM = np.clip(market.indicators[day_E, cci] / -100.0, -1.0, 1.0)
    actions_ExM = skill_E[:, None] * advice_ExM + noise_ExM
    return np.clip(actions_ExM, -1.0, 1.0).astype(np.float32)


def behaviour_episodes(
    market: Market,
    num_episodes: int,
    episode_length: int | tuple[int, int],
    seed: int,
    *,
    rules: Rules | Mapping = FINRL,
    skills: np.ndarray | float | None = None,
    noise: float = 0.3,
) -> Iterator[dict[str, np.ndarray]]:
    """Episodes of scripted behaviours from random days, each of one skill.

    Args:
      episode_length: steps T of every episode, or the least and the most of them.
      skills: one for all or one for each episode, by default uniform in [-1, 1].
      noise: standard deviation of the noise in the actions.

    Yields:
      `observations` TxS, `actions` TxM, `rewards` T, all float32, and `dones` T bool.
    """
    shortest, longest = np.broadcast_to(episode_length, 2)
    if not 1 <= shortest <= longest < len(market.dates):
        raise ValueError(
            f"episode_length={episode_length}: expected at least 1 step and fewer than "
            f"the market's {len(market.dates)} days"
        )
    rules = rules_for(market.tickers, rules)
    # A market simulated from the same seed must not share these draws.
    rng = np.random.default_rng([seed, 1])
    if skills is None:
        skills = rng.uniform(-1.0, 1.0, num_episodes)
    skills = np.broadcast_to(skills, num_episodes)
    for first in range(0, num_episodes, EPISODES_AT_ONCE):
        skill_E = skills[first : first + EPISODES_AT_ONCE]
        lengths_E = rng.integers(shortest, longest, len(skill_E), endpoint=True)
        days_E = rng.integers(len(market.dates) - longest, size=len(skill_E))
        accounts = open_accounts(market, rules, days_E, longest)
        steps = []
        for _ in range(longest):
            noise_ExM = noise * rng.standard_normal(accounts.shares.shape)
            actions_ExM = scripted_actions(market, accounts.day, skill_E, noise_ExM)
            states_ExS = observe(market, accounts).astype(np.float32)
            accounts, rewards_E = trade_day(market, rules, accounts, actions_ExM)
            steps.append((states_ExS, actions_ExM, rewards_E.astype(np.float32)))
        columns = [np.stack(column, axis=1) for column in zip(*steps, strict=True)]
        for length, *episode in zip(lengths_E, *columns, strict=True):
            names = ("observations", "actions", "rewards")
            yield {
                **{n: c[:length].copy() for n, c in zip(names, episode, strict=True)},
                "dones": np.arange(length) == length - 1,
            }

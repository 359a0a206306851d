# SPDX-License-Identifier: Apache-2.0
"""Stock trading by FinRL's rules, on a `Market`, as a Gymnasium environment.

The rules stand once, in `trade_day`, for E environments at a time; M is stocks.
"""

import datetime
import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import gymnasium
import numpy as np

from dt_jax.trading.backtest import STRATEGIES
from dt_jax.trading.market import Market, load_market
from dt_jax.trading.rules import FINRL, Rules, rules_for, unknown

if TYPE_CHECKING:
    import pandas


class Accounts(NamedTuple):
    """The state of E environments; days are rows of the market.

    Attributes:
      day, first_day: E int64. cash: E float64.
      shares: ExM float64, whole numbers.
      benchmark: DxE float64, the account of `Rules.benchmark` by day from the first on,
        NaN beyond the market's last; None without one.
    """

    day: np.ndarray
    first_day: np.ndarray
    cash: np.ndarray
    shares: np.ndarray
    benchmark: np.ndarray | None = None


def open_accounts(
    market: Market, rules: Rules, days_E: np.ndarray, longest: int | None = None
) -> Accounts:
    """E environments at the start of an episode, each on its own day.

    An episode has at most `longest` steps; None: up to the market's last day. Here and
    in `trade_day` what the rules have by ticker is a number or M of them, in the order
    of the market's tickers, as `rules_for` gives them.
    """
    if rules.risk_limit is not None and market.risk is None:
        raise ValueError(
            f"risk_limit={rules.risk_limit} needs a market with a level of risk, found "
            "none; load_market(..., risk='vix') reads one"
        )
    days_E = np.array(days_E, np.int64)
    cash_E = np.full(len(days_E), rules.initial_cash, np.float64)
    shares_ExM = np.zeros((len(days_E), len(market.tickers))) + rules.initial_shares
    benchmark_DxE = None
    if rules.benchmark is not None:
        num_days = 1 + (len(market.close) - 1 if longest is None else longest)
        benchmark_DxE = np.full((num_days, len(days_E)), np.nan)
        for episode, day in enumerate(days_E):
            close_DxM = market.close[day : day + num_days]
            played = STRATEGIES[rules.benchmark](close_DxM, rules)
            benchmark_DxE[: len(close_DxM), episode] = played.assets
    return Accounts(days_E, days_E, cash_E, shares_ExM, benchmark_DxE)


def observe(market: Market, accounts: Accounts) -> np.ndarray:
    """ExS float64, S = 1 + (2 + I)M, raw: cash, closes, shares, each indicator."""
    close_ExM = market.close[accounts.day]
    num_indicators, num_stocks = market.indicators.shape[1:]
    indicators_ExIM = market.indicators[accounts.day].reshape(
        len(close_ExM), num_indicators * num_stocks
    )
    return np.concatenate(
        [accounts.cash[:, None], close_ExM, accounts.shares, indicators_ExIM], axis=1
    )


def assets(market: Market, accounts: Accounts) -> np.ndarray:
    """E float64: cash plus shares at the closes of the day."""
    return accounts.cash + np.vecdot(market.close[accounts.day], accounts.shares)


def trade_day(
    market: Market, rules: Rules, accounts: Accounts, actions_ExM: np.ndarray
) -> tuple[Accounts, np.ndarray]:
    """Sell, then buy, at the closes of the day; then the day passes.

    Args:
      actions_ExM: hmax shares times this, truncated, are to be bought (sold if < 0).
        The product is in the actions' own dtype: 0.53 asks for 52 shares in float32
        and for 53 in float64, in FinRL too.

    Returns:
      The accounts on the next day, and the rewards (E float64): the assets gained from
      before the trades to the next day's closes, less what `rules.benchmark` gains on
      that day, scaled; fees are therefore inside.
    """
    day_E = accounts.day
    close_ExM = market.close[day_E]
    wants_ExM = np.trunc(actions_ExM * actions_ExM.dtype.type(rules.hmax))
    wants_ExM = wants_ExM.astype(np.float64)
    if "macd" in market.indicator_names:
        # FinRL keeps a flag "do not trade" where the macd stands in its state.
        macd = market.indicator_names.index("macd")
        wants_ExM[market.indicators[day_E, macd] == 1.0] = 0.0
    if rules.risk_limit is not None:
        # FinRL reads the level as a day begins, so there is none on the first one.
        alarm_E = day_E > accounts.first_day
        alarm_E &= market.risk[day_E] >= rules.risk_limit
        wants_ExM[alarm_E] = -np.inf

    sold_ExM = np.clip(-wants_ExM, 0.0, accounts.shares)
    paid_ExM = close_ExM * (1.0 - rules.cost_of_sale)
    cash_E = accounts.cash + np.vecdot(paid_ExM, sold_ExM)
    bought_ExM, cash_E = _buy(wants_ExM, close_ExM * (1.0 + rules.cost), cash_E)
    shares_ExM = accounts.shares - sold_ExM + bought_ExM
    after = accounts._replace(day=day_E + 1, cash=cash_E, shares=shares_ExM)
    gain_E = assets(market, after) - assets(market, accounts)
    if accounts.benchmark is not None:
        passed_E, rows_E = day_E - accounts.first_day, np.arange(len(day_E))
        gain_E += accounts.benchmark[passed_E, rows_E]
        gain_E -= accounts.benchmark[passed_E + 1, rows_E]
    return after, gain_E * rules.reward_scaling


def _buy(wants_ExM, price_ExM, cash_E):
    """The largest want first, ties from the last column; as far as the cash goes."""
    rows_E = np.arange(len(cash_E))
    order_MxE = np.argsort(wants_ExM, axis=1, kind="stable").T[::-1]
    wants_MxE = np.maximum(wants_ExM[rows_E, order_MxE], 0.0)
    price_MxE = price_ExM[rows_E, order_MxE]
    for wants_E, price_E in zip(wants_MxE, price_MxE, strict=True):
        np.minimum(wants_E, cash_E // price_E, out=wants_E)
        cash_E = cash_E - price_E * wants_E
    bought_ExM = np.empty_like(wants_ExM)
    bought_ExM[rows_E, order_MxE] = wants_MxE
    return bought_ExM, cash_E


class TradingEnv(gymnasium.Env):
    """FinRL's StockTradingEnv; also `gymnasium.make("dt_jax/StockTrading-v0", ...)`.

    Observations are S float64, as FinRL's are: raw money and shares need the digits.
    Actions are M float32 in [-1, 1]. `info` has the date, the assets, and what was
    traded on the day just passed: the worth of the shares bought plus those sold.

    Args:
      market: a `Market`, or a table for `load_market`.
      start: the first day of every episode, by its date or as a row of the market; None
        for a random one at each reset. A date cuts off what is before it.
      end: the date of the first day after the last one.
      episode_length: steps of an episode, by default up to the last day of the market.
      drop, risk, indicators: of `load_market`, for a table.
      rules: `Rules`, or a mapping of its fields; the others are FinRL's.
      repeat_last_reward: FinRL's end of an episode, which takes one more step (and any
        after it): nothing is traded, the last reward comes again, and only then
        `terminated` is true. Otherwise the step onto the last day terminates.
      fields: fields of `Rules`, which replace those of `rules`.

    Raises:
      ValueError, FileNotFoundError: in one line, which argument or cell is at fault.
    """

    def __init__(
        self,
        market: "Market | str | Path | pandas.DataFrame",
        *,
        start: int | str | datetime.date | None = 0,
        end: str | datetime.date | None = None,
        episode_length: int | None = None,
        drop: Collection[str] | None = None,
        risk: str | None = None,
        indicators: Collection[str] | None = None,
        rules: Rules | Mapping = FINRL,
        repeat_last_reward: bool = False,
        **fields: object,
    ):
        for name in fields:
            if name not in Rules._fields:
                ours = [*inspect.signature(TradingEnv).parameters][:-1]
                raise ValueError(f"{name!r}: {unknown(name, [*ours, *Rules._fields])}")
        day = None if start is None or _is_whole(start) else start
        if not isinstance(day, str | datetime.date | np.datetime64 | None):
            raise ValueError(
                f"start={start!r}: expected a day such as '2020-07-01', a row or None"
            )
        if not (episode_length is None or _is_whole(episode_length)):
            raise ValueError(
                f"episode_length={episode_length!r}: expected a whole number or None"
            )
        if not isinstance(repeat_last_reward, bool):
            raise ValueError(
                f"repeat_last_reward={repeat_last_reward!r}: expected True or False"
            )
        given = {"drop": drop, "risk": risk, "indicators": indicators}
        given = {name: value for name, value in given.items() if value is not None}
        if not isinstance(market, Market):
            cut = {"start": day, "end": end}
            given |= {name: value for name, value in cut.items() if value is not None}
            market = load_market(market, **given)
        elif given:
            raise ValueError(
                f"{', '.join(given)}: found a Market, expected a table to load"
            )
        else:
            market = market.between(day, end)
        if day is not None:
            start = 0
        self.market = market
        num_days, num_stocks = market.close.shape
        if episode_length is None:
            episode_length = num_days - 1 - (start or 0)
        latest = num_days - 1 - episode_length
        if episode_length < 1 or not 0 <= (start or 0) <= latest:
            raise ValueError(
                f"start={day or start}, episode_length={episode_length}: expected a "
                f"row of the market's {num_days} days and at least 1 step within them"
            )
        self.rules = rules_for(market.tickers, rules, fields)
        self.episode_length = episode_length
        self.repeat_last_reward = repeat_last_reward
        open_accounts(market, self.rules, [0], 1)  # refuses what a reset would
        self._starts = (0, latest) if start is None else (start, start)
        self._accounts = None
        self._reward = 0.0
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (num_stocks,), np.float32)
        state_dim = 1 + (2 + market.indicators.shape[1]) * num_stocks
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (state_dim,), np.float64
        )

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        first_day = self.np_random.integers(*self._starts, endpoint=True)
        self._accounts = open_accounts(
            self.market, self.rules, [first_day], self.episode_length
        )
        return self._observation(), self._info(self._accounts)

    def step(self, action: np.ndarray):
        action_M = np.asarray(action)
        if action_M.shape != self.action_space.shape or not np.isfinite(action_M).all():
            raise ValueError(
                f"found an action {action_M}, expected {len(self.market.tickers)} "
                "finite numbers"
            )
        over = self._accounts is not None and self._steps_left() == 0
        if self._accounts is None or (over and not self.repeat_last_reward):
            raise gymnasium.error.ResetNeeded("no episode runs, call reset() first")
        before = self._accounts
        if not over:
            self._accounts, reward_E = trade_day(
                self.market, self.rules, before, action_M[None]
            )
            self._reward = float(reward_E[0])
        terminated = over if self.repeat_last_reward else self._steps_left() == 0
        return self._observation(), self._reward, terminated, False, self._info(before)

    def _steps_left(self):
        first_day, day = self._accounts.first_day[0], self._accounts.day[0]
        return int(first_day + self.episode_length - day)

    def _observation(self):
        return observe(self.market, self._accounts)[0]

    def _info(self, before):
        traded_M = np.abs(self._accounts.shares - before.shares)[0]
        return {
            "date": str(self.market.dates[self._accounts.day[0]]),
            "assets": float(assets(self.market, self._accounts)[0]),
            "traded": float(traded_M @ self.market.close[before.day[0]]),
        }


def _is_whole(value):
    return isinstance(value, int | np.integer) and not isinstance(value, bool)

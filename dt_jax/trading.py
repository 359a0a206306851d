# SPDX-License-Identifier: Apache-2.0
"""Stock trading by FinRL's rules: prices, an environment, scripted behaviours.

In comes a FinRL-style table of prices, or a seed for a simulated market; out go a
Gymnasium environment and episodes of NumPy arrays for `Trajectories`. The rules stand
once, in `trade_day`, for E environments at a time; M is stocks, D days, I indicators.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import gymnasium
import numpy as np

if TYPE_CHECKING:
    import pandas

# In FinRL's order: within a state, one indicator of all stocks follows another.
INDICATORS = (
    "macd",
    "boll_ub",
    "boll_lb",
    "rsi_30",
    "cci_30",
    "dx_30",
    "close_30_sma",
    "close_60_sma",
)
MACD, CCI = INDICATORS.index("macd"), INDICATORS.index("cci_30")
WARM_UP_DAYS = 60  # the longest window of an indicator
EPISODES_AT_ONCE = 256  # bounds the memory of a generator, not what it yields


class Market(NamedTuple):
    """Prices of M stocks on D days.

    Attributes:
      dates: D datetime64[D], ascending. tickers: M, alphabetical.
      close: DxM float64. indicators: DxIxM float64, in the order of `INDICATORS`.
      risk: D float64, the level that `Rules.risk_limit` looks at, or None.
    """

    dates: np.ndarray
    tickers: tuple[str, ...]
    close: np.ndarray
    indicators: np.ndarray
    risk: np.ndarray | None = None


class Rules(NamedTuple):
    """What FinRL fixes, with its values.

    Attributes:
      initial_cash: in the currency of the prices; no shares are held at the start.
      cost: the fee of a sale or a purchase, as a fraction of its worth.
      hmax: how many shares an action of 1 asks for.
      reward_scaling: reward for one unit of money gained.
      risk_limit: all shares are sold at this level of risk and above; None: never.
    """

    initial_cash: float = 1e6
    cost: float = 1e-3
    hmax: int = 100
    reward_scaling: float = 1e-4
    risk_limit: float | None = None


class Accounts(NamedTuple):
    """The state of E environments; days are rows of the market.

    Attributes:
      day, first_day: E int64. cash: E float64.
      shares: ExM float64, whole numbers.
    """

    day: np.ndarray
    first_day: np.ndarray
    cash: np.ndarray
    shares: np.ndarray


FINRL = Rules()
# Six stocks near 100: eight days of full buying spend the cash, so trades keep
# mattering, and returns of 60 to 100 days, divided by 1000, span -3 to 3.
SIMULATED = Rules(hmax=200, reward_scaling=0.01)


def load_market(
    table: "str | Path | pandas.DataFrame",
    *,
    start: str | None = None,
    end: str | None = None,
    drop: Collection[str] = (),
    risk: str | None = None,
) -> Market:
    """Read a FinRL-style table: a row for each day and ticker.

    Args:
      table: a CSV (also .gz) or Parquet file, or a pandas frame, with columns `date`,
        `tic`, `close`. Indicators it lacks are computed over all its days, by
        stockstats' formulas, from close and from `high` and `low` where it has them.
      start, end: the first day to keep, and the first one after those kept.
      drop: tickers to leave out. risk: a column for `Market.risk`, such as "vix".

    Raises:
      FileNotFoundError, ValueError: in one line, which file, column, day and ticker.
    """
    name, frame = ("table", table) if hasattr(table, "columns") else _read(Path(table))
    for column in ("date", "tic", "close", *([risk] if risk else [])):
        if column not in frame.columns:
            found = ", ".join(map(str, frame.columns))
            raise ValueError(f"{name}: column {column!r} is missing, found {found}")
    for ticker in sorted(set(drop).difference(frame["tic"])):
        found = ", ".join(sorted(frame["tic"].astype(str).unique()))
        raise ValueError(f"{name}: no ticker {ticker!r} to drop, found {found}")
    frame = _by_day_and_ticker(name, frame[~frame["tic"].isin(list(drop))])
    dates, tickers = frame.index.levels
    dates_D = dates.to_numpy().astype("datetime64[D]")

    close_DxM = _numbers(name, frame, "close", above=0.0)
    absent = [column for column in INDICATORS if column not in frame.columns]
    if absent:
        for column in ("high", "low"):
            # Also where a cell is empty: such a day has no range, which is no fault.
            known = frame.get(column, frame["close"])
            frame[column] = known.fillna(frame["close"])
        high_DxM, low_DxM = (
            _numbers(name, frame, column) for column in ("high", "low")
        )
        computed_DxIxM = compute_indicators(close_DxM, high_DxM, low_DxM)
        for column in absent:
            frame[column] = computed_DxIxM[:, INDICATORS.index(column)].ravel()

    first = 0 if start is None else np.searchsorted(dates_D, np.datetime64(start))
    stop = len(dates_D) if end is None else np.searchsorted(dates_D, np.datetime64(end))
    if first >= stop:
        raise ValueError(
            f"{name}: found no day from {start} to before {end}, "
            f"expected some of {dates_D[0]} to {dates_D[-1]}"
        )
    indicators_DxIxM = np.stack(
        [_numbers(name, frame, column)[first:stop] for column in INDICATORS], axis=1
    )
    return Market(
        dates_D[first:stop],
        tuple(tickers),
        close_DxM[first:stop],
        indicators_DxIxM,
        _numbers(name, frame, risk)[first:stop, 0] if risk else None,
    )


def _read(path):
    import pandas

    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, expected a CSV or Parquet table"
        )
    try:
        if path.suffix == ".parquet":
            return path, pandas.read_parquet(path)
        return path, pandas.read_csv(path, dtype={"date": str, "tic": str})
    except Exception as error:  # pandas, gzip and Arrow each raise their own kinds
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a CSV or Parquet table ({reason})") from error


def _by_day_and_ticker(name, frame):
    """A copy with a row for every day and ticker, in this order; it was complete."""
    import pandas

    if frame.empty:
        raise ValueError(f"{name}: found no rows, expected one for each day and ticker")
    days = frame["date"].astype(str).str[:10]  # without the time, where there is one
    days = pandas.to_datetime(days, format="ISO8601", errors="coerce")
    for column, values, expected in (
        ("date", days, "a day such as 2020-07-01"),
        ("tic", frame["tic"], "a ticker"),
    ):
        if values.isna().any():
            row = int(np.argmax(values.isna()))
            raise ValueError(
                f"{name}: column {column!r}, row {row}: found "
                f"{frame[column].iloc[row]}, expected {expected}"
            )
    keys = pandas.MultiIndex.from_arrays([days, frame["tic"].astype(str)])
    every = pandas.MultiIndex.from_product(
        [keys.unique(level).sort_values() for level in (0, 1)]
    )
    twice, never = keys[keys.duplicated()], every.difference(keys)
    for wrong, found in ((twice, "more than one row"), (never, "no row")):
        if len(wrong):
            day, ticker = wrong[0]
            raise ValueError(
                f"{name}: {ticker} on {day.date()}: found {found}, expected one"
            )
    return frame.set_axis(keys).reindex(every)


def _numbers(name, frame, column, above=-np.inf):
    """A column of the completed frame as DxM float64, every one finite and `above`."""
    import pandas

    values = pandas.to_numeric(frame[column], errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > above)))
    if len(bad):
        day, ticker = frame.index[bad[0]]
        raise ValueError(
            f"{name}: column {column!r}, {ticker} on {day.date()}: found "
            f"{frame[column].iloc[bad[0]]}, expected a number"
            + (f" above {above:g}" if above > -np.inf else "")
        )
    return values.reshape(frame.index.levshape)


def compute_indicators(
    close_DxM: np.ndarray, high_DxM: np.ndarray, low_DxM: np.ndarray
) -> np.ndarray:
    """DxIxM float64: the eight `INDICATORS` by the formulas of stockstats 0.6.

    Windows are as long as the days before allow; a quotient that is not defined (no
    movement yet) is neutral: rsi 50, cci and dx 0. stockstats itself gives a cci of 0
    before day 30, and Bollinger bands that are not a number on day 1.
    """
    middle_DxM = _rolling(_mean, close_DxM, 20)
    band_DxM = 2.0 * _rolling(_std, close_DxM, 20)

    change_DxM = np.diff(close_DxM, axis=0, prepend=close_DxM[:1])
    gain_DxM = _smoothed(np.maximum(change_DxM, 0.0), 1 / 30)
    loss_DxM = _smoothed(np.maximum(-change_DxM, 0.0), 1 / 30)

    typical_DxM = (high_DxM + low_DxM + close_DxM) / 3.0
    excess_DxM = typical_DxM - _rolling(_mean, typical_DxM, 30)
    spread_DxM = 0.015 * _rolling(_mean_deviation, typical_DxM, 30)

    rise_DxM = np.diff(high_DxM, axis=0, prepend=high_DxM[:1])
    fall_DxM = -np.diff(low_DxM, axis=0, prepend=low_DxM[:1])
    up_DxM = _smoothed(np.maximum(rise_DxM, 0.0) * (rise_DxM > fall_DxM), 1 / 30)
    down_DxM = _smoothed(np.maximum(fall_DxM, 0.0) * (fall_DxM > rise_DxM), 1 / 30)

    indicators = {
        "macd": _smoothed(close_DxM, 2 / 13) - _smoothed(close_DxM, 2 / 27),
        "boll_ub": middle_DxM + band_DxM,
        "boll_lb": middle_DxM - band_DxM,
        "rsi_30": 100.0 * _quotient(gain_DxM, gain_DxM + loss_DxM, 0.5),
        "cci_30": _quotient(excess_DxM, spread_DxM, 0.0),
        "dx_30": 100.0 * _quotient(np.abs(up_DxM - down_DxM), up_DxM + down_DxM, 0.0),
        "close_30_sma": _rolling(_mean, close_DxM, 30),
        "close_60_sma": _rolling(_mean, close_DxM, 60),
    }
    return np.stack([indicators[name] for name in INDICATORS], axis=1)


def _rolling(statistic, values_DxM, days):
    return np.stack(
        [
            statistic(values_DxM[max(0, day + 1 - days) : day + 1])
            for day in range(len(values_DxM))
        ]
    )


def _mean(window_WxM):
    return window_WxM.mean(axis=0)


def _std(window_WxM):
    if len(window_WxM) == 1:
        return np.zeros_like(window_WxM[0])
    return window_WxM.std(axis=0, ddof=1)


def _mean_deviation(window_WxM):
    return np.abs(window_WxM - window_WxM.mean(axis=0)).mean(axis=0)


def _smoothed(values_DxM, weight):
    """The exponentially weighted mean over all days so far, weights summing to one."""
    means_DxM = np.empty_like(values_DxM)
    total, count = 0.0, 0.0
    for day, values in enumerate(values_DxM):
        total = values + (1.0 - weight) * total
        count = 1.0 + (1.0 - weight) * count
        means_DxM[day] = total / count
    return means_DxM


def _quotient(above, below, undefined):
    return np.divide(above, below, out=np.full_like(above, undefined), where=below != 0)


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


def open_accounts(market: Market, rules: Rules, days_E: np.ndarray) -> Accounts:
    """E environments at the start of an episode, each on its own day, all in cash."""
    if rules.risk_limit is not None and market.risk is None:
        raise ValueError(
            f"risk_limit={rules.risk_limit} needs a market with a level of risk, found "
            "none; load_market(..., risk='vix') reads one"
        )
    days_E = np.array(days_E, np.int64)
    cash_E = np.full(len(days_E), rules.initial_cash, np.float64)
    shares_ExM = np.zeros((len(days_E), len(market.tickers)))
    return Accounts(days_E, days_E, cash_E, shares_ExM)


def observe(market: Market, accounts: Accounts) -> np.ndarray:
    """ExS float64, S = 1 + 10M, raw: cash, closes, shares, then each indicator."""
    close_ExM = market.close[accounts.day]
    indicators_ExIM = market.indicators[accounts.day].reshape(len(close_ExM), -1)
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
      before the trades to the next day's closes, scaled; fees are therefore inside.
    """
    day_E = accounts.day
    close_ExM = market.close[day_E]
    wants_ExM = np.trunc(actions_ExM * actions_ExM.dtype.type(rules.hmax))
    wants_ExM = wants_ExM.astype(np.float64)
    # FinRL keeps a flag "do not trade" where the macd stands in its state.
    wants_ExM[market.indicators[day_E, MACD] == 1.0] = 0.0
    if rules.risk_limit is not None:
        # FinRL reads the level as a day begins, so there is none on the first one.
        alarm_E = day_E > accounts.first_day
        alarm_E &= market.risk[day_E] >= rules.risk_limit
        wants_ExM[alarm_E] = -np.inf

    sold_ExM = np.clip(-wants_ExM, 0.0, accounts.shares)
    cash_E = accounts.cash + np.vecdot(close_ExM, sold_ExM) * (1.0 - rules.cost)
    bought_ExM, cash_E = _buy(wants_ExM, close_ExM * (1.0 + rules.cost), cash_E)
    shares_ExM = accounts.shares - sold_ExM + bought_ExM
    after = Accounts(day_E + 1, accounts.first_day, cash_E, shares_ExM)
    gain_E = assets(market, after) - assets(market, accounts)
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
      start: the row every episode starts on, or None for a random one at each reset.
      episode_length: steps of an episode, by default up to the last day of the market.
      repeat_last_reward: FinRL's end of an episode, which takes one more step (and any
        after it): nothing is traded, the last reward comes again, and only then
        `terminated` is true. Otherwise the step onto the last day terminates.
    """

    def __init__(
        self,
        market: "Market | str | Path | pandas.DataFrame",
        *,
        rules: Rules = FINRL,
        start: int | None = 0,
        episode_length: int | None = None,
        repeat_last_reward: bool = False,
    ):
        self.market = market if isinstance(market, Market) else load_market(market)
        num_days, num_stocks = self.market.close.shape
        if episode_length is None:
            episode_length = num_days - 1 - (start or 0)
        latest = num_days - 1 - episode_length
        if episode_length < 1 or not 0 <= (start or 0) <= latest:
            raise ValueError(
                f"start={start}, episode_length={episode_length}: expected a row of "
                f"the market's {num_days} days and at least 1 step within them"
            )
        self.rules = rules
        self.episode_length = episode_length
        self.repeat_last_reward = repeat_last_reward
        self._starts = (0, latest) if start is None else (start, start)
        self._accounts = None
        self._reward = 0.0
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (num_stocks,), np.float32)
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (1 + (2 + len(INDICATORS)) * num_stocks,), np.float64
        )

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        first_day = self.np_random.integers(*self._starts, endpoint=True)
        self._accounts = open_accounts(self.market, self.rules, [first_day])
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


def scripted_actions(
    market: Market, day_E: np.ndarray, skill_E: np.ndarray, noise_ExM: np.ndarray
) -> np.ndarray:
    """ExM float32 in [-1, 1]: skill times what to do, plus noise.

    What to do is to buy what is cheap against its last 30 days (`cci_30` below 0) and
    to sell what is dear. Skill 1 does so, 0 acts at random, -1 does the opposite.
    """
    advice_ExM = np.clip(market.indicators[day_E, CCI] / -100.0, -1.0, 1.0)
    actions_ExM = skill_E[:, None] * advice_ExM + noise_ExM
    return np.clip(actions_ExM, -1.0, 1.0).astype(np.float32)


def behaviour_episodes(
    market: Market,
    num_episodes: int,
    episode_length: int | tuple[int, int],
    seed: int,
    *,
    rules: Rules = FINRL,
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
    # A market simulated from the same seed must not share these draws.
    rng = np.random.default_rng([seed, 1])
    if skills is None:
        skills = rng.uniform(-1.0, 1.0, num_episodes)
    skills = np.broadcast_to(skills, num_episodes)
    for first in range(0, num_episodes, EPISODES_AT_ONCE):
        skill_E = skills[first : first + EPISODES_AT_ONCE]
        lengths_E = rng.integers(shortest, longest, len(skill_E), endpoint=True)
        days_E = rng.integers(len(market.dates) - longest, size=len(skill_E))
        accounts = open_accounts(market, rules, days_E)
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


for _id, _entry in (("StockTrading", TradingEnv), ("SimulatedTrading", simulated_env)):
    if f"dt_jax/{_id}-v0" not in gymnasium.registry:
        gymnasium.register(f"dt_jax/{_id}-v0", f"{__name__}:{_entry.__name__}")

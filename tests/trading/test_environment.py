# SPDX-License-Identifier: Apache-2.0
"""FinRL's rules are kept to the cent, and Gymnasium accepts the environments."""

import json
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dt_jax import trading
from dt_jax.trading.backtest import STRATEGIES
from dt_jax.trading.environment import (
    TradingEnv,
    assets,
    observe,
    open_accounts,
    trade_day,
)
from dt_jax.trading.indicators import INDICATORS
from dt_jax.trading.market import Market, load_market
from dt_jax.trading.rules import FINRL, Rules, rules_for
from dt_jax.trading.simulation import (
    SIMULATED,
    simulate_market,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/trading.json").read_text())


CASES = {case["name"]: case for case in GOLDEN["cases"]}


def market_of(close_DxM, *, indicators_IxM=None, risk=None):
    """A market of given prices, whose indicators stay as they are on the first day."""
    close_DxM = np.array(close_DxM, np.float64)
    if indicators_IxM is None:
        indicators_IxM = np.zeros((len(INDICATORS), close_DxM.shape[1]))
    return Market(
        np.datetime64("2020-07-01") + np.arange(len(close_DxM)),
        tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZabc"[: close_DxM.shape[1]]),
        close_DxM,
        np.broadcast_to(indicators_IxM, (len(close_DxM), *np.shape(indicators_IxM))),
        None if risk is None else np.array(risk, np.float64),
    )


def trade(close_DxM, actions, rules=FINRL, **market):
    """The accounts after each of the actions, for one environment, and the rewards."""
    market = market_of(close_DxM, **market)
    accounts, rewards = [open_accounts(market, rules, [0])], []
    for action in actions:
        after, reward_E = trade_day(market, rules, accounts[-1], np.array([action]))
        accounts.append(after)
        rewards.append(reward_E[0])
    return accounts[1:], rewards


@pytest.mark.parametrize("name", CASES)
def test_golden_steps_of_finrl(name):
    case = CASES[name]
    market = market_of(
        case["close"], indicators_IxM=GOLDEN["first_indicators"], risk=case["vix"]
    )
    rules = Rules(risk_limit=case["risk_limit"])
    env = TradingEnv(market, rules=rules, repeat_last_reward=True)
    state, info = env.reset()
    num_stocks = len(market.tickers)
    for step in case["steps"]:
        held = state[1 + num_stocks : 1 + 2 * num_stocks]
        assert info["assets"] == pytest.approx(step["assets_before"], rel=1e-9)
        action = np.array(step["action"], np.float32)
        state, reward, done, truncated, info = env.step(action)
        now_held = state[1 + num_stocks : 1 + 2 * num_stocks]
        assert state.dtype == np.float64
        assert (now_held == step["holdings"]).all()
        assert (now_held - held == step["shares_executed"]).all()
        assert state[0] == pytest.approx(step["cash"], rel=1e-9)
        assert info["assets"] == pytest.approx(step["assets_after"], rel=1e-9)
        assert reward == pytest.approx(step["reward"], rel=1e-9, abs=1e-13)
        assert (done, truncated) == (step["done"], False)


def test_golden_first_state():
    case = CASES["five_steps"]
    market = market_of(case["close"], indicators_IxM=GOLDEN["first_indicators"])
    state, info = TradingEnv(market).reset()
    assert GOLDEN["indicators"] == list(INDICATORS)
    assert state.shape == (291,)
    for place, value in GOLDEN["first_state"].items():
        assert state[int(place)] == pytest.approx(value, rel=1e-12)
    assert state.sum() == pytest.approx(GOLDEN["first_state_sum"], rel=1e-9)
    assert info == {"date": "2020-07-01", "assets": 1e6, "traded": 0.0}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wants_are_truncated_in_the_dtype_of_the_actions(dtype):
    hundredths = np.arange(1, 100)
    actions = (hundredths / 100).astype(dtype)[:, None]
    market = market_of([[1.0], [1.0]])
    accounts = open_accounts(market, FINRL, np.zeros(99))
    # A NumPy integer of a wider type must not widen the product.
    rules = FINRL._replace(hmax=np.int64(100))
    after, _ = trade_day(market, rules, accounts, actions)
    short = hundredths[after.shares[:, 0] == hundredths - 1]
    assert short.tolist() == GOLDEN["truncation"][f"{dtype}_loses_one"]
    assert (after.shares[:, 0] >= hundredths - 1).all()


def test_three_days_on_paper():
    rules = Rules(initial_cash=1000.0, cost=0.1, hmax=10, reward_scaling=0.5)
    close = [[10.0, 20.0], [20.0, 20.0], [30.0, 10.0]]
    (first, second), rewards = trade(close, [[0.5, 0.2], [-1.0, 1.0]], rules)
    # Day 1: 5 at 11 and 2 at 22 cost 99; 901 left; 5 * 20 + 2 * 20 the day after.
    assert first.cash[0] == pytest.approx(901.0)
    assert first.shares.tolist() == [[5.0, 2.0]]
    assert rewards[0] == pytest.approx(0.5 * (901 + 140 - 1000))
    # Day 2: all 5 (not 10) sold for 18 each, 10 bought at 22; 12 * 10 the day after.
    assert second.cash[0] == pytest.approx(901.0 + 90.0 - 220.0)
    assert second.shares.tolist() == [[0.0, 12.0]]
    assert rewards[1] == pytest.approx(0.5 * (771 + 120 - 1041))
    assert assets(market_of(close), second) == pytest.approx(891.0)


@pytest.mark.parametrize(
    ("actions", "bought"),
    [
        ([0.3, 0.3, 0.3], [0, 1, 3]),  # ties: from the last column to the first
        ([0.3, 0.2, 0.2], [3, 0, 1]),  # the largest want first
        ([0.1, 0.4, -0.9], [0, 4, 0]),
        ([0.0999, -0.0999, 0.0], [0, 0, 0]),  # less than one share is nothing
    ],
)
def test_who_buys_when_cash_is_short(actions, bought):
    rules = Rules(initial_cash=100.0, cost=0.0, hmax=10)
    (after,), _ = trade([[25.0] * 3] * 2, [actions], rules)
    assert after.shares[0].tolist() == bought


def test_what_is_left_buys_the_next_stock():
    rules = Rules(initial_cash=100.0, cost=0.0, hmax=10)
    (after,), _ = trade([[30.0, 4.0]] * 2, [[0.9, 0.8]], rules)
    assert (after.shares[0].tolist(), after.cash[0]) == ([3.0, 2.0], 2.0)


def test_sales_pay_for_purchases_of_the_same_day():
    rules = Rules(initial_cash=100.0, cost=0.0, hmax=10)
    (_, after), _ = trade([[10.0, 10.0]] * 3, [[1.0, 0.0], [-1.0, 1.0]], rules)
    assert after.shares[0].tolist() == [0.0, 10.0]


def test_at_the_risk_limit_all_is_sold_but_not_on_the_first_day():
    rules = Rules(initial_cash=100.0, cost=0.0, hmax=10, risk_limit=30.0)
    buy = [0.2, 0.2]
    (first, second, third), _ = trade(
        [[10.0, 10.0]] * 4, [buy] * 3, rules, risk=[99.0, 30.0, 29.9, 0.0]
    )
    assert first.shares[0].tolist() == [2.0, 2.0]
    assert (second.shares[0].tolist(), second.cash[0]) == ([0.0, 0.0], 100.0)
    assert third.shares[0].tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match="needs a market with a level of risk"):
        open_accounts(market_of([[1.0]]), rules, [0])


def test_fees_by_side_and_ticker_on_paper():
    rules = rules_for(
        ("A", "B"),
        {
            **{"initial_cash": 100.0, "hmax": 10, "reward_scaling": 1.0},
            **{"cost": {"A": 0.1, "B": 0.0}, "sell_cost": [0.0, 0.5]},
            **{"initial_shares": {"B": 4}},
        },
    )
    close = [[10.0, 20.0], [10.0, 20.0], [10.0, 20.0]]
    (first, second), rewards = trade(close, [[0.5, 0.1], [-0.5, -0.2]], rules)
    # 100 and 4 at 20; 5 at 11 and 1 at 20 are bought.
    assert first.cash[0] == pytest.approx(100 - 55 - 20)
    assert first.shares.tolist() == [[5.0, 5.0]]
    assert rewards[0] == pytest.approx(-5)
    # 5 are sold at 10, and 2 at 20 for half.
    assert second.cash[0] == pytest.approx(25 + 50 + 20)
    assert second.shares.tolist() == [[0.0, 3.0]]
    assert rewards[1] == pytest.approx(-20)


def test_an_account_opens_with_its_shares():
    env = TradingEnv(market_of([[10.0, 20.0]] * 3), initial_shares=[3, 0], cost=0.0)
    state, info = env.reset()
    assert state[:5].tolist() == [1e6, 10.0, 20.0, 3.0, 0.0]
    assert info["assets"] == 1e6 + 30
    state, _, _, _, info = env.step(np.float32([-1, 0]))
    assert (state[0], state[3], info["traded"]) == (1e6 + 30, 0.0, 30.0)


@pytest.mark.parametrize(
    ("names", "first"), [(("macd", "x"), [0, 100]), (("x", "macd"), [100, 0])]
)
def test_the_flag_is_the_macd_wherever_it_stands(names, first):
    indicators = np.array([[1.0, 0.0], [0.0, 1.0]])
    market = market_of([[10.0, 10.0]] * 2, indicators_IxM=indicators)
    env = TradingEnv(market._replace(indicator_names=names))
    assert env.reset()[0].shape == (1 + 4 * 2,)
    assert env.step(np.ones(2, np.float32))[0][3:5].tolist() == first
    env = TradingEnv(market._replace(indicator_names=("x", "y")))
    env.reset()
    assert env.step(np.ones(2, np.float32))[0][3:5].tolist() == [100.0, 100.0]


def test_a_macd_of_one_forbids_trading_that_stock():
    indicators = np.zeros((8, 2))
    indicators[0, 0] = 1.0
    (after,), _ = trade([[10.0, 10.0]] * 2, [[1.0, 1.0]], indicators_IxM=indicators)
    assert after.shares[0].tolist() == [0.0, 100.0]


RELATIVE = {"initial_cash": 1000.0, "cost": 0.25, "reward_scaling": 1.0}


@pytest.mark.parametrize(
    ("benchmark", "accounts"),
    [
        ("cash", [1000, 1000, 1000]),
        # 200 are the fee of buying for 800: 400 of each stock, 40 shares and 20.
        ("buy_and_hold", [1000, 1200, 2000]),
        # Then 800 and 400: of a sale of s comes 0.75 s, for which 0.6 s is bought, and
        # 800 - s = 400 + 0.6 s: 250 of 800 are sold, 550 left of each.
        ("equal_weight", [1000, 1200, 1375]),
    ],
)
def test_relative_rewards_on_paper(benchmark, accounts):
    # The first stock doubles twice, the second stays, then halves.
    close_DxM = [[10.0, 20.0], [20.0, 20.0], [40.0, 20.0]]
    if benchmark == "equal_weight":
        close_DxM[2] = [40.0, 10.0]
    # 10 shares of the first for 125: worth 100, 200, 400.
    actions, own = [[0.1, 0.0], [0.0, 0.0]], [1000, 1075, 1275]
    rules = Rules(**RELATIVE)
    _, plain = trade(close_DxM, actions, rules)
    assert plain == pytest.approx(np.diff(own))
    _, relative = trade(close_DxM, actions, rules._replace(benchmark=benchmark))
    assert relative == pytest.approx(np.diff(own) - np.diff(accounts))
    # As an environment, where the episodes begin a day earlier or later.
    market = market_of([[9.0, 30.0], *close_DxM])
    env = TradingEnv(market, start=1, rules=RELATIVE, benchmark=benchmark)
    env.reset()
    paid = [env.step(np.array(action))[1] for action in actions]
    assert paid == pytest.approx(relative)


@pytest.mark.parametrize("benchmark", ["cash", "buy_and_hold", "equal_weight"])
def test_relative_rewards_are_the_difference_of_the_final_accounts(benchmark):
    market = simulate_market(60, 5, seed=3)
    rules = Rules(
        initial_cash=30_000.0,
        cost=np.linspace(0.001, 0.02, 5),
        sell_cost=0.005,
        initial_shares=np.arange(5.0),
        benchmark=benchmark,
    )
    rng, days_E = np.random.default_rng(0), np.arange(12)
    first = accounts = open_accounts(market, rules, days_E, 40)
    total_E = np.zeros(len(days_E))
    for _ in range(40):
        actions_ExM = rng.uniform(-1, 1, accounts.shares.shape)
        accounts, rewards_E = trade_day(market, rules, accounts, actions_ExM)
        total_E += rewards_E
    ours_E = assets(market, accounts) - assets(market, first)
    for day, total, ours in zip(days_E, total_E, ours_E, strict=True):
        curve = STRATEGIES[benchmark](market.close[day : day + 41], rules)
        theirs = curve.assets[-1] - curve.assets[0]
        assert total / rules.reward_scaling == pytest.approx(ours - theirs, rel=1e-9)
    # Both begin with the same money, and longer episodes change nothing before.
    assert first.benchmark[0] == pytest.approx(assets(market, first), rel=1e-12)
    longer = open_accounts(market, rules, days_E)
    np.testing.assert_array_equal(longer.benchmark[:41], first.benchmark)


def test_many_environments_at_once_equal_each_alone():
    market = simulate_market(60, 5, seed=3)
    market = market._replace(risk=np.linspace(0, 40, 60))
    rules = Rules(30_000.0, risk_limit=35.0, benchmark="equal_weight")
    rng = np.random.default_rng(0)
    days_E = rng.integers(40, size=32)
    # Rounded, so that there are ties.
    actions_TxExM = rng.uniform(-1, 1, (15, 32, 5)).round(1)
    accounts = open_accounts(market, rules, days_E)
    alone = [open_accounts(market, rules, [day]) for day in days_E]
    for actions_ExM in actions_TxExM:
        accounts, rewards_E = trade_day(market, rules, accounts, actions_ExM)
        states_ExS = observe(market, accounts)
        for env in range(32):
            alone[env], reward = trade_day(
                market, rules, alone[env], actions_ExM[env : env + 1]
            )
            assert reward[0] == rewards_E[env]
            assert (observe(market, alone[env])[0] == states_ExS[env]).all()
    assert (accounts.cash >= 0).all()
    assert (accounts.shares >= 0).all()
    assert (accounts.cash < 1000).any(), "cash was never short"


def test_gymnasium_accepts_the_environments():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of unbounded observations
        check_env(TradingEnv(simulate_market(30, 3, 0)), skip_render_check=True)
        for name, options in (
            ("StockTrading", {"market": simulate_market(30, 3, 0)}),
            ("SimulatedTrading", {"seed": 1, "episode_length": 7}),
        ):
            env = gymnasium.make(f"dt_jax/{name}-v0", **options)
            check_env(env.unwrapped, skip_render_check=True)
        assert env.unwrapped.episode_length == 7
        assert env.unwrapped.rules == SIMULATED


def test_importing_again_registers_nothing_twice():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(Path(trading.__file__).read_text(), {"__name__": "dt_jax.trading"})
    ours = {name for name in gymnasium.registry if name.startswith("dt_jax/")}
    assert ours == {"dt_jax/StockTrading-v0", "dt_jax/SimulatedTrading-v0"}


@pytest.mark.parametrize("repeat", [False, True])
def test_the_end_of_an_episode(repeat):
    market = market_of([[10.0], [11.0], [13.0]])
    env = TradingEnv(market, repeat_last_reward=repeat)
    env.reset()
    steps = [env.step(np.ones(1, np.float32))[1:3] for _ in range(2)]
    # 100 shares rise by 1, then 200 by 2; a fee of 0.1 % of 1000, then of 1100.
    assert [reward for reward, _ in steps] == pytest.approx([0.0099, 0.03989])
    assert [done for _, done in steps] == [False, not repeat]
    if repeat:
        for _ in range(2):
            state, reward, done, _, _ = env.step(-np.ones(1, np.float32))
            assert (reward, done) == (steps[-1][0], True)
            assert state[2] == 200.0, "the last call must not trade"
    else:
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(np.ones(1, np.float32))
    assert env.reset()[0][2] == 0.0


def table_of(path, days=20, times=("",)):
    """A table of stocks A and B, whose closes are 1, 2, 3, ... and 101, 102, ..."""
    rows = [
        f"{day}{time},{tic},{first + place * len(times) + number},{place},0.5"
        for place, day in enumerate(np.datetime64("2020-07-01") + np.arange(days))
        for number, time in enumerate(times)
        for tic, first in (("A", 1), ("B", 101))
    ]
    path.write_text("\n".join(["Date,Ticker,Close,vix,mood", *rows]))
    return str(path)


def test_dates_bound_the_episodes(tmp_path):
    table = table_of(tmp_path / "prices.csv")
    for market in (table, load_market(table)):
        env = TradingEnv(market, start="2020-07-06", end="2020-07-09")
        dates, done = [env.reset()[1]["date"]], False
        assert env.reset()[0][1:3].tolist() == [6.0, 106.0]
        while not done:
            _, _, done, _, info = env.step(np.zeros(2))
            dates.append(info["date"])
        assert dates == ["2020-07-06", "2020-07-07", "2020-07-08"]
    # The indicators have seen the days before.
    assert env.reset()[0][-2] == np.mean([1, 2, 3, 4, 5, 6])
    env = TradingEnv(table, start=np.datetime64("2020-07-04"), episode_length=2)
    assert [env.step(np.zeros(2))[2] for _ in range(2) if env.reset()] == [False] * 2
    env = TradingEnv(table, start=None, end="2020-07-05", episode_length=1)
    assert {env.reset(seed=seed)[1]["date"][-2:] for seed in range(30)} == {
        *("01", "02", "03")
    }
    env = TradingEnv(table, start=2, end="2020-07-05")
    assert env.reset()[1]["date"] == "2020-07-03"
    assert env.step(np.zeros(2))[2]


def test_what_the_prompt_can_say(tmp_path):
    """Arguments as their JSON gives them reach the market and the rules."""
    kwargs = {
        **{"market": table_of(tmp_path / "prices.csv"), "drop": ["B"], "risk": "vix"},
        **{"indicators": ["mood", "macd"], "start": "2020-07-03", "cost": {"A": 0.25}},
        **{"rules": {"initial_cash": 50, "risk_limit": 3, "initial_shares": {"A": 7}}},
    }
    env = gymnasium.make("dt_jax/StockTrading-v0", **json.loads(json.dumps(kwargs)))
    state, _ = env.reset()
    assert state[:4].tolist() == [50.0, 3.0, 7.0, 0.5]
    assert state.shape == (5,)
    # 10 cost 3.75 each of the 50; the next day, of a vix of 3, all are sold at 4.
    state = env.step(np.float32([0.1]))[0]
    assert state[:3].tolist() == [50 - 10 * 3.75, 4.0, 17.0]
    assert env.step(np.float32([0.1]))[0][:3].tolist() == [12.5 + 17 * 3, 5.0, 0.0]


def test_times_of_a_day(tmp_path):
    times = ("T09:30:00", "T12:30:00")
    table = table_of(tmp_path / "prices.csv", times=times)
    env = TradingEnv(table, start="2020-07-02T12:00")
    assert env.reset()[1]["date"] == "2020-07-02T12:30:00"
    assert env.step(np.ones(2))[4]["date"] == "2020-07-03T09:30:00"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rules": {"hamx": 5}}, "rules: 'hamx': no such name; did you mean hmax?"),
        ({"rules": "FINRL"}, "rules='FINRL': expected Rules or a mapping of its"),
        ({"inital_shares": 5}, "'inital_shares': no such name; did you mean initial_"),
        ({"strat": 0}, "'strat': no such name; did you mean start?"),
        ({"start": True}, "start=True: expected a day such as '2020-07-01', a row or"),
        ({"start": 1.5}, "start=1.5: expected a day such as"),
        ({"start": [0, 1]}, "start=[0, 1]: expected a day such as"),
        ({"start": "soon"}, "start='soon': expected a day such as '2020-07-01'"),
        ({"start": "2021-01-01"}, "found no day from 2021-01-01 to before None, exp"),
        ({"end": {}}, "end={}: expected a day such as"),
        ({"episode_length": "5"}, "episode_length='5': expected a whole number or No"),
        ({"repeat_last_reward": 1}, "repeat_last_reward=1: expected True or False"),
        ({"drop": ["A"]}, "drop: found a Market, expected a table to load"),
        ({"indicators": []}, "indicators: found a Market, expected a table to load"),
        ({"cost": "free"}, "cost='free': expected a number of at least 0 and below"),
        ({"risk_limit": 5}, "risk_limit=5 needs a market with a level of risk, found"),
        (
            {"start": "2020-07-03", "episode_length": 1},
            "start=2020-07-03, episode_length=1: expected a row of the market's 1 d",
        ),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared
        TradingEnv(market_of([[10.0]] * 3), **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    for market in (5, ["prices.csv"], None):
        with pytest.raises(ValueError, match="expected a CSV or Parquet file, or a pa"):
            TradingEnv(market)


def test_what_a_day_traded():
    env = TradingEnv(market_of([[10.0, 1.0]] * 2 + [[20.0, 2.0]] * 2))
    infos = [env.reset()[1]]
    infos += [env.step(np.float32([a, b]))[4] for a, b in ([1, 0], [-0.5, 1], [0, 0])]
    # 100 at 10; the next day, before the prices double, 50 at 10 sold and 100 at 1.
    assert [info["traded"] for info in infos] == [0.0, 1000.0, 600.0, 0.0]


def test_step_needs_a_reset_and_a_whole_action():
    env = TradingEnv(market_of([[10.0, 1.0]] * 3))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.ones(2, np.float32))
    env.reset()
    for action in (np.ones(3), np.array([np.nan, 0.0])):
        with pytest.raises(ValueError, match="expected 2 finite numbers"):
            env.step(action)


def test_start_and_length_of_episodes():
    market = simulate_market(30, 2, 0)
    env = TradingEnv(market, start=None, episode_length=20)
    dates = [env.reset(seed=seed)[1]["date"] for seed in range(60)]
    assert set(dates) == set(market.dates[:10].astype(str))
    assert env.reset(seed=5)[1]["date"] == dates[5]
    done, steps = False, 0
    while not done:
        done, steps = env.step(np.zeros(2, np.float32))[2], steps + 1
    assert steps == 20
    env = TradingEnv(market, start=27)
    assert env.reset()[1]["date"] == str(market.dates[27])
    assert [env.step(np.zeros(2))[2] for _ in range(2)] == [False, True]

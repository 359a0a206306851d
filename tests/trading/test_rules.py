# SPDX-License-Identifier: Apache-2.0
"""Rules from JSON: by ticker or for all, and refused in one line."""

import numpy as np
import pytest

from dt_jax.trading.rules import FINRL, Rules, rules_for

TICKERS = ("AA", "BB", "CC")


def test_numbers_stay_what_they_are():
    assert rules_for(TICKERS, {}) == FINRL == Rules()
    rules = {"initial_cash": 5, "risk_limit": 30, "sell_cost": 0.5, "hmax": np.int64(7)}
    assert rules_for(TICKERS, rules) == FINRL._replace(**rules)
    assert rules_for(TICKERS, Rules(cost=0.1), {"hmax": 3}) == Rules(cost=0.1, hmax=3)
    assert (FINRL.cost_of_sale, Rules(sell_cost=0.0).cost_of_sale) == (0.001, 0.0)


@pytest.mark.parametrize(
    "shares", [[5, 0, 7], (5, 0, 7), np.array([5, 0, 7]), {"CC": 7, "AA": 5}]
)
def test_fields_by_ticker(shares):
    costs = {"BB": 0.2, "CC": 0.3, "AA": 0.1}
    rules = rules_for(TICKERS, {"initial_shares": shares, "cost": costs})
    assert rules.initial_shares.tolist() == [5.0, 0.0, 7.0]
    assert rules.cost.tolist() == [0.1, 0.2, 0.3]
    again = rules_for(TICKERS, rules)
    assert again.cost.tolist() == rules.cost.tolist()
    assert rules_for(("1", "2"), {"cost": {1: 0.1, "2": 0}}).cost.tolist() == [0.1, 0]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (5, "rules=5: expected Rules or a mapping of its fields"),
        (None, "rules=None: expected Rules or a mapping"),
        (
            {"benchmark": "equal"},
            "benchmark='equal': expected one of cash, buy_and_hold",
        ),
        ({"benchmark": 1}, "benchmark=1: expected one of cash, buy_and_hold, equal_w"),
        ({"csot": 0.1}, "rules: 'csot': no such name; did you mean cost?"),
        ({"buy_cost_pct": 0.1}, "rules: 'buy_cost_pct': no such name; did you mean co"),
        ({"buy_cost": 0.1}, "rules: 'buy_cost': no such name; did you mean cost?"),
        ({"initial_amount": 1}, "rules: 'initial_amount': no such name; did you mean "),
        ({"x": 1}, "rules: 'x': no such name, expected one of initial_cash, cost, h"),
        ({"cost": "0.1"}, "cost='0.1': expected a number of at least 0 and below 1"),
        ({"cost": None}, "cost=None: expected a number of at least 0 and below 1"),
        ({"cost": 1.0}, "cost=1.0: expected a number of at least 0 and below 1"),
        ({"sell_cost": [0, -1, 0]}, "sell_cost=-1: expected a number of at least 0 an"),
        ({"cost": [0.1, 0.2]}, "cost: found 2 numbers, expected one, or one for each "),
        ({"cost": {"AA": 0.1}}, "cost: nothing for BB, expected a number for each tic"),
        ({"initial_shares": {"DD": 1}}, "initial_shares: no ticker 'DD', found AA, B"),
        ({"initial_shares": 0.5}, "initial_shares=0.5: expected a whole number of at"),
        ({"initial_cash": -1}, "initial_cash=-1: expected a number of at least 0"),
        ({"initial_cash": float("inf")}, "initial_cash=inf: expected a number of at"),
        ({"hmax": [1, 2, 3]}, "hmax=[1, 2, 3]: expected a number of at least 0"),
        ({"hmax": True}, "hmax=True: expected a number"),
        ({"risk_limit": "30"}, "risk_limit='30': expected a number"),
        ({"reward_scaling": float("nan")}, "reward_scaling=nan: expected a number"),
    ],
)
def test_wrong_rules_are_refused_in_one_line(rules, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared
        rules_for(TICKERS, rules)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)

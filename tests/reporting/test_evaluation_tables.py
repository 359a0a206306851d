# SPDX-License-Identifier: Apache-2.0
"""The evaluation's figures by hand, its warnings, its text."""

import json

import numpy as np
import pytest

from dt_jax.reporting.evaluation import (
    RANDOM,
    ActorResult,
    evaluation_report,
    evaluation_scalars,
)
from dt_jax.reporting.evaluation_tables import describe_evaluation
from dt_jax.trading.backtest import Curves


def summary_of(returns_E):
    names = ("min", "10 %", "median", "90 %", "max")
    levels = np.quantile(returns_E, (0.0, 0.1, 0.5, 0.9, 1.0)).tolist()
    moments = {"mean": float(returns_E.mean()), "std": float(returns_E.std())}
    return dict(zip(names, levels, strict=True)) | moments


def actor(name, target, returns, lengths=(4, 4), **info):
    return ActorResult(name, target, np.array(returns, float), np.array(lengths), info)


def trader(name, target, *assets):
    info = {
        "assets": np.array(assets, float)[:, None],
        "traded": np.array([0.0] + [assets[0]] * (len(assets) - 1))[:, None],
    }
    return actor(name, target, [assets[-1] - assets[0]], [len(assets) - 1], **info)


def report_of(actors, *, longest=4, data=range(11), **options):
    return evaluation_report(
        actors,
        environment="Some-v0",
        step=1500,
        first_seed=7,
        data_returns=summary_of(np.array(data, np.float32)),
        longest=longest,
        **options,
    )


def of_targets(achieved, targets=(1.0, 2.0, 3.0, 4.0)):
    pairs = zip(targets, achieved, strict=False)
    actors = [actor(f"target {t:g}", t, [a, a]) for t, a in pairs]
    return report_of([*actors, actor(RANDOM, None, [1, 1])])


def test_the_figures_by_hand():
    actors = [
        actor("target 8", 8.0, [4, 6], [3, 4])._replace(truncated=2),
        actor(RANDOM, None, [0, 2]),
    ]
    report = report_of(actors)
    data = summary_of(np.arange(11, dtype=np.float32))
    expected = {
        "environment": "Some-v0",
        "step": 1500,
        "episodes": 2,
        "first_seed": 7,
        "data": {"returns": data, "longest": 4},
        "auto_target": None,
        "reference": {"low": 1, "high": 9, "given": False},
        "actors": [
            {
                "name": "target 8",
                "target": 8,
                "returns": [4, 6],
                "lengths": [3, 4],
                "truncated": 2,
                "mean": 5,
                "std": 1,
                "error": 1,  # of 4 and 6, or 0 and 2: sqrt(2) / sqrt(2)
                "normalized": 50,
                "backtest": None,
                "gain": None,
            },
            {
                "name": RANDOM,
                "target": None,
                "returns": [0, 2],
                "lengths": [4, 4],
                "truncated": 0,
                "mean": 1,
                "std": 1,
                "error": 1,
                "normalized": 0,
                "backtest": None,
                "gain": None,
            },
        ],
        "spearman": None,
        "verdicts": [],
        "backtest_references": None,
        "curves": None,
        "periods_a_year": None,
        "warnings": [],
    }
    assert report == expected
    assert "  cut by a time limit: 2 of 4 episodes" in describe_evaluation(report)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize(
    ("near", "told"),
    [
        (11, "the highest return, of quantile 97.9%, with enough trajectories near it, "
         "11 of 512 within 372.5 (11 are enough)"),
        (10, "the median, as no return of the 512 trajectories has another within "
         "372.5"),
    ],
)  # fmt: skip
def test_why_a_target_was_chosen(near, told):
    actors = [actor("target 8", 8.0, [4, 6]), actor(RANDOM, None, [0, 2])]
    auto = {"return": 8.0, "quantile": 0.979, "near": near, "enough": 11}
    auto |= {"within": 372.5, "trajectories": 512}
    report = report_of(actors, auto_target=auto)
    assert report["auto_target"] == auto
    text = " ".join(describe_evaluation(report).split())
    assert f" target 8, by auto: {told} " in f"{text} "


def test_the_main_figures_by_tag():
    # The account goes from 100 to 80 to 120: up by 20 %, 20 % down in between.
    actors = [trader("target 5,000", 5000.0, 100, 80, 120)]
    actors.append(actor(RANDOM, None, [1, 1]))
    found = evaluation_scalars(report_of(actors))
    sharpe = found.pop("evaluation/sharpe/target_5000")
    # Days of -20 % and +50 %: mean 15 %, sample deviation 70 % / sqrt(2).
    assert sharpe == pytest.approx(0.15 / 0.7 * (2 * 252) ** 0.5)
    assert found == pytest.approx(
        {
            "evaluation/return/target_5000": 20.0,
            "evaluation/normalized/target_5000": 100 * (20 - 1) / (9 - 1),
            "evaluation/total_return/target_5000": 0.2,
            "evaluation/max_drawdown/target_5000": 0.2,
            "evaluation/return/random_actions": 1.0,
            "evaluation/normalized/random_actions": 0.0,
        }
    )


def test_the_rank_correlation_is_a_figure_where_it_is_defined():
    found = evaluation_scalars(of_targets([1, 2, 5, 9]))
    assert found["evaluation/rank_correlation"] == 1.0


def test_a_given_score_range():
    actors = [actor("target 8", 8.0, [4, 6])]
    assert report_of(actors, score_range=(3, 5))["actors"][0]["normalized"] == 100
    report = report_of(actors, score_range=(3, 3))
    assert report["actors"][0]["normalized"] is None
    assert "0 is a return of 3.00, 100 one of 3.00" in describe_evaluation(report)


@pytest.mark.parametrize(
    ("achieved", "expected"),
    [
        ([1, 2, 5, 9], 1.0),
        ([9, 5, 2, 1], -1.0),
        ([1, 4, 2, 9], 0.8),  # 1 - 6 x (1 + 1) / (4 x 15)
        ([1, 2, 2, 9], 0.9**0.5),  # ranks 1, 2.5, 2.5, 4
        ([2, 2, 2, 2], None),
        ([1, 2], None),
    ],
)
def test_the_rank_correlation_by_hand(achieved, expected):
    assert of_targets(achieved)["spearman"] == pytest.approx(expected)


def test_each_warning_comes_when_and_only_when_it_should():
    def warnings(*texts, of):
        assert len(of["warnings"]) == len(texts)
        for found, text in zip(of["warnings"], texts, strict=True):
            assert found.startswith(text)

    fine = [actor("target 8", 8.0, [4, 6]), actor(RANDOM, None, [0, 2])]
    warnings(of=report_of(fine))
    warnings("episodes take up to 4 steps", of=report_of(fine, longest=3))
    beyond = "targets beyond the data's returns (0 to 7), of which nothing is known: 8"
    warnings(beyond, of=report_of(fine, data=range(8)))
    warnings(beyond.replace("0 to 7", "9 to 11"), of=report_of(fine, data=[9, 11]))
    warnings("achieved returns hardly rise", of=of_targets([9, 5, 2, 1]))
    warnings(of=of_targets([1, 4, 2, 9]))


def test_accounts_are_judged_where_there_are_any():
    actors = [
        trader("target 10", 10.0, 100, 110, 99, 108.9),
        trader(RANDOM, None, 5, 5),
    ]
    held = {"buy and hold": Curves(*(np.array([[2.0], [3.0]]),) * 2)}
    report = report_of(actors, backtest_references=held)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    played, idle = (actor["backtest"] for actor in report["actors"])
    assert played["total_return"] == pytest.approx(0.089)
    assert played["sharpe"] == pytest.approx(21**0.5)
    assert idle["sharpe"] is None
    assert report["backtest_references"]["buy and hold"]["total_return"] == 0.5


def test_accounts_are_shown_beyond_the_market_of_the_same_episodes():
    # Two episodes, the second one shorter; the market gains 50 % and loses 10 %.
    def account(*assets_DxE):
        assets_DxE = np.array(assets_DxE)
        return {"assets": assets_DxE, "traded": np.zeros_like(assets_DxE)}

    nan = float("nan")
    ours = account([10.0, 10.0], [12.0, 11.0], [16.0, nan])
    market = account([1.0, 1.0], [1.2, 0.9], [1.5, nan])
    actors = [
        actor("target 8", 8.0, [4, 6], **ours),
        actor(RANDOM, None, [0, 2], **market),
    ]
    report = report_of(actors, backtest_references={"equal weight": Curves(**market)})
    # By 10 % and 20 %: 15 % on average.
    gained, nothing = (actor["gain"] for actor in report["actors"])
    assert gained == pytest.approx({"mean": 0.15, "error": 0.05})
    assert nothing == {"mean": 0.0, "error": 0.0}
    # Gains of 60 % and 10 %, in two days and in one, which alone does not fluctuate.
    played = report["actors"][0]["backtest"]
    found = played["total_return"], played["errors"]["total_return"]
    assert found == pytest.approx((0.35, 0.25))
    assert played["sharpe"] is not None
    assert played["errors"]["sharpe"] is None
    # By day: 10 and 10, 12 and 11, 16 alone.
    shown = report["curves"]["accounts"]["target 8"]["assets"]
    assert shown == {"mean": [10, 11.5, 16], "error": [0, 0.5, 0]}
    # The market's largest losses are 0 and 10 %.
    assert report["backtest_references"]["equal weight"]["errors"][
        "max_drawdown"
    ] == pytest.approx(0.05)
    text = describe_evaluation(report)
    assert "target 8        +35.0%  25.0%" in text
    assert "56.1%     -  101.02     -      5.0%  5.0%" in text
    assert "beyond equal weight  ± se" in text
    assert "target 8                     +15.0%  5.0%" in text


@pytest.mark.parametrize(
    ("periods", "note"),
    [
        (365.0, "a year has 365 days"),
        (52.0, "a year has 52 weeks"),
        (12.0, "a year has 12 months"),
        (1764.0, "a year has 1,764 rows"),
        (98280.0, "a year has 98,280 rows"),
    ],
)
def test_annual_figures_are_of_the_markets_own_year(periods, note):
    held = {"buy and hold": Curves(*(np.array([[100.0], [100.01]]),) * 2)}
    actors = [
        trader("target 10", 10.0, 100, 110, 99, 108.9),
        trader(RANDOM, None, 5, 5),
    ]
    report = report_of(actors, backtest_references=held, periods_a_year=periods)
    assert report["periods_a_year"] == periods
    played = report["actors"][0]["backtest"]
    # Three returns of mean 1/30 and deviation root(1/75).
    assert played["sharpe"] == pytest.approx((1 / 30) * (75 * periods) ** 0.5)
    gain = report["backtest_references"]["buy and hold"]["annual_return"]
    assert gain == pytest.approx(1.0001**periods - 1)
    text = describe_evaluation(report)
    assert text.splitlines()[-1].strip() == f"annual figures: {note}"
    assert max(map(len, text.splitlines())) <= 80
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_report_of_an_older_version_has_252_days():
    report = report_of(
        [trader("target 10", 10.0, 100, 110), trader(RANDOM, None, 5, 5)]
    )
    del report["periods_a_year"]
    assert "a year has 252 business days" in describe_evaluation(report)


def test_the_text():
    actors = [
        trader("target -8", -8.0, 100, 110, 99, 108.9),
        trader("target 2", 2.0, 100, 110, 99, 100),
        trader("target 9", 9.0, 100, 110, 99, 99),
        trader(RANDOM, None, 5, 5),
    ]
    assert describe_evaluation(report_of(actors)) == TEXT


TEXT = """\
Evaluation: Some-v0, update 1,500, 1 episodes each from seed 7
                  return  ± se    sd    min    max  normalised  steps
  target -8         8.90     -  0.00   8.90   8.90        98.9      3
  target 2          0.00     -  0.00   0.00   0.00         0.0      3
  target 9         -1.00     -  0.00  -1.00  -1.00       -11.1      3
  random actions    0.00     -  0.00   0.00   0.00         0.0      1
  training data     5.00     -  3.16   0.00  10.00
  normalised: 0 is random actions (0.00), 100 the data's 90 % quantile (9.00)
  rank correlation with the 3 targets: -1.00

                  total  ± se       annual  ± se  turnover  ± se
  target -8       +8.9%     -  +128,826.4%     -     120.6     -
  target 2        +0.0%     -        +0.0%     -     123.2     -
  target 9        -1.0%     -       -57.0%     -     123.5     -
  random actions  +0.0%     -        +0.0%     -     126.0     -

                  volatility  ± se  Sharpe  ± se  drawdown  ± se
  target -8           183.3%     -    4.58     -     10.0%     -
  target 2            159.0%     -    0.53     -     10.0%     -
  target 9            158.7%     -    0.00     -     10.0%     -
  random actions           -     -       -     -      0.0%     -
  means over the episodes; drawdown: the largest loss since a peak
  turnover: how often a year the account is traded over, one way
  annual figures: a year has 252 business days
  warning: targets beyond the data's returns (0 to 10), of which nothing is
    known: -8
  warning: achieved returns hardly rise with the 3 targets: rank correlation
    -1.00"""


def test_a_table_of_an_older_version_has_no_errors_of_accounts():
    report = report_of([trader("target 2", 2.0, 100, 99), trader(RANDOM, None, 5, 5)])
    for actor_ in report["actors"]:
        del actor_["backtest"]["errors"]
    assert "target 2        -1.0%     -" in describe_evaluation(report)


def test_what_is_beside_the_return_has_its_standard_error_too():
    # Normalised by 1 and 9: a return of 1 is 12.5, and so is its standard error.
    actors = [actor("target 8", 8.0, [4, 6], [3, 4]), actor(RANDOM, None, [0, 2])]
    text = describe_evaluation(report_of(actors))
    assert "  5.00  1.00  1.00  4.00   6.00     50 ± 12  3.5 ± 0.5\n" in text
    assert "      0 ± 12          4\n" in text  # no episode took another number


@pytest.mark.parametrize(
    ("size", "shown"), [(1e-6, "-1.234e-06"), (1.0, "-1.234"), (1e7, "-1.234e+07")]
)
def test_a_table_fits_the_width_and_shows_four_digits(size, shown):
    name = "a name that is much longer than the others, which are short"
    actors = [
        actor(name, -2.5 * size, [-1.2344 * size, 0.0]),
        actor(RANDOM, None, [0, 0], [1000, 1000]),
    ]
    text = describe_evaluation(report_of(actors, data=[-3 * size, size], longest=1000))
    header, first, second, *_ = text.splitlines()[1:]
    assert first == f"  {name}"  # for which the table has no room
    assert shown in second
    assert len(header) == len(second) <= 80


def test_baselines_are_judged_by_the_same_seeds():
    # Better by 1 and 3: 2 on average, with a standard error of 1, as of 4 and 6.
    actors = [
        actor("target 8", 8.0, [4, 6]),
        actor("target 9", 9.0, [0, 0]),
        actor("clone", None, [3, 3]),
        actor("tutor", None, [9, 9]),
        actor("twin", None, [5, 6]),
        actor(RANDOM, None, [0, 2]),
    ]
    text = " ".join(describe_evaluation(report_of(actors)).split())
    best = "the best of 2 targets (8)"
    for line in (
        f"{best} beats clone by 2 ± 1, 2.0 standard errors",
        f"tutor beats {best} by 4 ± 1, 4.0 standard errors",
        f"twin does not clearly beat {best}: 0.5 ± 0.5, 1.0 standard errors",
    ):
        assert line in text
    assert f"beat {RANDOM}" not in text

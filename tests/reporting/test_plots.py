# SPDX-License-Identifier: Apache-2.0
"""The pictures show what they are given: looked for in what was drawn."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from test_evaluation_tables import summary_of

from dt_jax.reporting import plots
from dt_jax.reporting.evaluation import RANDOM, ActorResult, evaluation_report
from dt_jax.reporting.style import SHADES
from dt_jax.trading.backtest import Curves


def record(step, **values):
    return {"step": step, "loss": 1.0 / step, "learning_rate": 1e-4, **values}


def lines(figure, place=0):
    """{label: (x, y)} of the lines of a plot."""
    return {
        line.get_label(): tuple(map(list, line.get_data()))
        for line in figure.axes[place].lines
    }


def texts(figure):
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return {text.get_text() for text in found}


def test_few_losses_are_drawn_as_they_are():
    records = [record(1), record(2), record(3, validation_loss=0.5, loss=np.nan)]
    found = lines(plots.draw_loss(records))
    assert found["training"] == ([1, 2], [1.0, 0.5])
    assert found["held out"] == ([3], [0.5])


def test_many_losses_are_smoothed_beside_the_raw_ones():
    figure = plots.draw_loss([record(i, loss=float(i % 2)) for i in range(1, 121)])
    raw, smooth = (line.get_ydata() for line in figure.axes[0].lines)
    assert list(raw[:4]) == [1, 0, 1, 0]
    # 120 records: a mean over three on each side, four in all at the first.
    assert smooth[60] == pytest.approx(4 / 7, abs=1 / 7)
    assert smooth[0] == pytest.approx(2 / 4)
    assert np.ptp(smooth[3:-3]) < 0.2


def test_rates_have_a_panel_each_that_there_is():
    def panels(**values):
        figure = plots.draw_rates([record(i, **values) for i in (1, 2)])
        return [axes.get_title(loc="left") for axes in figure.axes]

    assert panels(grad_norm=1.0, steps_per_second=2.0) == [
        "learning rate",
        "gradient norm, before clipping",
        "updates a second",
    ]
    assert panels(accuracy=0.5)[-1] == "accuracy on training batches"


ERRORS = {
    "mse": 0.2,
    "mse_per_dimension": [0.1, 0.3],
    "bins": [
        {"from": 0.0, "to": 0.5, "steps": 3, "mse": 0.25},
        {"from": 0.5, "to": 1.0, "steps": 3, "mse": 0.15},
    ],
    "references": {"mean_action": 0.5, "previous_action": 0.4},
}


def test_held_out_errors_stand_beside_their_references():
    figure = plots.draw_error_by_return(ERRORS)
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.25, 0.15]
    found = lines(figure)
    assert found["mean action"][1] == [0.5, 0.5]
    assert found["previous action"][1] == [0.4, 0.4]
    assert {"0 to\n0.5", "0.5 to\n1"} <= texts(figure)


@pytest.mark.parametrize("count", [2, 394])
def test_held_out_errors_by_dimension(count):
    values = np.linspace(0.1, 0.3, count).tolist()
    figure = plots.draw_error_by_dimension(ERRORS | {"mse_per_dimension": values})
    drawn = figure.axes[0].patches
    if count == 2:
        drawn = [bar.get_height() for bar in drawn]
    else:
        (steps,) = drawn
        drawn = steps.get_data().values
    np.testing.assert_allclose(drawn, values)


def test_accuracies_are_drawn_alike():
    errors = {
        "accuracy": 0.7,
        "accuracy_per_dimension": [0.7],
        "bins": [{"from": 0.0, "to": 0.5, "steps": 3, "accuracy": 0.7}],
        "references": {"most_frequent_action": 0.5, "previous_action": 0.4},
    }
    figure = plots.draw_error_by_return(errors)
    assert lines(figure)["most frequent action"][1] == [0.5, 0.5]
    assert "accuracy, held out" in texts(figure)
    assert figure.axes[0].patches[0].get_height() == 0.7
    assert "accuracy, held out" in texts(plots.draw_error_by_dimension(errors))


def accounts(growth, dates):
    """Two episodes, the second one shorter by half."""
    assets_DxE = 1e6 * growth ** np.arange(len(dates))[:, None] * np.ones((1, 2))
    assets_DxE[len(dates) // 2 :, 1] = np.nan
    return {"assets": assets_DxE, "traded": np.zeros_like(assets_DxE), "date": dates}


def report_of(step=1, *, achieve=lambda target: target, dates_DxE=None):
    actors = []
    for name, target, growth in (
        ("target 9", 9.0, 1.01),
        ("target 1", 1.0, 0.99),
        (RANDOM, None, 0.995),
    ):
        mean = 4.0 if target is None else achieve(target)
        info = {} if dates_DxE is None else accounts(growth, dates_DxE)
        returns, lengths = np.array([mean - 1, mean + 1]), np.ones(2, int)
        actors.append(ActorResult(name, target, returns, lengths, info))
    references = None
    if dates_DxE is not None:
        assets_DxE = accounts(1.005, dates_DxE)["assets"][:, :1]
        references = {"buy and hold": Curves(assets_DxE, np.zeros_like(assets_DxE))}
    return evaluation_report(
        actors,
        environment="Some-v0",
        step=step,
        first_seed=0,
        data_returns=summary_of(np.array([0.0, 12.0])),
        longest=1,
        backtest_references=references,
    )


def test_achieved_returns_stand_over_their_targets():
    figure = plots.draw_targets(report_of(achieve=lambda target: target / 2))
    marks = [bars.lines[0] for bars in figure.axes[0].containers]
    assert [tuple(*mark.get_xydata().tolist()) for mark in marks] == [
        (1, 0.5),
        (9, 4.5),
    ]
    assert [to_hex(mark.get_color()) for mark in marks] == [SHADES[2], SHADES[-1]]
    found = lines(figure)
    assert found["as asked for"] == ([1, 9], [1, 9])
    assert found[RANDOM][1] == [4, 4]


def test_a_target_has_one_colour_in_all_pictures():
    days = np.arange("2020-01-01", "2020-01-09", dtype="datetime64[D]").astype(str)
    report = report_of(dates_DxE=np.stack([days, days], axis=1))
    for figure in (plots.draw_accounts(report), plots.draw_by_update([report, report])):
        colours = {
            line.get_label(): to_hex(line.get_color()) for line in figure.axes[0].lines
        }
        assert (colours["target 1"], colours["target 9"]) == (SHADES[2], SHADES[-1])


def test_evaluations_are_a_curve_by_update():
    reports = [report_of(20, achieve=lambda t: 2.0), report_of(40, achieve=lambda t: t)]
    found = lines(plots.draw_by_update(reports))
    assert found["target 9"] == ([20, 40], [2.0, 9.0])
    assert found["target 1"] == ([20, 40], [2.0, 1.0])


@pytest.mark.parametrize("same_days", [True, False])
def test_accounts_are_means_by_day(same_days):
    days_D = np.arange("2020-01-01", "2020-04-01", dtype="datetime64[D]")
    dates_DxE = np.stack([days_D, days_D], axis=1).astype(str)
    if not same_days:
        dates_DxE[len(days_D) // 2 :, 1] = ""
    report = report_of(dates_DxE=dates_DxE)
    assert report["curves"]["dated"] == same_days
    found = lines(plots.draw_accounts(report))
    for name, growth in (
        ("target 1", 0.99),
        ("target 9", 1.01),
        ("buy and hold", 1.005),
    ):
        x, y = found[name]
        np.testing.assert_allclose(y, 1e6 * growth ** np.arange(len(days_D)))
        assert x[0] == (days_D[0] if same_days else 0)
    found = lines(plots.draw_drawdown(report))
    np.testing.assert_allclose(found["target 9"][1], 0, atol=1e-9)
    np.testing.assert_allclose(found["target 1"][1][-1], -100 * (1 - 0.99**90))


def test_long_accounts_are_drawn_by_few_days():
    days_D = np.arange("2000-01-01", "2010-01-01", dtype="datetime64[D]").astype(str)
    curves = report_of(dates_DxE=np.stack([days_D, days_D], axis=1))["curves"]
    assert len(curves["days"]) == 300
    assert (curves["days"][0], curves["days"][-1]) == ("2000-01-01", "2009-12-31")
    assert len(curves["accounts"]["target 1"]["assets"]["mean"]) == 300


def test_histograms_bands_ranges_and_choices():
    histogram = {"edges": [0.5, 1.5, 2.5], "counts": [3, 4]}
    (steps,) = plots.draw_histogram(histogram, "length").axes[0].patches
    assert steps.get_data().values.tolist() == [3, 4]
    levels = {"timestep": [0, 5], "median": [2.0, 1.0]}
    levels |= {"min": [0, 0], "10 %": [1, 0.5], "90 %": [3, 2], "max": [4, 3]}
    figure = plots.draw_returns_to_go(levels)
    assert lines(figure)["median"] == ([0, 5], [2.0, 1.0])
    assert len(figure.axes[0].collections) == 2
    ranges = plots.draw_action_ranges({"min": [-1.0, 0.0], "max": [1.0, 0.5]})
    bars = [(bar.get_y(), bar.get_height()) for bar in ranges.axes[0].patches]
    assert bars == [(-1, 2), (0, 0.5)]
    figure = plots.draw_choices([[1, 3], [2, 1, 1]])
    shares = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    assert shares == [[0.25, 0.75], [0.5, 0.25, 0.25]]


def test_a_band_is_the_standard_error_over_the_seeds():
    # Of 1, 1 and 4: the mean 2, the sample deviation root(3), its error 1.
    runs = [[record(s, loss=loss) for s in (1, 2)] for loss in (1.0, 1.0, 4.0)]
    figure = plots.draw_bands({"seeds": runs}, "loss")
    assert lines(figure)["seeds"] == ([1, 2], [2, 2])
    (band,) = figure.axes[0].collections
    corners = band.get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == pytest.approx((1, 3))


def test_runs_are_drawn_together():
    records = {"a": [record(1), record(2)], "b": [record(1, validation_loss=0.3)]}
    assert set(lines(plots.draw_losses(records, "loss"))) == {"a", "b"}
    assert set(lines(plots.draw_losses(records, "validation_loss"))) == {"b"}
    found = lines(plots.draw_achieved({"a": report_of(), "b": report_of()}))
    assert found["b"] == ([1, 9], [1, 9])
    (bars,) = plots.draw_achieved({"a": report_of()}).axes[0].collections
    ends = [bar.tolist() for bar in bars.get_segments()]
    assert ends == [[[1, 0], [1, 2]], [[9, 8], [9, 10]]]  # of 0 and 2, of 8 and 10

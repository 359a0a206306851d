# SPDX-License-Identifier: Apache-2.0
"""The pictures show what they are given: colours are looked for in the pixels."""

import matplotlib.image
import numpy as np
import pytest
from test_evaluation_tables import summary_of

from dt_jax.reporting.evaluation_tables import RANDOM, ActorResult, evaluation_report
from dt_jax.reporting.plots import (
    draw_accounts,
    draw_drawdown,
    draw_held_out,
    draw_loss,
    draw_targets,
)
from dt_jax.trading.backtest import Curves

BLUE, VIOLET, ORANGE = (0, 114, 178), (68, 1, 84), (213, 94, 0)
BLACK, GREY = (0, 0, 0), (153, 153, 153)


def find(path, colour):
    """Rows (downwards) and columns of the colour's pixels within the axes."""
    pixels_HxWx3 = matplotlib.image.imread(path)[..., :3]
    assert pixels_HxWx3.shape == (540, 840, 3)
    far_HxWx3 = np.abs(pixels_HxWx3 - np.array(colour)[None, None] / 255)
    rows, columns = np.nonzero((far_HxWx3 < 0.02).all(axis=-1)[100:450, 150:800])
    assert len(rows) > 100
    return rows, columns


def test_achieved_returns_stand_over_their_targets(tmp_path):
    def spread(achieve):
        actors = [
            ActorResult(
                f"target {t}", float(t), np.full(3, achieve(t)), np.ones(3, int), {}
            )
            for t in range(0, 1000, 100)
        ]
        report = evaluation_report(
            actors,
            environment="Some-v0",
            step=1,
            first_seed=0,
            data_returns=summary_of(np.array([0.0, 900.0])),
            longest=1,
            score_range=(0, 1),
        )
        draw_targets(tmp_path / "targets.png", report)
        return find(tmp_path / "targets.png", BLUE)

    for achieve, direction in ((lambda t: t, -1), (lambda t: 900 - t, 1)):
        rows, columns = spread(achieve)
        assert np.ptp(columns) > 500
        assert direction * np.corrcoef(rows, columns)[0, 1] > 0.99
    rows, _ = spread(lambda t: 450)
    assert np.ptp(rows) < 20  # the height of a mark


def accounts(growth, dates):
    """Two episodes, the second one shorter by half."""
    assets_DxE = 1e6 * growth ** np.arange(len(dates))[:, None] * np.ones((1, 2))
    assets_DxE[len(dates) // 2 :, 1] = np.nan
    return {"assets": assets_DxE, "traded": np.zeros_like(assets_DxE), "date": dates}


@pytest.fixture(params=["the same days", "other days"])
def players(request):
    days_D = np.arange("2020-01-01", "2020-04-01", dtype="datetime64[D]")
    dates_DxE = np.stack([days_D, days_D], axis=1).astype(str)
    if request.param == "other days":
        dates_DxE[:, 1] = (days_D + np.timedelta64(7, "D")).astype(str)
        dates_DxE[len(days_D) // 2 :, 1] = ""
    rest = (np.zeros(2), np.ones(2, int))
    actors = [
        ActorResult("target 1", 1.0, *rest, accounts(0.99, dates_DxE)),
        ActorResult("target 2", 2.0, *rest, accounts(1.01, dates_DxE)),
        ActorResult(RANDOM, None, *rest, accounts(0.995, dates_DxE)),
        ActorResult("no account", 3.0, *rest, {}),
    ]
    references = {}
    for name, growth in (("buy and hold", 1.005), ("equal weight", 0.985)):
        assets_DxE = accounts(growth, dates_DxE)["assets"][:, :1]
        references[name] = Curves(assets_DxE, np.zeros_like(assets_DxE))
    return actors, references


def check(path, falling):
    """Lines of these colours run from side to side, the first ends lowest."""
    ends = []
    for colour, falls in falling.items():
        rows, columns = find(path, colour)
        assert np.ptp(columns) > 400
        assert (1 if falls else -1) * np.corrcoef(rows, columns)[0, 1] > 0.97
        ends.append(rows[columns > 500].mean())
    assert sorted(ends, reverse=True) == ends


def test_accounts_rise_and_fall(tmp_path, players):
    draw_accounts(tmp_path / "accounts.png", *players)
    # Grey is also at the edges of the black line; the next test has it alone.
    falling = {ORANGE: True, BLACK: False, VIOLET: False}
    check(tmp_path / "accounts.png", falling)


def test_drawdown_goes_down_from_zero(tmp_path, players):
    draw_drawdown(tmp_path / "drawdown.png", *players)
    check(tmp_path / "drawdown.png", {GREY: True, ORANGE: True})


def test_the_picture_shows_the_loss(tmp_path):
    def blue(loss):
        records = [
            {"step": step, "loss": loss(step), "learning_rate": 1e-4 - 1e-8 * step}
            for step in range(0, 1000, 10)
        ]
        draw_loss(tmp_path / "loss.png", records)
        pixels_HxWx3 = matplotlib.image.imread(tmp_path / "loss.png")[..., :3]
        line = np.array([31, 119, 180]) / 255  # tab:blue
        return (np.abs(pixels_HxWx3 - line[None, None]) < 0.05).all(axis=-1)

    falling, rising = blue(lambda step: 0.99**step), blue(lambda step: 1.01**step)
    assert falling.shape == (540, 960)
    # Below the legend: on a logarithmic axis straight lines from side to side.
    for line, direction in ((falling, 1), (rising, -1)):
        rows, columns = np.nonzero(line[100:])
        assert len(set(columns)) > 600
        assert direction * np.corrcoef(rows, columns)[0, 1] > 0.999


def test_the_picture_shows_the_held_out_error_beside_the_references(tmp_path):
    def count(color, mse):
        edges = zip(range(5), range(1, 6), strict=True)
        bins = [{"from": a, "to": b, "steps": 9, "mse": mse} for a, b in edges]
        references = {"mean_action": 0.5, "previous_action": 0.01}
        errors = {"mse": mse, "bins": bins, "references": references}
        draw_held_out(tmp_path / "held_out.png", errors)
        pixels_HxWx3 = matplotlib.image.imread(tmp_path / "held_out.png")[..., :3]
        line = np.array(color) / 255
        rows = np.nonzero((np.abs(pixels_HxWx3 - line[None, None]) < 0.05).all(-1))[0]
        return np.median(rows[rows > 60])  # below the legend

    blue, gray, orange = (31, 119, 180), (127, 127, 127), (255, 127, 14)
    heights = [count(color, 0.07) for color in (gray, blue, orange)]
    assert heights == sorted(heights)
    assert heights[0] + 100 < heights[1] < heights[2] - 100  # 0.07 is half-way in logs
    assert abs(count(blue, 0.5) - count(gray, 0.5)) < 3

# SPDX-License-Identifier: Apache-2.0
"""All pictures of a run: records and reports in, matplotlib figures out.

They are functions of the JSON files of a workdir. Colours and axes are those of
style.py; a target has the same colour wherever it is drawn.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from dt_jax.reporting.evaluation import standard_error
from dt_jax.reporting.style import (
    BAND,
    BLUE,
    GOLD,
    HEIGHT,
    INK,
    INNER,
    ORANGE,
    OTHERS,
    SHADES,
    SOFT,
    legend,
    logarithmic,
    make_axes,
    make_figure,
    plain_numbers,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHED = 20  # a smoothed line is a mean over a twentieth of all records


@styled()
def draw_loss(records: Sequence[dict]) -> "Figure":
    """The loss on training batches, raw and smoothed, and on held-out data."""
    figure, axes = make_axes("update", "loss")
    steps, losses = _series(records, "loss")
    if len(steps) < 2 * SMOOTHED:
        axes.plot(steps, losses, color=BLUE, marker=_marker(steps), label="training")
    else:
        axes.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=0.8)
        axes.plot(steps, _smooth(losses), color=BLUE, label="training, smoothed")
    steps, losses = _series(records, "validation_loss")
    if len(steps):
        axes.plot(steps, losses, color=ORANGE, marker=_marker(steps), label="held out")
    logarithmic(axes)
    legend(figure)
    return figure


@styled()
def draw_rates(records: Sequence[dict]) -> "Figure":
    """Learning rate, gradient norm and updates a second (and accuracy) in panels."""
    panels = {
        "learning_rate": "learning rate",
        "grad_norm": "gradient norm, before clipping",
        "steps_per_second": "updates a second",
        "accuracy": "accuracy on training batches",
    }
    panels = {key: text for key, text in panels.items() if _series(records, key)[0]}
    figure = make_figure()
    for place, (key, text) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(len(panels), 1, place, title=text)
        steps, values = _series(records, key)
        axes.plot(steps, values, color=BLUE, marker=_marker(steps), linewidth=1.2)
        plain_numbers(axes)
        axes.yaxis.get_major_locator().set_params(nbins=3)
        axes.set_ylim(bottom=0)
        if place < len(panels):
            axes.tick_params(labelbottom=False)
        else:
            axes.set_xlabel("update")
    return figure


@styled()
def draw_error_by_return(errors: dict) -> "Figure":
    """What `HeldOut.evaluate` says, by return-to-go, beside its two references."""
    name, title = _error_of(errors)
    figure, axes = make_axes("return-to-go / scale", title)
    bins = errors["bins"]
    places = np.arange(len(bins))
    axes.bar(places, [each[name] for each in bins], color=BLUE, width=0.7)
    names = [f"{each['from']:.3g} to\n{each['to']:.3g}" for each in bins]
    axes.set_xticks(places, names)
    axes.grid(axis="x", visible=False)
    for (reference, value), colour in zip(
        errors["references"].items(), OTHERS, strict=False
    ):
        text = reference.replace("_", " ")
        axes.axhline(value, color=colour, linestyle="--", label=text)
    legend(figure)
    return figure


@styled()
def draw_error_by_dimension(errors: dict) -> "Figure":
    """The same by dimension of the action, and the mean of all."""
    name, title = _error_of(errors)
    figure, axes = make_axes("dimension of the action", title)
    _draw_dimensions(axes, np.array(errors[f"{name}_per_dimension"]))
    axes.axhline(errors[name], color=INK, linestyle="--", linewidth=1, label="mean")
    legend(figure)
    return figure


@styled()
def draw_targets(report: dict) -> "Figure":
    """What was achieved for each target, from `evaluation_report`."""
    figure, axes = make_axes("target return", "achieved return")
    data = report["data"]["returns"]
    axes.axhspan(data["min"], data["max"], color=BAND, linewidth=0, label="data")
    axes.axhspan(
        *(data["10 %"], data["90 %"]), color=INNER, linewidth=0, label="10 to 90 %"
    )
    targeted, baselines = _actors(report)
    for actor, colour in zip(baselines, cycle(OTHERS)):
        axes.axhline(actor["mean"], color=colour, label=_short(actor["name"]))
        error = standard_error(actor["returns"]) or 0.0
        band = actor["mean"] - error, actor["mean"] + error
        axes.axhspan(*band, color=colour, alpha=0.15, linewidth=0)
    targets = [actor["target"] for actor in targeted]
    axes.plot(targets, targets, color=SOFT, linestyle="--", label="as asked for")
    for actor, colour in zip(targeted, _shades(len(targeted)), strict=True):
        each = np.full(len(actor["returns"]), actor["target"])
        axes.plot(each, actor["returns"], ".", color=SOFT, alpha=0.4, markersize=4)
        axes.errorbar(
            *(actor["target"], actor["mean"], standard_error(actor["returns"])),
            **{"fmt": "o", "color": colour, "capsize": 4, "zorder": 3},
            label="mean ± standard error" if actor is targeted[-1] else None,
        )
    legend(figure, columns=3)
    return figure


@styled()
def draw_by_update(reports: Sequence[dict]) -> "Figure":
    """What several evaluations of a run achieved, a line for each actor."""
    figure, axes = make_axes("update", "achieved return")
    targeted, baselines = _actors(reports[-1])
    colours = [*_shades(len(targeted))]
    colours += [colour for _, colour in zip(baselines, cycle(OTHERS))]
    for actor, colour in zip([*targeted, *baselines], colours, strict=True):
        points = [
            (report["step"], found["mean"], standard_error(found["returns"]) or 0.0)
            for report in reports
            for found in report["actors"]
            if found["name"] == actor["name"]
        ]
        steps, means, errors = zip(*points, strict=True)
        axes.plot(steps, means, "o-", color=colour, markersize=4)
        axes.lines[-1].set_label(_short(actor["name"]))
        axes.errorbar(steps, means, errors, fmt="none", ecolor=colour, capsize=3)
    legend(figure, columns=3)
    return figure


@styled()
def draw_accounts(report: dict) -> "Figure":
    """The account by day of each actor and reference, from `evaluation_report`."""
    return _draw_curves(report, "assets", "account value")


@styled()
def draw_drawdown(report: dict) -> "Figure":
    """The loss since the account's peak, downwards."""
    return _draw_curves(report, "drawdown", "loss since the peak, %")


@styled()
def draw_histogram(histogram: dict, xlabel: str) -> "Figure":
    """Trajectories by return or length: 'edges', and 'counts' between them."""
    figure, axes = make_axes(xlabel, "trajectories")
    edges = np.array(histogram["edges"])
    axes.stairs(histogram["counts"], edges, fill=True, color=BLUE)
    if (edges % 1 == 0.5).all():  # a bin for each whole number
        _whole_numbers(axes)
        axes.margins(x=0.1 if len(edges) > 2 else 3.0)
    axes.grid(axis="x", visible=False)
    return figure


@styled()
def draw_returns_to_go(levels: dict) -> "Figure":
    """Quantiles of the returns-to-go by timestep."""
    figure, axes = make_axes("timestep", "return-to-go / scale")
    steps = levels["timestep"]
    for low, high, colour in (("min", "max", BAND), ("10 %", "90 %", INNER)):
        text = "all" if low == "min" else f"{low[:-2]} to {high}"
        band = {"color": colour, "linewidth": 0, "label": text}
        axes.fill_between(steps, levels[low], levels[high], **band)
    axes.plot(steps, levels["median"], color=BLUE, label="median")
    legend(figure)
    return figure


@styled()
def draw_action_ranges(ranges: dict) -> "Figure":
    """The smallest and the largest action of each dimension."""
    figure, axes = make_axes("dimension of the action", "actions, smallest to largest")
    _draw_dimensions(axes, np.array(ranges["max"]), np.array(ranges["min"]))
    return figure


@styled()
def draw_choices(counts: Sequence[Sequence[int]]) -> "Figure":
    """How often each choice of discrete actions was taken: a panel a dimension."""
    shown = counts[:4]
    figure = make_figure(max(HEIGHT, 1.1 * len(shown)))
    for place, count in enumerate(shown, 1):
        axes = figure.add_subplot(len(shown), 1, place)
        axes.bar(np.arange(len(count)), np.array(count) / sum(count), color=BLUE)
        axes.set_ylabel("share")
        plain_numbers(axes)
        axes.set_xlabel(
            "choice" if len(counts) == 1 else f"choice of dimension {place - 1}"
        )
    return figure


@styled()
def draw_losses(records_by_run: Mapping[str, Sequence[dict]], key: str) -> "Figure":
    """The loss (or `validation_loss`) of several runs."""
    figure, axes = make_axes("update", key.replace("_", " "))
    for (name, records), style in zip(
        records_by_run.items(), _line_styles(), strict=False
    ):
        steps, losses = _series(records, key)
        if len(steps):
            smooth = _smooth(losses) if len(losses) >= 2 * SMOOTHED else losses
            axes.plot(steps, smooth, **style, marker=_marker(steps))
            axes.lines[-1].set_label(_short(name))
    logarithmic(axes)
    legend(figure, columns=3)
    return figure


@styled()
def draw_bands(
    runs_by_setting: Mapping[str, Sequence[list[dict]]], key: str
) -> "Figure":
    """The loss of several settings: the mean over runs, and its standard error."""
    figure, axes = make_axes("update", key.replace("_", " "))
    for (name, runs), style in zip(
        runs_by_setting.items(), _line_styles(), strict=False
    ):
        series = [_series(records, key) for records in runs]
        count = min(len(steps) for steps, _ in series)  # of those that all have
        if not count:
            continue
        steps = series[0][0][:count]
        losses = np.array([losses[:count] for _, losses in series])
        if count >= 2 * SMOOTHED:
            losses = np.array([_smooth(one) for one in losses])
        mean = losses.mean(axis=0)
        error = losses.std(axis=0) / np.sqrt(max(len(losses) - 1, 1))
        axes.plot(steps, mean, **style, marker=_marker(steps), label=_short(name))
        low = np.maximum(mean - error, losses.min(axis=0))  # above 0, for a logarithm
        colour = axes.lines[-1].get_color()
        band = {"color": colour, "alpha": 0.2, "linewidth": 0}
        axes.fill_between(steps, low, mean + error, **band)
    logarithmic(axes)
    legend(figure, columns=3)
    return figure


@styled()
def draw_achieved(reports_by_run: Mapping[str, dict]) -> "Figure":
    """What several runs achieved for each target."""
    figure, axes = make_axes("target return", "achieved return")
    every = [
        actor["target"]
        for report in reports_by_run.values()
        for actor in _actors(report)[0]
    ]
    line = [min(every), max(every)]
    axes.plot(line, line, color=SOFT, linestyle="--", label="as asked for")
    for (name, report), style in zip(
        reports_by_run.items(), _line_styles(), strict=False
    ):
        points = [
            (actor["target"], actor["mean"], standard_error(actor["returns"]) or 0.0)
            for actor in _actors(report)[0]
        ]
        targets, means, errors = zip(*points, strict=True)
        axes.plot(targets, means, **style, marker="o", markersize=4)
        axes.lines[-1].set_label(_short(name))
        bars = {"fmt": "none", "ecolor": style["color"], "capsize": 3}
        axes.errorbar(targets, means, errors, **bars)
    legend(figure, columns=3)
    return figure


def _draw_curves(report, key, ylabel):
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    curves = report["curves"]
    figure, axes = make_axes("" if curves["dated"] else "day of the episode", ylabel)
    days = curves["days"]
    if curves["dated"]:
        days = np.array(days, "datetime64[s]")  # with the time, if any
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    targeted, baselines = _actors(report)
    names = [actor["name"] for actor in [*targeted, *baselines]]
    colours = [*_shades(len(targeted))]
    colours += [colour for _, colour in zip(baselines, cycle(OTHERS))]
    styles = {
        name: {"color": colour} for name, colour in zip(names, colours, strict=True)
    }
    styles |= {
        name: {"color": INK, "linestyle": style, "linewidth": 1.0}
        for name, style in zip(report["backtest_references"] or {}, cycle("-:"))
    }
    for name, style in styles.items():
        if name in curves["accounts"]:
            mean, error = (
                np.array(curves["accounts"][name][key][part], float)
                for part in ("mean", "error")
            )
            x = days[: len(mean)]
            axes.plot(x, mean, label=_short(name), **style)
            band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
            axes.fill_between(x, mean - error, mean + error, **band)
    legend(figure, columns=3)
    return figure


def _actors(report):
    """Those with a target, by it, and the baselines."""
    targeted = [actor for actor in report["actors"] if actor["target"] is not None]
    baselines = [actor for actor in report["actors"] if actor["target"] is None]
    return sorted(targeted, key=lambda actor: actor["target"]), baselines


def _shades(count):
    """So many, from pale to strong; of a few the strong ones."""
    places = np.linspace(0 if count > 3 else 2, len(SHADES) - 1, count)
    return [SHADES[round(place)] for place in places] if count > 1 else [BLUE]


def _line_styles():
    colours = (BLUE, ORANGE, *OTHERS[2:], GOLD, INK)
    for line in ("-", "--", ":", "-."):
        for colour in colours:
            yield {"color": colour, "linestyle": line}


def _series(records, key):
    """Steps and finite values of the records that have some."""
    points = [
        (record["step"], record[key])
        for record in records
        if np.isfinite(record.get(key, np.nan))
    ]
    return tuple(map(list, zip(*points, strict=True))) if points else ([], [])


def _smooth(values):
    """The mean over the records around each, fewer at both ends."""
    half = max(1, len(values) // (2 * SMOOTHED))
    sums = np.concatenate(([0.0], np.cumsum(values)))
    places = np.arange(len(values))
    low = np.maximum(places - half, 0)
    high = np.minimum(places + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _marker(steps):
    return "." if len(steps) < 30 else None  # a lone record draws no line


def _error_of(errors):
    if "accuracy" in errors:
        return "accuracy", "accuracy, held out"
    return "mse", "mean squared error, held out"


def _draw_dimensions(axes, high_A, low_A=0.0):
    """A bar for each dimension; of many, which would shimmer, one shape."""
    count = len(high_A)
    _whole_numbers(axes)
    axes.set_xlim(-0.6, count - 0.4)
    if count < 60:
        axes.bar(np.arange(count), high_A - low_A, 0.7, low_A, color=BLUE)
    else:
        edges = np.arange(count + 1) - 0.5
        axes.stairs(high_A, edges, baseline=low_A, fill=True, color=BLUE)


def _whole_numbers(axes):
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))
    axes.grid(axis="x", visible=False)


def _short(name, room=26):
    """A legend's text; of a long path its end tells most."""
    return name if len(name) <= room else f"...{name[3 - room :]}"

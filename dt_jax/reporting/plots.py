# SPDX-License-Identifier: Apache-2.0
"""All pictures, as PNG: loss, held-out error, returns by target, accounts by day.

The colours differ in lightness too, for the colour-blind and for grey paper: the higher
a target, the darker.
"""

import io
import os
from collections.abc import Sequence
from itertools import cycle

import numpy as np

from dt_jax.reporting.evaluation_tables import ActorResult
from dt_jax.system.files import replacing
from dt_jax.trading.backtest import Curves, drawdown

BLUE, ORANGES, GREYS = "#0072b2", ("#d55e00", "#e69f00"), ("0.0", "0.6")


def draw_loss(path: str | os.PathLike, records: list[dict]) -> None:
    """The loss (logarithmic) and the learning rate by update, as PNG."""
    _save(path, _loss(records))


def loss_png(records: list[dict]) -> bytes:
    """The same picture, for whoever has no file to put it in."""
    return _png(_loss(records))


def _loss(records):
    # matplotlib is slow to import, and only pictures need it.
    from matplotlib.figure import Figure

    steps = [record["step"] for record in records]
    marker = "." if len(steps) < 30 else None  # a lone record draws no line
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="update", ylabel="loss (mean squared error)")
    axes.semilogy(
        steps,
        [record["loss"] for record in records],
        color="tab:blue",
        marker=marker,
        label="loss",
    )
    axes.grid(alpha=0.3, which="both")
    rate_axes = axes.twinx()
    rate_axes.plot(
        steps,
        [record["learning_rate"] for record in records],
        color="tab:gray",
        linestyle="--",
        label="learning rate",
    )
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return figure


def draw_held_out(path: str | os.PathLike, errors: dict) -> None:
    """What `HeldOut.evaluate` says: the error in each bin, beside the references."""
    from matplotlib.figure import Figure

    bins, references = errors["bins"], errors["references"]
    names = [f"{bin['from']:.4g} to\n{bin['to']:.4g}" for bin in bins]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(
        xlabel="return-to-go / scale", ylabel="mean squared error, held out"
    )
    axes.semilogy(names, [bin["mse"] for bin in bins], marker="o", label="model")
    for name, color in (("mean_action", "gray"), ("previous_action", "orange")):
        label = name.replace("_", " ")
        axes.axhline(references[name], color=f"tab:{color}", ls="--", label=label)
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    _save(path, figure)


def draw_targets(path: str | os.PathLike, report: dict) -> None:
    """What was achieved for each target, from `evaluation_report`."""
    figure, axes = _axes("target return", "achieved return")
    axes.xaxis.set_major_formatter("{x:,.10g}")
    data = report["data"]["returns"]
    axes.axhspan(data["min"], data["max"], color="0.95", label="data, all")
    axes.axhspan(data["10 %"], data["90 %"], color="0.89", label="data, 10 to 90 %")
    axes.axhline(data["mean"], color="0.6", linewidth=1, label="data, mean")

    targeted = [actor for actor in report["actors"] if actor["target"] is not None]
    baselines = [actor for actor in report["actors"] if actor["target"] is None]
    for actor, colour in zip(baselines, cycle(ORANGES)):
        axes.axhline(actor["mean"], color=colour, label=actor["name"])
    targets = [actor["target"] for actor in targeted]
    axes.plot(targets, targets, color="0.3", linestyle="--", label="as asked for")
    for target, actor in zip(targets, targeted, strict=True):
        each = np.full(len(actor["returns"]), target)
        axes.plot(each, actor["returns"], ".", color=BLUE, alpha=0.3, markeredgewidth=0)
    means, stds = ([actor[key] for actor in targeted] for key in ("mean", "std"))
    axes.errorbar(
        targets, means, stds, fmt="o", color=BLUE, capsize=4, label="mean ± sd"
    )
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
    _save(path, figure)


def draw_accounts(
    path: str | os.PathLike,
    actors: Sequence[ActorResult],
    references: dict[str, Curves],
) -> None:
    """The account value by day: the mean over episodes, and for actors a band of its
    standard error. By date where all episodes run on the same days."""
    _draw_curves(path, actors, references, "account value", np.asarray)


def draw_drawdown(
    path: str | os.PathLike,
    actors: Sequence[ActorResult],
    references: dict[str, Curves],
) -> None:
    """The loss since the peak by day, downwards; otherwise as `draw_accounts`."""

    def percent(assets_DxE):
        return -100.0 * drawdown(assets_DxE)

    _draw_curves(path, actors, references, "loss since the peak, %", percent)


def _draw_curves(path, actors, references, ylabel, of_assets):
    import matplotlib
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    actors = [actor for actor in actors if actor.curves is not None]
    dates_DxE = np.asarray(actors[0].info["date"])
    dated = (dates_DxE == dates_DxE[:, :1]).all()
    figure, axes = _axes("" if dated else "day of the episode", ylabel)
    days_D = np.arange(len(dates_DxE))
    if dated:
        days_D = dates_DxE[:, 0].astype("datetime64[s]")  # with the time, if any
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))

    def draw(name, curves, colour, alpha):
        values_DxE = of_assets(curves.assets)
        mean_D = np.nanmean(values_DxE, axis=1)
        error_D = np.nanstd(values_DxE, axis=1)
        error_D /= np.sqrt(np.isfinite(values_DxE).sum(axis=1))
        x_D = days_D[: len(mean_D)]
        axes.plot(x_D, mean_D, color=colour, linewidth=1.2, label=name)
        band = (mean_D - error_D, mean_D + error_D)
        axes.fill_between(x_D, *band, color=colour, alpha=alpha, linewidth=0)

    targeted = [actor for actor in actors if actor.target is not None]
    baselines = [actor for actor in actors if actor.target is None]
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(targeted)))
    for actor, colour in zip(targeted, shades[::-1], strict=True):
        draw(actor.name, actor.curves, colour, 0.15)
    for actor, colour in zip(baselines, cycle(ORANGES)):
        draw(actor.name, actor.curves, colour, 0.15)
    for (name, curves), colour in zip(references.items(), cycle(GREYS)):
        draw(name, curves, colour, 0.0)
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
    _save(path, figure)


def _axes(xlabel, ylabel):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.yaxis.set_major_formatter("{x:,.10g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(path, figure):
    with replacing(path) as unfinished:
        unfinished.write_bytes(_png(figure))


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()

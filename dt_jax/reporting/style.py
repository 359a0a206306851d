# SPDX-License-Identifier: Apache-2.0
"""One style for all pictures: matplotlib figures in, SVG (or PNG) out.

A picture is drawn in the colours of light paper. In its SVG each of them is a CSS
variable, so that the page, or the file itself, chooses light or dark with the reader.
The colours differ in lightness too, for the colour-blind and for grey paper.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # slow to import: only who draws waits for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# By name, on light paper and on dark.
COLOURS = {
    "paper": ("#ffffff", "#14181d"),
    "ink": ("#1d2530", "#e6e9ee"),
    "soft": ("#5c6773", "#9fabb8"),
    "line": ("#dfe3e8", "#2d353e"),
    "band": ("#f1f3f6", "#1e242b"),
    "inner": ("#e4e8ee", "#29323c"),
    "blue": ("#0072b2", "#58b4ec"),
    "orange": ("#d55e00", "#ff8f4a"),
    "gold": ("#d99a00", "#f0c34d"),
    "green": ("#00876c", "#4ecfae"),
    "pink": ("#b0578d", "#e79ac6"),
    # Targets: the higher one, the stronger.
    "shade0": ("#93c2e0", "#3a6f96"),
    "shade1": ("#70acd3", "#4682ab"),
    "shade2": ("#4f96c6", "#5597c2"),
    "shade3": ("#2f7db3", "#69a8d3"),
    "shade4": ("#155d94", "#93c6e8"),
    "shade5": ("#083a66", "#d3e9f8"),
}
PAPER, INK, SOFT, LINE, BAND, INNER, BLUE, ORANGE, GOLD, GREEN, PINK, *SHADES = (
    light for light, _ in COLOURS.values()
)
OTHERS = (ORANGE, GOLD, GREEN, PINK)
WIDTH, HEIGHT = 5.4, 3.3  # inches: letters of 10 points are legible at 400 pixels
SETTINGS = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.titlesize": 10,
    "axes.titlecolor": SOFT,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
}


@contextmanager
def styled() -> Iterator[None]:
    """Within it figures are drawn in the one style; also a decorator, `@styled()`."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        yield


def light_colours() -> str:
    """The variables of all colours on light paper, for a style attribute."""
    return "; ".join(f"--{name}: {light}" for name, (light, _) in COLOURS.items())


def css_colours() -> str:
    """The variables of all colours, for light and for dark, as the reader has set."""
    light = light_colours()
    dark = "; ".join(f"--{name}: {dark}" for name, (_, dark) in COLOURS.items())
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        f"@media print {{ :root {{ color-scheme: light; {light} }} }}"
    )


def make_figure(height: float = HEIGHT) -> "Figure":
    """An empty one; to be filled in `styled()`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def make_axes(xlabel: str, ylabel: str) -> tuple["Figure", "Axes"]:
    """A figure of one plot, with plain numbers at its axes."""
    figure = make_figure()
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    plain_numbers(axes)
    return figure, axes


def plain_numbers(axes: "Axes") -> None:
    """Few ticks, and 20,000 or 0.00002 beside them, not 2e4 or 2x10^-5."""
    from matplotlib.ticker import MaxNLocator

    for axis, most in ((axes.xaxis, 6), (axes.yaxis, 5)):
        axis.set_major_locator(MaxNLocator(most))
        axis.set_major_formatter(_plain)


def _plain(value, _):
    if not value or abs(value) >= 1e-3:
        return f"{value:,.10g}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.10f}".rstrip("0").replace("-", "\N{MINUS SIGN}")


def logarithmic(axes: "Axes") -> None:
    """A logarithmic y-axis with plain decimals at few places."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1.0,) if high > 300 * low else (1.0, 2.0, 5.0)
    if high < 5 * low:
        subs = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_major_formatter(_plain)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend(figure: "Figure", columns: int = 4) -> None:
    """Above the plot, where it hides nothing; in fewer columns where names are long."""
    for count in range(columns, 0, -1):
        drawn = figure.legend(loc="outside upper left", ncols=count)
        if count == 1 or drawn.get_window_extent().width <= figure.bbox.width:
            return
        drawn.remove()


def to_svg(figure: "Figure", name: str, label: str) -> str:
    """The picture as an <svg> element for a page that has `css_colours`.

    Args:
      name: unlike that of any other picture of the page; label: what it shows, for a
        reader who cannot see it.

    Equal figures give equal text.
    """
    import matplotlib

    buffer = io.StringIO()
    with styled(), matplotlib.rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    figure.set_layout_engine(
        "none"
    )  # it is laid out: a PNG of it is drawn in less time
    text = buffer.getvalue()
    head, body = text[text.index("<svg") :].split(">", 1)
    # The page says how large it is; names of groups would be there twice.
    head = re.sub(r' (width|height|version)="[^"]*"', "", head)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", body)
    for colour, (light, _) in COLOURS.items():
        body = body.replace(light, f"var(--{colour})")
    return f'{head} role="img" aria-label="{escape(label)}">{body}'


def standalone(svg: str) -> str:
    """The same as a file of its own, which brings its colours."""
    head, rest = svg.split(">", 1)
    return f"{head}><style>{css_colours()}</style>{rest}"


def to_png(figure: "Figure") -> bytes:
    """The picture on light paper, for what shows no SVG."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, dpi=110, format="png", facecolor=PAPER)
    return buffer.getvalue()

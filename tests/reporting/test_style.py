# SPDX-License-Identifier: Apache-2.0
"""Every picture leaves in the page's colours, the same each time."""

import re
import xml.etree.ElementTree as ET

import pytest

from dt_jax.reporting.style import (
    BLUE,
    COLOURS,
    css_colours,
    legend,
    logarithmic,
    make_axes,
    standalone,
    styled,
    to_png,
    to_svg,
)


@pytest.fixture
def figure():
    with styled():
        figure, axes = make_axes("update", "loss <&>")
        axes.plot([1, 2, 3], [0.00002, 0.00004, 0.00003], color=BLUE)
    return figure


def test_an_svg_has_the_colours_of_the_page(figure):
    svg = to_svg(figure, "name", 'what "it" shows & means')
    root = ET.fromstring(svg)
    assert root.get("aria-label") == 'what "it" shows & means'
    assert root.get("viewBox")
    assert not root.get("width")
    assert set(re.findall(r"var\(--(\w+)\)", svg)) == {"blue", "soft", "line"}
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert svg == to_svg(figure, "name", 'what "it" shows & means')
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"update", "loss <&>", "0.00002"} <= texts


def test_two_pictures_of_a_page_share_no_id(figure):
    ids = [
        set(re.findall(r'id="([^"]+)"', to_svg(figure, name, "")))
        for name in ("a", "b")
    ]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_a_file_brings_its_colours(figure):
    file = standalone(to_svg(figure, "name", "label"))
    ET.fromstring(file)
    assert css_colours() in file
    for name, (light, dark) in COLOURS.items():
        assert f"--{name}: {light}" in file
        assert f"--{name}: {dark}" in file


def test_a_png_is_on_paper(figure):
    assert to_png(figure)[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.02, 0.06, {"0.02", "0.03"}), (0.001, 1.0, {"0.001", "0.01", "0.1", "1"})],
)
def test_a_logarithmic_axis_has_plain_decimals(low, high, expected):
    with styled():
        figure, axes = make_axes("", "")
        axes.plot([1, 2], [low, high])
        logarithmic(axes)
        figure.canvas.draw()
        shown = {text.get_text() for text in axes.get_yticklabels()}
    assert expected <= shown
    assert not any("10^" in text or "e" in text for text in shown)


@pytest.mark.parametrize(
    ("length", "columns"), [(1, 4), (10, 3), (20, 2), (40, 1), (90, 1)]
)
def test_a_legend_has_as_many_columns_as_fit(length, columns):
    figure, axes = make_axes("", "")
    for letter in "abcd":
        axes.plot([1, 2], label=length * letter)
    legend(figure)
    assert [found._ncols for found in figure.legends] == [columns]


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_text_and_lines_stand_out_from_the_paper(theme):
    """By WCAG's contrast: 4.5 for text, 1.8 for the palest of six lines."""
    paper = luminance(COLOURS["paper"][theme])
    for names, least in (
        (("ink", "soft", "blue"), 4.5),
        (("orange", "gold", "green", "pink", "shade0"), 1.8),
    ):
        for name in names:
            other = luminance(COLOURS[name][theme])
            high, low = max(paper, other), min(paper, other)
            assert (high + 0.05) / (low + 0.05) > least, name
    shades = [luminance(COLOURS[f"shade{i}"][theme]) for i in range(6)]
    assert sorted(shades, reverse=theme == 0) == shades

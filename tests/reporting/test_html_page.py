# SPDX-License-Identifier: Apache-2.0
"""The page is one file, complete, escaped, and a browser shows it."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from test_evaluation_tables import summary_of

from dt_jax.reporting.evaluation_tables import RANDOM, ActorResult, evaluation_report
from dt_jax.reporting.html_page import PICTURES, write_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = '<script src="http://evil">&'


@pytest.fixture
def workdir(tmp_path):
    """A run called `a<b` with everything in it."""
    workdir = tmp_path / "a<b"
    (workdir / "report").mkdir(parents=True)
    account = {"assets": np.array([[1.0], [1.1]]), "traded": np.array([[0.0], [1.0]])}
    evaluation = evaluation_report(
        [
            ActorResult("target 5", 5.0, np.array([-2.5]), np.array([1]), account),
            ActorResult(RANDOM, None, np.array([1.0]), np.array([1]), {}),
        ],
        environment=EVIL,
        step=960,
        first_seed=3,
        data_returns=summary_of(np.array([0.0, 4.0])),
        longest=100,
    )
    files = {
        "summary.json": {
            "global_step": 960,
            "num_parameters": 1234567,
            "train_samples_per_second": 547.4,
        },
        "metrics.jsonl": {"step": 960, "loss": 0.10123},
        "data_report.json": {"trajectories": 512, "steps": 40946, "warnings": [EVIL]},
        "config.json": {"seed": 0, "data": {"path": EVIL}},
        "report/evaluation.json": evaluation,
    }
    for name, value in files.items():
        (workdir / name).write_text(json.dumps(value))
    for shade, name in enumerate(PICTURES):
        pixels_HxWx3 = np.full((45, 80, 3), shade / 10)
        matplotlib.image.imsave(workdir / "report" / name, pixels_HxWx3)
    return workdir


class Page(HTMLParser):
    """What a page shows and refers to; every element is closed where it should be."""

    VOID = ("meta", "img")

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], ""
        self.feed(path.read_text("utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += f"{data}\n"


def test_the_page_holds_everything(workdir):
    path = write_page(workdir)
    assert path == workdir / "report" / "index.html"
    page = Page(path)
    for text in (
        "512 trajectories, 40,946 steps",
        "960",
        "0.1012",
        "1,234,567",
        "547",
        "target 5",
        "\u22122.500",  # a minus sign, in the table of returns
        "+10.0%",
        "targets beyond the data's returns",
        *PICTURES.values(),
    ):
        assert text in page.text, text
    pictures = [base64.b64decode(link.split(",")[1]) for link in page.links]
    expected = [(workdir / "report" / name).read_bytes() for name in PICTURES]
    assert pictures == expected
    assert page.text.count("a<b") == 2
    assert page.text.count(EVIL) == 2  # the environment and the data's warning


def test_the_page_refers_to_nothing_outside(workdir):
    path = write_page(workdir)
    page, text = Page(path), path.read_text("utf-8")
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"url\(|@import|\son\w+=|<[^>]*http", text)


def test_what_is_absent_is_left_out(workdir):
    for name in ("summary", "data_report", "config", "report/evaluation"):
        (workdir / f"{name}.json").unlink()
        Page(write_page(workdir))
    for name in PICTURES:
        (workdir / "report" / name).unlink()
    page = Page(write_page(workdir))
    assert not {"h2", "img", "table", "details"} & set(page.tags)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_shows_it(workdir, tmp_path, width):
    page = write_page(workdir)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    flags += ["--disable-background-networking", f"--user-data-dir={tmp_path / 'user'}"]
    shot = tmp_path / "shot.png"
    subprocess.run(
        [CHROMIUM, *flags, f"--window-size={width},900", f"--screenshot={shot}", page],
        check=True,
        capture_output=True,
        timeout=60,
    )
    pixels_HxWx3 = matplotlib.image.imread(shot)[..., :3]
    assert pixels_HxWx3.shape == (900, width, 3)
    dark_HxW = pixels_HxWx3.max(axis=-1) < 0.5
    rows, columns = np.nonzero(dark_HxW)
    assert 0.005 < dark_HxW.mean() < 0.5  # letters and a picture, on white
    assert np.ptp(rows) > 500
    # In the middle of a wide window, from side to side of a narrow one.
    assert columns.min() == pytest.approx(max(0, (width - 832) / 2) + 20, abs=5)

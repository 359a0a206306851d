# SPDX-License-Identifier: Apache-2.0
"""The page is one file, complete, escaped, of one update, and a browser shows it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from test_evaluation_tables import summary_of

from dt_jax.config import default_config
from dt_jax.reporting.comparison import write_comparison
from dt_jax.reporting.evaluation import RANDOM, ActorResult, evaluation_report
from dt_jax.reporting.run_page import PAGE, read_run, run_fragment, write_run_page
from dt_jax.system.files import write_json

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = '<script src="http://evil">&'
GOLDEN = Path(__file__).parents[1] / "golden" / "run_0_1"


def evaluation_of(step):
    days_D = np.arange("2020-01-01", "2020-01-05", dtype="datetime64[D]").astype(str)
    account = {
        "assets": np.array([[1.0], [1.2], [1.05], [1.1]]),
        "traded": np.zeros((4, 1)),
        "date": days_D[:, None],
    }
    return evaluation_report(
        [
            ActorResult("target 5", 5.0, np.array([-2.5]), np.array([1]), account),
            ActorResult(RANDOM, None, np.array([1.0]), np.array([1]), {}),
        ],
        environment=EVIL,
        step=step,
        first_seed=3,
        data_returns=summary_of(np.array([0.0, 4.0])),
        longest=100,
    )


def record(step):
    return {
        "step": step,
        "loss": 0.10123,
        "validation_loss": 0.2,
        "learning_rate": 1e-4,
        "grad_norm": 0.3,
        "steps_per_second": 12.5,
        "train_runtime": step / 10,
    }


LEVELS = {key: [1.0, 0.5] for key in ("min", "10 %", "median", "90 %", "max")}
HISTOGRAM = {"edges": [0.5, 1.5, 2.5], "counts": [3, 4]}
FILES = {
    "data_report.json": {
        "trajectories": 512,
        "steps": 40946,
        "act_dim": 2,
        "warnings": [EVIL],
        "histograms": {"return": HISTOGRAM, "length": HISTOGRAM},
        "returns_to_go_by_timestep": {"timestep": [0, 5], **LEVELS},
        "action_ranges": {"min": [-1.0, 0.0], "max": [1.0, 0.5]},
        "choices": [],
    },
    "run.json": {
        "total_steps": 960,
        "num_parameters": 1234567,
        "starts": [
            {
                "date": "2026-01-02 03:04:05+00:00",
                "step": 0,
                "command": f"main.py --config={EVIL}",
                "versions": {"jax": "0.10.2"},
                "devices": "JAX 0.10.2, 1 x cpu",
                "commit": "abc1234",
            }
        ],
    },
    "report/held_out.json": {
        "step": 960,
        "mse": 0.2,
        "mse_per_dimension": [0.1, 0.3],
        "bins": [{"from": 0.0, "to": 0.5, "steps": 3, "mse": 0.25}],
        "references": {"mean_action": 0.5, "previous_action": 0.4},
    },
}
PICTURES = {
    *("loss", "rates", "held_out", "held_out_by_dimension", "targets", "by_update"),
    *("accounts", "drawdown", "returns", "lengths", "returns_to_go", "actions"),
}


@pytest.fixture
def workdir(tmp_path):
    """A run called `a<b` with everything in it, evaluated at two of its updates."""
    workdir = tmp_path / "a<b"
    for name, value in FILES.items():
        write_json(workdir / name, value)
    config = default_config()
    config.data.path, config.seed = EVIL, 7
    write_json(workdir / "config.json", config.to_dict())
    for step in (480, 960):
        found = evaluation_of(step)
        write_json(workdir / "report" / "evaluations" / f"{step}.json", found)
    write_json(workdir / "report" / "evaluation.json", found)
    write_records(workdir, 480, 960)
    return workdir


def write_records(workdir, *steps):
    lines = (json.dumps(record(step)) + "\n" for step in steps)
    (workdir / "metrics.jsonl").write_text("".join(lines))


def page_of(workdir):
    write_run_page(workdir)
    return workdir / PAGE


class Page(HTMLParser):
    """What a page shows and refers to; every element is closed where it should be."""

    VOID = ("meta", "img")

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], ""
        self.pictures = []
        self.feed(path.read_text("utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attrs = dict(attrs)
        self.links += [attrs[key] for key in ("src", "href") if key in attrs]
        if tag == "svg":
            self.pictures.append(attrs["aria-label"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += f"{data}\n"


def test_the_page_holds_everything(workdir):
    path = page_of(workdir)
    assert path == workdir / "report" / "index.html"
    page = Page(path)
    for text in (
        "512 trajectories, 40,946 steps",
        "Complete: 960 updates.",
        "0.1012",
        "1,234,567",
        "1 min 36 s",
        "target 5",
        "\u22122.500",  # a minus sign, in the table of returns
        "+10.0%",
        "targets beyond the data's returns",
        "2026-01-02 03:04:05+00:00",
        "abc1234",
        "jax 0.10.2",
        "every key",
    ):
        assert text in page.text, text
    assert len(page.pictures) == len(PICTURES)
    assert {file.stem for file in (workdir / "report").glob("*.svg")} == PICTURES
    assert page.text.count("a<b") == 2
    # The environment, the data's warning, the command, and the key data.path.
    assert page.text.count(EVIL) == 4
    captions = [text for text in page.pictures if "update" in text]
    assert len(captions) == 8
    assert sum("update 960." in text for text in captions) == 7
    assert "Mean returns ± standard error of updates 480, 960." in captions


def test_the_page_refers_to_nothing_outside(workdir):
    path = page_of(workdir)
    page, text = Page(path), path.read_text("utf-8")
    write_run_page(workdir)
    assert path.read_text("utf-8") == text  # equal files give equal pages
    files = {link for link in page.links if not link.startswith("#")}
    assert files == {
        "../metrics.jsonl",
        "../config.json",
        "../data_report.json",
        "evaluation.json",
        "held_out.json",
    }
    assert not {"script", "link", "iframe", "object", "base", "img"} & set(page.tags)
    assert not re.search(r"url\((?!#)|@import|\son\w+=|<(?!svg)[^>]*http", text)


def test_nothing_is_of_another_update(workdir):
    """The run went back to update 480, or was begun anew."""
    write_records(workdir, 240, 480)
    page = Page(page_of(workdir))
    assert "960" not in page.text.replace("of 960 updates", "")
    assert "Not finished: 480 of 960 updates." in page.text
    assert sum("update 480." in text for text in page.pictures) == 5
    write_records(workdir, 240)
    assert read_run(workdir).evaluations == []
    assert "target 5" not in Page(page_of(workdir)).text


def test_what_is_absent_is_left_out(workdir):
    for name in (*FILES, "config.json"):
        (workdir / name).unlink()
    page = Page(page_of(workdir))
    assert len(page.pictures) == 6
    (workdir / "metrics.jsonl").unlink()
    for path in (workdir / "report").rglob("*.json"):
        path.unlink()
    page = Page(page_of(workdir))
    assert not {"h2", "svg", "table", "details"} & set(page.tags)


def test_a_run_of_version_0_1_has_a_page(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "run")
    page = Page(page_of(tmp_path / "run"))
    assert len(page.pictures) == 2
    assert "optimizer.learning_rate" in page.text


def test_a_notebook_shows_a_fragment(workdir):
    text = run_fragment(workdir)
    assert "1,234,567" in text
    assert "--blue: #" in text.split("<svg")[0]
    assert "a&lt;b" in text


def test_runs_have_a_page_together(workdir):
    shutil.copytree(workdir, workdir.parent / "other")
    path = workdir.parent / "other" / "config.json"
    config = json.loads(path.read_text())
    config["optimizer"]["learning_rate"] = 3e-4
    path.write_text(json.dumps(config))
    path, table = write_comparison(workdir.parent)
    page = Page(path)
    assert len(page.pictures) == 3
    assert {"../a<b/report/index.html", "../other/report/index.html"} <= set(page.links)
    for text in ("2 runs side by side", "0.0003", f"data.path = {EVIL} in all"):
        assert text in page.text
    assert "seed = 7 in all" in page.text
    assert len(table.read_text().splitlines()) == 3


MEASURE = """<script>addEventListener("load", () => {
const root = document.documentElement, body = getComputedStyle(document.body);
document.body.dataset.found = JSON.stringify([root.scrollWidth, innerWidth,
body.backgroundColor, body.color, getComputedStyle(
document.querySelector("svg text")).fill]);})</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(("width", "theme"), [(1200, "light"), (500, "dark")])
def test_a_browser_shows_it(workdir, tmp_path, width, theme):
    """500 pixels are the least that its window takes; the body there has 400."""
    page = page_of(workdir)
    copy = tmp_path / "measured.html"
    text = page.read_text("utf-8").replace("</body>", f"{MEASURE}</body>")
    if width == 500:
        text = text.replace("<body>", '<body style="width: 400px; margin: 0">')
    copy.write_text(text, "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    flags += ["--disable-background-networking", f"--user-data-dir={tmp_path / 'user'}"]
    flags += [f"--blink-settings=preferredColorScheme={int(theme == 'light')}"]
    shown = subprocess.run(
        [CHROMIUM, *flags, f"--window-size={width},900", "--dump-dom", copy],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    found = re.search(r'data-found="(\[.*?\])"', shown)[1].replace("&quot;", '"')
    needed, given, paper, ink, letters = json.loads(found)
    assert needed <= given == width
    dark, light = "rgb(20, 24, 29)", "rgb(255, 255, 255)"
    assert paper == (light if theme == "light" else dark)
    assert len({paper, ink, letters}) == 3

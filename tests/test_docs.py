# SPDX-License-Identifier: Apache-2.0
"""The pages say what is there: links, flags, keys, files, and Python that parses."""

import ast
import re
import runpy
from pathlib import Path

import pytest

from dt_jax.__main__ import MODES
from dt_jax.config import default_config, flatten

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
KEYS = set(flatten(default_config().to_dict()))
PLACEHOLDER = "section.key"  # as in `--config.section.key=value`
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DRAWING = ROOT / "docs" / "architecture.svg"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path):
    return str(path.relative_to(ROOT))


def anchors(page):
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings
    }


def broken_links(text, folder):
    """The relative targets of links and pictures that are not there."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    targets = re.findall(r"\]\(\s*([^)\s]+)[^)]*\)", prose)
    targets += re.findall(r"(?:src|href)=\"([^\"]+)\"", prose)
    broken = []
    for target in targets:
        if re.match(r"\w+:", target):
            continue  # another site
        file, _, anchor = target.partition("#")
        path = folder / file
        if not path.exists() or (
            anchor and path.suffix == ".md" and anchor not in anchors(path)
        ):
            broken.append(target)
    return broken


def wrong_flags(text):
    """What `--config.section.key` and `--mode=` name that does not exist."""
    keys = re.findall(r"--config\.(\w+(?:\.\w+)*)", text)
    wrong = [f"--config.{key}" for key in keys if key not in KEYS | {PLACEHOLDER}]
    modes = re.findall(r"--mode[= ](\w+)", text)
    return wrong + [f"--mode={mode}" for mode in modes if mode not in MODES]


def wrong_keys(text):
    """What stands in backticks like a key of a section that we have, but is none."""
    sections = "|".join({key.partition(".")[0] for key in KEYS if "." in key})
    named = re.findall(rf"`((?:{sections})\.\w+)(?:=[^`]*)?`", text)
    named = [name for name in named if not name.endswith((".py", ".safetensors"))]
    return [key for key in named if key not in KEYS]


def python_faults(text):
    """Why a Python block does not parse, each as a line."""
    faults = []
    for language, code in FENCE.findall(text):
        if language == "python":
            try:
                ast.parse(code)
            except SyntaxError as error:
                faults.append(f"{error.msg}: {code.splitlines()[0]}")
    return faults


def test_the_configuration_page_is_what_the_script_writes():
    script = runpy.run_path(str(ROOT / "docs" / "write_configuration.py"))
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == script["configuration_page"](), "python -m docs.write_configuration"


def test_the_configuration_page_has_every_key():
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert set(re.findall(r"^\| `([\w.]+)` \| `", page, re.MULTILINE)) >= KEYS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert broken_links(page.read_text(), page.parent) == []


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=name_of)
def test_flags_exist(page):
    assert wrong_flags(page.read_text()) == []


# The page of all keys names old ones, too.
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "configuration.md"], ids=name_of
)
def test_keys_exist(page):
    assert wrong_keys(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_parses(page):
    assert python_faults(page.read_text()) == []


def test_the_architecture_page_names_every_file():
    files = {
        str(path.relative_to(ROOT / "dt_jax"))
        for path in (ROOT / "dt_jax").glob("*/**/*.py")
        if path.name != "__init__.py"
    }
    wings = "|".join({file.partition("/")[0] for file in files})
    named = re.findall(rf"`((?:{wings})/(?:\w+/)?\w+\.py)`", ARCHITECTURE.read_text())
    assert set(named) == files


def test_the_drawing_names_every_file():
    drawn = set(
        re.findall(
            r"[a-z_]+",
            " ".join(re.findall(r'class="files"[^>]*>([^<]+)<', DRAWING.read_text())),
        )
    )
    files = {p.stem for p in (ROOT / "dt_jax").glob("*/*.py") if p.stem != "__init__"}
    folders = {p.parent.name for p in (ROOT / "dt_jax").glob("*/*/*.py")}
    assert drawn == files | folders


def test_the_checks_can_fail(tmp_path):
    (tmp_path / "page.md").write_text("# A heading, here\n```\n# no heading\n```\n")
    text = (
        "[a](page.md) [b](gone.md) ![c](gone.png) [d](page.md#a-heading-here) "
        "[e](page.md#no-heading) [f](https://example.org) `[g](code.md)`\n"
        '<img src="gone.svg">\n```\n[h](code.md)\n```\n'
    )
    broken = ["gone.md", "gone.png", "page.md#no-heading", "gone.svg"]
    assert broken_links(text, tmp_path) == broken
    assert wrong_flags(
        "--config.eval.beside=x --config.seed=1 --config.train --mode=trian "
        "--config.section.key=value --mode=inspect --config.data.path."
    ) == ["--config.eval.beside", "--config.train", "--mode=trian"]
    assert wrong_keys(
        "`data.paths` `data.path` `train.steps=3` `train.py` `eval.*`"
    ) == ["data.paths", "train.steps"]
    assert python_faults("```python\nx = 1\n```\n\n```python\nx = = 1\n```\n") == [
        "invalid syntax: x = = 1"
    ]

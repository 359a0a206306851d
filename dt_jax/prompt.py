# SPDX-License-Identifier: Apache-2.0
"""What the prompt says of the config: every key with its comment, and what is wrong.

The keys, defaults and comments are those of `config.default_config`, whose source is
read.
"""

import inspect
import re
import textwrap
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from absl import flags

from dt_jax.config import default_config, flatten, unknown
from dt_jax.system.text import nearest, wrong_choice

KINDS = {
    bool: "True or False",
    int: "whole number",
    type(None): "whole number or None",
    float: "number",
    str: "text",
    tuple: "list such as (1.5,2)",
}


class WholeNumber(flags.IntegerParser):
    """Of a flag: 1e3 is a whole number, too, and None stands for no number."""

    def convert(self, argument: str | int) -> int | None:
        if argument == "None":
            return None
        with suppress(ValueError):
            return super().convert(argument)
        with suppress(ValueError):
            if float(argument).is_integer():
                return int(float(argument))
        raise ValueError("expected a whole number")


class Key(NamedTuple):
    """A key of the config, or a section (its default is a dict), and its comment."""

    name: str
    default: object
    comment: str


def documented_keys() -> list[Key]:
    """All sections and keys in the order of `default_config`, whose source is read."""
    defaults, keys, comment = default_config().to_dict(), [], []
    defaults |= flatten(defaults)
    sections = {}
    for line in inspect.getsource(default_config).splitlines():
        if found := re.fullmatch(r"    config\.(\w+) = (\w+) = ConfigDict\(\)", line):
            sections[found[2]] = found[1]
            keys.append(Key(found[1], defaults[found[1]], " ".join(comment)))
            comment = []
        elif found := re.fullmatch(r"    # (.+)", line):
            comment.append(found[1])
        elif found := re.fullmatch(r"    (\w+)\.(\w+) = .+", line):
            section = sections.get(found[1])
            name = f"{section}.{found[2]}" if section else found[2]
            keys.append(Key(name, defaults[name], " ".join(comment)))
            comment = []
    return keys


def describe_keys() -> str:
    """Text for --help, at most 80 columns wide."""
    lines = []
    for key in documented_keys():
        is_section = isinstance(key.default, dict)
        kind = f"({KINDS.get(type(key.default))}, default {key.default!r})"
        lines.append("" if is_section else f"  --config.{key.name}  {kind}")
        indent = "  " if is_section else "      "
        lines += textwrap.wrap(
            key.comment, 80, initial_indent=indent, subsequent_indent=indent
        )
    return "\n".join(lines)


def explain(error: Exception, argv: list[str]) -> str:
    """Why the arguments could not be parsed: the file's fault, a flag's or a key's."""
    chain = [error]  # libraries wrap what a file raises
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    for cause in reversed(chain):
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            if frame.name in ("<module>", "get_config"):
                place = f"{frame.filename}, line {frame.lineno}"
                return f"{place}: {type(cause).__name__}: {cause}"
    cause = chain[-1]
    if isinstance(cause, SyntaxError) and Path(cause.filename or "").is_file():
        return f"{cause.filename}, line {cause.lineno}: {cause.msg}"
    if isinstance(cause, OSError):
        file = str(cause).rpartition(": ")[2].strip("'")
        return f"--config={file}: no such file, expected e.g. configs/base.py"
    if isinstance(error, AttributeError | KeyError):  # an unknown key
        key = re.search(r"\w+", str(error))[0]
        for argument in argv:
            if key in re.split(r"[.=]", argument):
                name = argument.partition("=")[0].removeprefix("--config.")
                return f"{argument}: {unknown(name)}"
    if found := re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL):
        key, value = found.groups()
        defaults = flatten(default_config().to_dict())
        if key not in defaults:
            some = next(known for known in defaults if known.startswith(f"{key}."))
            return f"--config.{key}={value}: a section, expected a key like {some}"
        default = defaults[key]
        article = "" if isinstance(default, bool) else "a "
        like = "" if isinstance(default, bool | None | tuple) else f" like {default!r}"
        expected = f"{article}{KINDS[type(default)]}{like}"
        return f"--config.{key}={value}: expected {expected}"
    if found := re.fullmatch(r"flag --(\w+)=(.*): .+ one of <(.+)>", str(error)):
        name, value, choices = found.groups()
        return wrong_choice(f"--{name}", value, choices.split("|"))
    if isinstance(error, flags.UnrecognizedFlagError):
        return _wrong_flag(error.flagname, argv)
    return f"{error}; see --help and dt_jax/config.py"


def _wrong_flag(name, argv) -> str:
    """Of a flag that does not exist: the nearest one, or the key that may be meant."""
    argument = next((a for a in argv if a.lstrip("-").split("=")[0] == name), name)
    if found := nearest(name, ("config", "workdir", "mode", "help")):
        asked = f"did you mean --{found[0]}?"
    else:
        asked = unknown(name).removeprefix("no such key; ")
        asked = asked.replace("mean ", "mean --config.").replace("or ", "or --config.")
    return f"{argument}: no such flag; {asked}"


def run_name(recipe: str, changed: Mapping[str, object]) -> str:
    """The name of a run's folder: the recipe, then the keys given at the prompt.

    In it are letters, digits and '-_.' alone, and there are at most 75 of them.
    """
    keys = (f"{key.rpartition('.')[2]}_{_last(v)}" for key, v in changed.items())
    name = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join([recipe, *keys]))
    return name[:75].strip("-.")


def _last(value):
    """Of a path its last part, which tells most."""
    if isinstance(value, tuple):
        return "-".join(map(_last, value))
    return str(value).rstrip("/").rpartition("/")[2]

# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a config file or with the flags that change it, in one line.

`configs/base.py` says which keys there are and of which type; a file that forgets one,
or misspells it, is refused before anything is read or written.
"""

import os
import re
import traceback
from pathlib import Path


def check(given, default, file: str | os.PathLike) -> None:
    """Raise ValueError unless a file's config has the keys and types of the default.

    A whole number may stand for a float, and one of any size for None.
    """
    if not hasattr(given, "to_dict"):
        raise ValueError(
            f"{file}: get_config() gave {given!r}, expected a ConfigDict as that of "
            "configs/base.py"
        )
    given, expected = flatten(given.to_dict()), flatten(default.to_dict())
    for key in sorted(given.keys() - expected):
        raise ValueError(f"{file}: {key}: no such key; configs/base.py has them all")
    for key, value in expected.items():
        if key not in given:
            raise ValueError(
                f"{file}: {key} is missing; import configs/base.py and change keys"
            )
        kinds = (
            {int, type(value)}
            if value is None or type(value) is float
            else {type(value)}
        )
        if type(given[key]) not in kinds:
            raise ValueError(
                f"{file}: {key}={given[key]!r}: expected one like {value!r}"
            )


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
        if flag := " ".join(arg for arg in argv if key in re.split(r"[.=]", arg)):
            return f"{flag}: no such key; configs/base.py has them all"
    return f"{error}; see python main.py --help and configs/base.py"


def flatten(tree: dict, prefix: str = "") -> dict:
    """{'section.key': value} of nested dicts."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat

# SPDX-License-Identifier: Apache-2.0
"""Text at the prompt: lines of at most 80 columns, commands, one word of several.

In go strings, out come strings; what prints them is elsewhere.
"""

import difflib
import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

WIDTH = 80  # columns of every screen


def fit(text: str) -> str:
    """The text with every line that is wider than 80 columns broken between words.

    What follows a break is indented by two more than its line. A single word, such as a
    path, is never broken.
    """
    return "\n".join(map(_fit_line, text.split("\n")))


def _fit_line(line):
    if len(line) <= WIDTH:
        return line
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.fill(
        line.lstrip(),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def shorten(text: str, width: int) -> str:
    """At most so many columns of it: the middle is left out, as of a long path."""
    if len(text) <= width:
        return text
    end = 2 * width // 3
    return f"{text[: width - end - 3]}...{text[-end:]}"


def command(*arguments: str, program: str = "") -> str:
    """A command line of this program as it was called, or of another one, for a screen
    of 80 columns.

    It is broken with backslashes, within a word where need be, so that it can be
    copied.
    """
    ours = "dt-jax" if Path(sys.argv[0]).name == "dt-jax" else "python main.py"
    lines = [f"  {program or ours}"]
    for argument in arguments:
        if len(lines[-1]) + 1 + len(argument) > WIDTH - 2:  # a backslash may follow
            lines[-1] += " \\"
            lines.append("    " + argument)
            while len(lines[-1]) > WIDTH - 2:
                last = lines.pop()
                lines += [last[: WIDTH - 2] + "\\", last[WIDTH - 2 :]]
        else:
            lines[-1] += " " + argument
    return "\n".join(lines)


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is none of these words, with all of them and the nearest.

    Raises:
      ValueError: 'key=value: expected one of ...; did you mean ...?'
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(wrong_choice(key, value, choices))


def wrong_choice(key: str, value: str, choices: list[str]) -> str:
    """The error of `check_choice`."""
    many = "one of " + ", ".join(choices)
    expected = " or ".join(choices) if len(choices) < 3 else many
    found = nearest(str(value), choices)
    asked = f"; did you mean {' or '.join(found)}?" if found else ""
    return f"{key}={value!r}: expected {expected}{asked}"


def nearest(word: str, words: Iterable[str]) -> list[str]:
    """Those that may be meant by a mistyped word, at most three, the likeliest first.

    'batch' is near 'batch_size' and 'epochs' near 'num_train_epochs': all parts of the
    one begin parts of the other, which counts more than that letters agree.
    """
    scores = {known: _likeness(word, known) for known in words}
    least = max(0.65, max(scores.values(), default=0.0) - 0.15)
    found = [known for known in scores if scores[known] >= least]
    return sorted(found, key=scores.get, reverse=True)[:3]


def _likeness(typed, known):
    typed, known = (re.findall("[a-z0-9]+", word.lower()) for word in (typed, known))
    letters = "".join(typed), "".join(known)
    if letters[0] == letters[1]:
        return 2.0
    begun = typed and all(any(k.startswith(t) for k in known) for t in typed)
    alike = difflib.SequenceMatcher(None, *letters, autojunk=False).ratio()
    return alike + 0.4 * bool(begun)

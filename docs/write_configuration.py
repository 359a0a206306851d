# SPDX-License-Identifier: Apache-2.0
"""Write docs/configuration.md from the comments of `dt_jax.config.default_config`.

    python -m docs.write_configuration

Run it in the repository after a change of a key or of its comment; tests/test_docs.py
fails while the page is not what this script would write.
"""

from pathlib import Path

from dt_jax.config import RENAMED
from dt_jax.prompt import Key, documented_keys

PAGE = Path(__file__).with_name("configuration.md")

TOP = """\
# Configuration

This page is written by `python -m docs.write_configuration` from the comments in
[dt_jax/config.py](../dt_jax/config.py). Edit them there.

A config file changes a few keys of the base recipe, as
[configs/notebook.py](../configs/notebook.py) does. Any key can also be given on the
command line, where it wins over the file, or set in Python:

```
python main.py --config configs/base.py --config.train.batch_size=128
```

```python
import dt_jax

config = dt_jax.default_config()
config.train.batch_size = 128
```

On the command line `1e3` is a whole number too, and
`--config.model.n_inner=None` stands for no value. A path may begin with `~`, your home.

A key that does not exist is refused, and the error names the nearest ones that do; so
is a wrong word, as in `optimizer.lr_scheduler_type`. Nothing of a run is written before
all is checked.
"""

OLD_NAMES = """\
## Old names

Version 0.1 had other names for these keys. The `config.json` of such a run is still
read. On the command line an old name is refused, and the error gives the new one.

| version 0.1 | now |
|---|---|
"""


def main() -> None:
    PAGE.write_text(configuration_page())


def configuration_page() -> str:
    """The whole page: a table of the keys of each section, then the old names."""
    parts, in_table = [TOP], False
    for key in documented_keys():
        if isinstance(key.default, dict):
            comment = f"{_cell(key.comment)}\n\n" if key.comment else ""
            parts.append(f"\n## {key.name}\n\n{comment}")
            in_table = False
        if not in_table:
            gap = "" if isinstance(key.default, dict) else "\n"
            parts.append(f"{gap}| key | default | what it is |\n|---|---|---|\n")
            in_table = True
        if not isinstance(key.default, dict):
            parts.append(_row(key))
    parts.append("\n" + OLD_NAMES)
    parts += [f"| `{old}` | `{new}` |\n" for old, new in RENAMED.items()]
    return "".join(parts)


def _row(key: Key) -> str:
    comment = f" {_cell(key.comment)}" if key.comment else ""
    return f"| `{key.name}` | `{key.default!r}` |{comment} |\n"


def _cell(text: str) -> str:
    """Text that Markdown shows as it is, in a table too."""
    for letter in "\\|<*":
        text = text.replace(letter, f"\\{letter}")
    return text


if __name__ == "__main__":
    main()

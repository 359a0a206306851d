# SPDX-License-Identifier: Apache-2.0
"""Train a Decision Transformer.

python main.py --config configs/base.py [--workdir DIR]
    [--mode train|evaluate|export|inspect|collect] [--config.section.key=value ...]
"""

import re
import sys
from pathlib import Path

from dt_jax.interruption import watch

watch()  # the imports take seconds

from absl import app, flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from dt_jax.compiled import keep_compiled  # noqa: E402

CONFIG = config_flags.DEFINE_config_file("config", help_string="A file of configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "By default runs/<name of the config>.")
MODES = ["train", "evaluate", "export", "inspect", "collect"]
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
app.define_help_flags()


def main(argv: list[str]) -> int:
    """Returns the exit status: 2 when the input was wrong, told in one line."""
    try:
        rest = flags.FLAGS(argv)[1:]
    except (AttributeError, KeyError) as error:  # ml_collections' for an unknown key
        key = re.search(r"\w+", str(error))[0]
        flag = " ".join(arg for arg in argv if key in re.split(r"[.=]", arg))
        return _refuse(f"{flag}: no such key; configs/base.py has them all")
    except (flags.Error, TypeError, ValueError, SyntaxError) as error:
        return _refuse(f"{error}; see python main.py --help and configs/base.py")
    if rest or CONFIG.value is None:
        return _refuse(f"found {argv[1:]}, expected --config=configs/base.py and flags")
    file = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
    if not file.is_file():
        return _refuse(f"--config={file}: no such file, expected e.g. configs/base.py")
    workdir = Path(WORKDIR.value or Path("runs") / file.stem)

    keep_compiled()
    # To import JAX takes a second: a mistyped flag is told before.
    from dt_jax import hosts, train

    try:
        train.join(CONFIG.value)
        with hosts.fate():
            if MODE.value == "train" or hosts.part():
                getattr(train, MODE.value)(CONFIG.value, workdir)
    except (ValueError, OSError) as error:
        return _refuse(error)
    return 0


def _refuse(error) -> int:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))

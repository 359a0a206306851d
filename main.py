# SPDX-License-Identifier: Apache-2.0
"""Train a Decision Transformer.

python main.py --config configs/base.py [--workdir DIR]
    [--mode train|evaluate|export|inspect|collect] [--config.section.key=value ...]
"""

import sys
from pathlib import Path

from dt_jax.interruption import watch
from dt_jax.process import keep_compiled, use_huge_pages

if __name__ == "__main__":
    use_huge_pages()
    watch()  # the imports take seconds

from absl import app, flags
from ml_collections import config_flags

from configs import base
from dt_jax.config_file import check, explain

CONFIG = config_flags.DEFINE_config_file("config", help_string="A file of configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "By default runs/<name of the config>.")
MODES = ["train", "evaluate", "export", "inspect", "collect"]
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
app.define_help_flags()


def main(argv: list[str]) -> int:
    """Returns the exit status: 2 when the input was wrong, told in one line."""
    try:
        rest = flags.FLAGS(argv)[1:]
    except Exception as error:  # absl's, ml_collections' or the config file's own
        return _refuse(explain(error, argv))
    if rest or not CONFIG.present:
        return _refuse(f"found {argv[1:]}, expected --config=configs/base.py and flags")
    file = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
    if not file.is_file():
        return _refuse(f"--config={file}: no such file, expected e.g. configs/base.py")
    workdir = Path(WORKDIR.value or Path("runs") / file.stem)
    if workdir.exists() and not workdir.is_dir():
        return _refuse(f"--workdir={workdir}: found a file, expected a folder")

    keep_compiled()
    # To import JAX takes a second: a mistyped flag is told before.
    from dt_jax import hosts, train

    try:
        check(CONFIG.value, base.get_config(), file)
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

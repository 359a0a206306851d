# SPDX-License-Identifier: Apache-2.0
"""The prompt: flags, and the choice of a command. `dt-jax` and main.py start here."""

import importlib
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

import dt_jax
from dt_jax.system.files import free_folder
from dt_jax.system.interruption import watch
from dt_jax.system.process import keep_compiled, use_huge_pages

HELP = """\
dt-jax [--config FILE] [--workdir DIR] [--mode MODE] [--config.KEY=VALUE ...]
python main.py, with the same flags

  --config    a file of configs/; by default the base recipe. evaluate and
              export take the run's own, with the keys given here on top
  --workdir   the folder of the run; by default runs/<name of the config>;
              auto: a new one in runs/, named by the config and the keys given
  --mode      train     train, or go on training (the default)
              evaluate  let the trained model act in eval.environment
              inspect   print the data report, train nothing
              export    write the weights for Hugging Face's transformers
              collect   let collect.actor act, write its episodes as a dataset
              convert   write data.path as a memory-mapped dataset
              report    write the page of a run from what lies in its folder

Examples:
  python main.py --config configs/base.py
  python main.py --config.data.path=data/dataset --config.train.max_steps=1e4
  python main.py --workdir=auto --config.seed=1
  python main.py --mode=evaluate --workdir=runs/base --config.eval.episodes=50

Keys:
"""
MODES = ["train", "evaluate", "inspect", "export", "collect", "convert", "report"]
OF_A_RUN = ("evaluate", "export")  # without --config, the run's own is taken


def main() -> NoReturn:
    """Do what sys.argv says; the exit statuses are listed in docs/reliability.md."""
    use_huge_pages()
    watch()
    # From here on a signal is heeded; these imports take seconds.
    sys.exit(_run(sys.argv))


def _run(argv) -> int:
    from absl import flags
    from ml_collections import config_flags

    from dt_jax import config, prompt

    if len(argv) < 2 or {"-h", "-help", "--help"} & set(argv):
        return _show(HELP + prompt.describe_keys())
    mode_flag = flags.DEFINE_enum("mode", "train", MODES, "")
    workdir_flag = flags.DEFINE_string("workdir", None, "")
    try:
        flags.FLAGS(argv, known_only=True)
        file, argv = _take_config(argv)
        mode, name = mode_flag.value, Path(file or "base").stem
        workdir = Path(workdir_flag.value or Path("runs", name)).expanduser()
        if not file and mode in OF_A_RUN:
            config.saved_config(workdir)  # or the reason why it cannot be read
            file = f"{config.__file__}:{workdir}"
        config_flags.register_flag_parser_for_type(int, prompt.WholeNumber())
        # It reads sys.argv, where --config must come first.
        sys.argv = [argv[0], f"--config={file or config.__file__}", *argv[1:]]
        config_flag = config_flags.DEFINE_config_file("config")
        unknown = flags.FLAGS(sys.argv)[1:]
    except FileNotFoundError as error:
        return _refuse(error)
    except Exception as error:  # absl's, ml_collections' or the config file's own
        return _refuse(prompt.explain(error, argv))
    if unknown:
        return _refuse(f"found {unknown}, expected --config=configs/base.py and flags")
    if file and not Path(file.partition(":")[0]).is_file():
        return _refuse(f"--config={file}: no such file, expected e.g. configs/base.py")
    if workdir.exists() and not workdir.is_dir():
        return _refuse(f"--workdir={workdir}: found a file, expected a folder")
    try:
        checked = config.check(config_flag.value, file or "config")
        keep_compiled()
        auto = workdir_flag.value == "auto"
        if auto:
            given = config_flags.get_override_values(flags.FLAGS["config"])
            workdir = Path("runs", prompt.run_name(name, given))
        return _command(mode, checked, workdir, auto)
    except (ValueError, OSError) as error:
        return _refuse(error)


def _show(text) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # of `| head`, which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _take_config(argv):
    """The value of --config, None without it, and the other arguments."""
    for place, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name.lstrip("-") == "config" and name.startswith("-"):
            after = argv[place + 1 :]
            if not equals:
                value, after = after[0] if after else "", after[1:]
            return value, [*argv[:place], *after]
    return None, argv


def _command(mode, config, workdir, auto) -> int:
    print(f"dt-jax {dt_jax.__version__}: starting JAX", flush=True)
    start = time.perf_counter()
    # To import JAX takes a second: a mistyped flag was refused before.
    from dt_jax.commands.setup import join
    from dt_jax.system import distributed

    join(config)
    devices = distributed.describe_devices()
    distributed.print_once(f"{devices}: {time.perf_counter() - start:.1f} s")
    with distributed.abort_all():
        if auto:
            workdir = distributed.broadcast(free_folder(workdir))
            distributed.print_once(f"workdir: {workdir}")
        if mode == "train" or distributed.leave():
            module = importlib.import_module(f"dt_jax.commands.{mode}")
            try:
                getattr(module, mode)(config, workdir)
            except FloatingPointError as error:
                if str(error):
                    print("error:", error, file=sys.stderr)
                raise SystemExit(3) from None
    return 0


def _refuse(error) -> int:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()

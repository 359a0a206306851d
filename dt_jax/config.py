# SPDX-License-Identifier: Apache-2.0
"""The notebook's recipe, which is the only home of defaults, and a config's faults.

    python main.py --config configs/base.py

trains it on the simulated market, one to five minutes on two CPU cores. A config file
changes a few keys of `default_config()`; any key can be given at the prompt
(--config.train.batch_size=128) or set in Python (config.train.batch_size = 128).
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict, config_dict

from dt_jax.system.files import read_json
from dt_jax.system.text import nearest

# What keys were called in version 0.1; a config.json of such a run is still read.
RENAMED = {
    "eval.beside": "eval.baselines",
    "eval.reference_returns": "eval.score_range",
    "hosts.cluster": "distributed.cluster",
    "hosts.initialization_timeout": "distributed.initialization_timeout",
    "hosts.heartbeat_timeout_seconds": "distributed.heartbeat_timeout_seconds",
    "hosts.heartbeat_seconds": "distributed.heartbeat_seconds",
}

# What others call a key, where the words have too little in common.
SYNONYMS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "betas": "adam_beta",
    "eps": "adam_epsilon",
    "bs": "batch_size",
    "k": "context_length",
    "gamma": "discount",
    "clip": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "warmup": "warmup_ratio",
    "warmup_steps": "warmup_ratio",
    "dropout": "pdrop",
    "dim": "hidden_size",
    "embed_dim": "hidden_size",
    "d_model": "hidden_size",
    "width": "hidden_size",
    "precision": "dtype",
    "dataset": "path",
    "env": "environment",
    "checkpoint": "init_from",
    "log_every": "logging_steps",
    "log_interval": "logging_steps",
    "save_every": "save_steps",
    "save_interval": "save_steps",
}


def default_config() -> ConfigDict:
    """The base recipe, locked: a key that does not exist cannot be set by mistake."""
    config = ConfigDict()

    # It determines the first weights, the batches and dropout.
    config.seed = 0
    # Many runs in one program, as JSON: a grid, '{"seed": [0, 1, 2]}', or a list of
    # objects, for settings that belong together; empty: this run alone.
    config.sweep = ""
    # How many of them are trained at once, and the others after them; 0: all.
    config.sweep_at_once = 0

    config.data = data = ConfigDict()
    # A folder saved by `save_to_disk`, a Minari id or folder, an HDF5 file of D4RL or
    # d3rlpy, Parquet; empty: the simulated market, made once.
    data.path = ""
    # Which split of a dataset is read, where it has splits.
    data.split = "train"
    # What cannot be memory-mapped is converted once into this folder; empty: the
    # folder `converted` beside the workdir.
    data.cache = ""
    # Steps of a segment (the collator's max_len).
    data.context_length = 20
    # Timesteps from here on are read as the one before (the collator's max_ep_len).
    data.max_ep_len = 985
    # Returns-to-go are divided by it (the collator's scale).
    data.return_scale = 1000.0
    # Discount of the returns-to-go; 1 is the plain sum, 0 the reward of the step alone.
    data.discount = 1.0
    # 'timestep': from each return-to-go the mean of all at its timestep is subtracted,
    # so that the model sees how much it is above or below that; 'nothing': none is.
    data.relative_to = "nothing"
    # 'length': trajectories are drawn in proportion to their length; 'uniform': alike.
    data.weighting = "length"
    # Train only on the trajectories with the highest returns, which hold this share of
    # all steps; an epoch has as many updates as with all of them.
    data.keep_best = 1.0
    # Cut a row after each `done` inside it, so that returns do not run across a reset.
    data.split_on_dones = False
    # Mean and std of the states: 'stored', the dataset's own where it has them; or
    # 'computed', from the states in any case.
    data.statistics = "stored"
    # Actions beyond (-1, 1), which action_tanh cannot reach: 'auto' maps each dimension
    # to -1 and 1, from the bounds of the environment and the data; 'none': as they are.
    data.action_scaling = "auto"
    # Share of the trajectories that is never trained on, only measured; 0: none.
    data.validation_fraction = 0.0
    # 'host': NumPy batches are sent ahead; 'device': the whole store lies on the
    # device; 'auto': on the device where it fits.
    data.placement = "auto"
    # Precision of the states in a store on the device: float32, or bfloat16, which
    # takes half the memory.
    data.store_dtype = "float32"

    # HF's DecisionTransformerConfig; state_dim and act_dim come from the data.
    config.model = model = ConfigDict()
    # Width of the tokens; a multiple of n_head.
    model.hidden_size = 128
    # Blocks of attention and MLP.
    model.n_layer = 3
    # Heads of the attention.
    model.n_head = 1
    # Width of the MLP; None: four times hidden_size.
    model.n_inner = config_dict.placeholder(int)
    # Activation of the MLP, by Hugging Face's name.
    model.activation_function = "relu"
    # Rows of the timestep table; at least data.max_ep_len.
    model.max_ep_len = 4096
    # Actions are squashed to (-1, 1).
    model.action_tanh = True
    # Dropout of what a block adds.
    model.resid_pdrop = 0.1
    # Dropout of the embedded tokens.
    model.embd_pdrop = 0.1
    # Dropout of the attention's weights.
    model.attn_pdrop = 0.1
    # 'return': the model looks at returns-to-go; 'nothing': it does not, and clones the
    # behaviour in the data.
    model.condition_on = "return"
    # At each step the model predicts the return that is still to be had, and asks for
    # no more. Hugging Face's model cannot.
    model.predict_return = False
    # Added to the variance in a layer norm.
    model.layer_norm_epsilon = 1e-5
    # Standard deviation of the first weights.
    model.initializer_range = 0.02
    # What layers compute in: float32, bfloat16 or float16. Parameters stay float32.
    model.dtype = "float32"

    # AdamW, with the names of HF's TrainingArguments.
    config.optimizer = optimizer = ConfigDict()
    # The highest, after the warmup.
    optimizer.learning_rate = 1e-4
    # Decay of the weights; not of biases and layer norms, nor of what gets no gradient.
    optimizer.weight_decay = 1e-4
    # Decay of the mean of the gradients.
    optimizer.adam_beta1 = 0.9
    # Decay of the mean of their squares.
    optimizer.adam_beta2 = 0.999
    # Added to the root of that mean.
    optimizer.adam_epsilon = 1e-8
    # Gradients are clipped to this global norm.
    optimizer.max_grad_norm = 0.25
    # Share of all updates in which the learning rate rises from 0.
    optimizer.warmup_ratio = 0.1
    # 'linear', 'cosine', 'constant_with_warmup' or 'constant'.
    optimizer.lr_scheduler_type = "linear"

    config.train = train = ConfigDict()
    # An epoch is ceil(trajectories / batch_size) updates; a part of one will do.
    train.num_train_epochs = 120.0
    # Updates in all; above 0 it overrides num_train_epochs.
    train.max_steps = 0
    # A Hugging Face folder or a workdir whose weights to start from; empty: none.
    train.init_from = ""
    # Segments of an update, over all devices together.
    train.batch_size = 64
    # Updates that one call makes on the device before the host looks again; 0: 40 on
    # a GPU or TPU that holds the store, else 10.
    train.updates_per_call = 0
    # Updates between two records of metrics.jsonl (the notebook has 500).
    train.logging_steps = 20
    # Updates between two checkpoints.
    train.save_steps = 500
    # How many checkpoints are kept, the newest.
    train.save_total_limit = 3
    # On a GPU too, the same command computes the same bits each time.
    train.deterministic = True
    # An update whose loss or gradient is not finite is skipped; after this many in a
    # row the run stops.
    train.max_bad_updates = 10

    # After training, and with --mode=evaluate, the model acts towards each target.
    config.eval = evaluation = ConfigDict()
    # A Gymnasium id or 'module:callable'; empty: what the data is known to come from,
    # or none.
    evaluation.environment = ""
    # Arguments of the environment, as JSON: '{"market": "prices.csv"}'.
    evaluation.environment_kwargs = "{}"
    # Returns to aim at, in raw reward; 'auto' is the highest that 2 % of the data's
    # trajectories are near; empty: 10, 50, 90 and 100 % of the data's.
    evaluation.targets = ()
    # Episodes for each target, on the same seeds; 0: no evaluation.
    evaluation.episodes = 20
    # Episodes are cut after so many steps; 0: after the environment's own limit, else
    # the longest trajectory of the data (in collecting: data.max_ep_len).
    evaluation.max_episode_steps = 0
    # Discrete actions are drawn by their probabilities; else the most likely one is
    # taken.
    evaluation.sample = False
    # Divides the logits of discrete actions before one is drawn.
    evaluation.temperature = 1.0
    # Others to compare with, on the same seeds: 'module:callable' (observations ->
    # actions), a .zip of stable-baselines3, a workdir or a Hugging Face folder; and
    # 'clone', or 'clone-best-10%' of the data, which are trained before the run.
    evaluation.baselines = ()
    # Returns that are normalised to 0 and to 100; empty: those published with the data,
    # else that of random actions and the data's 90 % quantile.
    evaluation.score_range = ()

    # --mode=collect: an actor's episodes in eval.environment, to <workdir>/dataset.
    config.collect = collect = ConfigDict()
    # 'module:callable' or a .zip of stable-baselines3 or sb3-contrib, which runs code
    # when it is loaded.
    collect.actor = ""
    # The algorithm of a .zip (of eval.baselines too) whose policy is a class of your
    # own: 'PPO', say; the others say it themselves.
    collect.algorithm = ""
    # A VecNormalize that stable-baselines3 saved (vecnormalize.pkl), which runs code
    # when it is loaded: the actor sees observations normalised by it; the dataset holds
    # them as they were.
    collect.normalization = ""
    # How many are collected.
    collect.episodes = 1000

    # A run of several processes, on one host or many: see docs/many-devices.md.
    config.distributed = distributed = ConfigDict()
    # 'auto': what JAX finds (Slurm, Open MPI, Kubernetes, Cloud TPU); 'none': this
    # process alone; or one by JAX's name of it, such as 'mpi4py'.
    distributed.cluster = "auto"
    # Seconds after which a process ends if not all of them have met.
    distributed.initialization_timeout = 300
    # When one has been silent for so many seconds, the others end.
    distributed.heartbeat_timeout_seconds = 60
    # Seconds between two lines in which a process reports that it is alive.
    distributed.heartbeat_seconds = 60

    config.log = log = ConfigDict()
    # Also send the metrics to Weights & Biases (pip install wandb).
    log.wandb = False

    return config.lock()


def get_config(workdir: str = "") -> ConfigDict:
    """What --config stands for without a file: a run's own config, or the default."""
    return saved_config(workdir) if workdir else default_config()


def saved_config(workdir: str | os.PathLike) -> ConfigDict:
    """The config that a run has left in its workdir, old names read as the new ones.

    Raises:
      FileNotFoundError, ValueError: there is no `config.json`, or it is no config.
    """
    file = Path(workdir) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file, expected the --workdir of a run that has begun"
        )
    config = default_config()
    try:
        config.update_from_flattened_dict(flatten(current_names(read_json(file))))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: not the config of a run ({error})") from None
    return config


def current_names(saved: Mapping) -> dict:
    """A config as nested dicts, with the keys of version 0.1 under their new names."""
    renamed = {RENAMED.get(key, key): value for key, value in flatten(saved).items()}
    nested = {}
    for key, value in renamed.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return nested


def changed_keys(saved: Mapping) -> dict:
    """{'section.key': value} of a config.json where it has not the default.

    A key that is newer than the config has had its default.
    """
    defaults = json.loads(json.dumps(default_config().to_dict()))  # lists, not tuples
    found, plain = flatten(current_names(saved)), flatten(defaults)
    return {k: found[k] for k in plain if k in found and found[k] != plain[k]}


def check(given: ConfigDict, where: str | os.PathLike) -> ConfigDict:
    """A locked copy of a config, for the commands; `~` is the home of the user.

    Args:
      where: the config comes from, a file or 'config'; errors begin with it.

    Raises:
      ValueError: it has not the keys and types of the default. (A whole number may
        stand for a float, and one of any size for None.)
    """
    if not hasattr(given, "to_dict"):
        raise ValueError(
            f"{where}: found {given!r}, expected a ConfigDict as `default_config()` of "
            "dt_jax.config gives"
        )
    checked = default_config()
    given, expected = flatten(given.to_dict()), flatten(checked.to_dict())
    for key in sorted(given.keys() - expected):
        raise ValueError(f"{where}: {key}: {unknown(key)}")
    for key, value in expected.items():
        if key not in given:
            raise ValueError(
                f"{where}: {key} is missing; take dt_jax.config.default_config() and "
                "change keys"
            )
        kinds = {int, float} if type(value) is float else {type(value)}
        if value is None:
            kinds = {int, type(None)}
        if type(given[key]) not in kinds:
            raise ValueError(
                f"{where}: {key}={given[key]!r}: expected one like {value!r}"
            )
    checked.update_from_flattened_dict(
        {key: _expand_home(value) for key, value in given.items()}
    )
    return checked


def _expand_home(value):
    if isinstance(value, tuple):
        return tuple(map(_expand_home, value))
    return os.path.expanduser(value) if isinstance(value, str) else value


def unknown(key: str) -> str:
    """What to say of a key that does not exist: its new name, or the nearest right one.

    A key is often given without its section, or in another one.
    """
    if key in RENAMED:
        return f"this key is now called {RENAMED[key]}"
    section, _, name = key.rpartition(".")
    known = {}
    for full in flatten(default_config().to_dict()):
        known.setdefault(full.rpartition(".")[2], []).append(full)
    names = nearest(SYNONYMS.get(name.lower(), name), known)
    found = [full for name in names for full in known[name]]
    found = [k for k in found if k.startswith(f"{section}.")] or found
    if not found:
        return "no such key; dt_jax/config.py has them all"
    return f"no such key; did you mean {' or '.join(found)}?"


@contextmanager
def naming_keys() -> Iterator[None]:
    """Errors of the block that name an argument name the key it comes from.

    'batch_size=0: expected at least 1' becomes 'train.batch_size=0: expected ...'.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        named = _named(str(error))
        if named == str(error):
            raise
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(named) from error


def _named(message):
    keys = {}
    for key in flatten(default_config().to_dict()):
        keys.setdefault(key.rpartition(".")[2], key)
    return re.sub(r"(?<!\S)\w+(?==)", lambda m: keys.get(m[0], m[0]), message)


def flatten(tree: Mapping, prefix: str = "") -> dict:
    """{'section.key': value} of nested dicts."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat

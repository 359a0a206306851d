# SPDX-License-Identifier: Apache-2.0
"""Whatever is wrong with what a user gives: one line says it, and nothing changes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import gymnasium
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict
from safetensors.numpy import load_file, save_file

from dt_jax.commands.export import export
from dt_jax.commands.train import train
from dt_jax.config import default_config
from dt_jax.system.files import locked

pytestmark = pytest.mark.filterwarnings(  # of ml_collections' own
    "ignore:the load_module:DeprecationWarning"
)
ROOT = Path(__file__).parent.parent
LENGTHS = (2, 3, 1, 4)
SMALL = {
    "data.context_length": 3,
    "data.max_ep_len": 4,
    "model.max_ep_len": 4,
    "model.hidden_size": 8,
    "model.n_layer": 1,
    "train.batch_size": 4,
    "train.max_steps": 2,
    "train.updates_per_call": 1,
    "train.logging_steps": 1,
    "train.save_steps": 1,
}


def make_columns(width=3) -> dict[str, list]:
    """A small dataset as lists, to be spoiled."""
    draw = np.random.default_rng(0).normal
    return {
        "observations": [draw(size=(n, width)).tolist() for n in LENGTHS],
        "actions": [np.tanh(draw(size=(n, 2))).tolist() for n in LENGTHS],
        "rewards": [draw(size=n).tolist() for n in LENGTHS],
        "dones": [[False] * (n - 1) + [True] for n in LENGTHS],
    }


def write(path, dataset):
    shutil.rmtree(path, ignore_errors=True)
    dataset.save_to_disk(path)


@pytest.fixture(scope="module")
def template(tmp_path_factory, compile_fast):
    """data/, a dataset, and run/, a finished run on it with its export in hf/."""
    datasets.disable_progress_bars()
    at = tmp_path_factory.mktemp("template")
    write(at / "data", Dataset.from_dict(make_columns()))
    config = default_config()
    config.update_from_flattened_dict(SMALL | {"data.path": str(at / "data")})
    train(config, at / "run")
    export(config, at / "run")
    yield at
    datasets.enable_progress_bars()


@pytest.fixture
def place(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / "place"))


class Still(gymnasium.Env):
    """Of the dataset's sizes."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.zeros(3, np.float32), 0.0, True, False, {}


class Old(Still):
    """Its `step` is that of the API before Gymnasium 0.26."""

    def step(self, action):
        return np.zeros(3, np.float32), 0.0, True, {}


def rest(observations_ExS):
    return np.zeros((len(observations_ExS), 2))


# What is done to a place before main.py is called on it.


def nothing(_):
    pass


def columns(width=3, **changes):
    """Whole columns as given; None: left out."""

    def damage(at):
        changed = make_columns(width) | changes
        kept = {key: column for key, column in changed.items() if column is not None}
        write(at / "data", Dataset.from_dict(kept))

    return damage


def put(given, column, *indices):
    """One number, list or row given in the place of another."""

    def damage(at):
        changed = make_columns()
        target, last = changed, column
        for index in indices:
            target, last = target[last], index
        target[last] = given
        write(at / "data", Dataset.from_dict(changed))

    return damage


def statistics(mean=(0.0, 0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0, 0.0), width=3):
    return columns(width, state_mean=list(mean), state_std=list(std))


def without_steps(at):
    empty_1 = {key: [c[0], [], *c[2:]] for key, c in make_columns().items()}
    columns(**empty_1)(at)


def struct(*names):
    """The notebook's layout with these fields alone."""

    def damage(at):
        rows = zip(*(make_columns()[name] for name in names), strict=True)
        rows = [dict(zip(names, row, strict=True)) for row in rows]
        write(at / "data", Dataset.from_dict({"train": rows}))

    return damage


def without_rows(at):
    write(at / "data", Dataset.from_dict(make_columns()).select([]))


def without_train(at):
    write(at / "data", DatasetDict(test=Dataset.from_dict(make_columns())))


def empty(name):
    def damage(at):
        shutil.rmtree(at / name, ignore_errors=True)
        (at / name).mkdir()

    return damage


def parquet(name="rows", steps=False, **changes):
    columns = {**make_columns(), **changes}
    columns = {key: column for key, column in columns.items() if column is not None}
    table = pa.table({"actions": [0.5]} if steps else columns)

    def damage(at):
        empty("data")(at)
        pa.parquet.write_table(table, at / "data" / f"{name}.parquet")

    return damage


def csv(at):
    empty("data")(at)
    (at / "data" / "prices.csv").write_text("date,tic,close\n2020-01-02,A,1.0\n")


def text(name, content):
    """A file of this content in the place of what was there."""

    def damage(at):
        if (at / name).is_dir():
            shutil.rmtree(at / name)
        (at / name).write_text(content)

    return damage


def config(*lines):
    """mine.py; its get_config has these lines."""
    return text("mine.py", "\n    ".join(["def get_config():", *lines, ""]))


def changed_base(line):
    return config(
        "from dt_jax.config import default_config",
        "config = default_config()",
        line,
        "return config",
    )


def cut(pattern):
    def damage(at):
        for path in at.glob(pattern):
            os.truncate(path, path.stat().st_size // 2)

    return damage


def flip(pattern):
    def damage(at):
        for path in at.glob(pattern):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)

    return damage


def remove(pattern):
    def damage(at):
        for path in at.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def hf(**changes):
    """Other fields in the exported config.json."""

    def damage(at):
        path = at / "run" / "hf" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def tensor(change):
    """Another bias of the layer norm in the exported weights; None: left out."""

    def damage(at):
        path = at / "run" / "hf" / "model.safetensors"
        tensors = load_file(path)
        bias = change(tensors.pop("embed_ln.bias"))
        save_file(tensors | ({} if bias is None else {"embed_ln.bias": bias}), path)

    return damage


def pickled(at):
    remove("run/hf/model.safetensors")(at)
    text("run/hf/pytorch_model.bin", "text")(at)


NAN, INF = float("nan"), float("inf")
MINE = "--config={at}/mine.py --mode=inspect"
DATA, RUN, HF = "data.path={at}/data: ", "--workdir={at}/run", "{at}/run/hf"
ARROW, STATES = "data-00000-of-00001.arrow", "run/checkpoints/*/state/**/d/*"
NEW_FROM_RUN = "--workdir={at}/new train.init_from={at}/run"
NEW_FROM_HF = NEW_FROM_RUN + "/hf"
NONE_GOOD = "{at}/run/checkpoints: none of the checkpoints [1, 2] is good (2: "
EVALUATE = f"--mode=evaluate {RUN} eval.environment=test_bad_input:Still"
COLLECT = "--mode=collect eval.environment=test_bad_input:Still"
REST = f"{COLLECT} collect.actor=test_bad_input:rest"
# What is wrong; how it comes about; what is typed (`--config.` left out) after the
# arguments of the finished run; what its line tells, in this order. Without a --workdir
# among the flags all is done twice: in a new workdir and in that of the finished run.
# fmt: off
WRONG = [
    # The data's folder.
    ("no such folder", nothing, "data.path={at}/none",
     "data.path={at}/none: no such folder; expected .. save_to_disk"),
    ("a file", text("data", "rows"), "",
     DATA + "found a file; expected a dataset saved by save_to_disk"),
    ("an empty folder", empty("data"), "", DATA + "not a whole dataset"),
    ("a folder of CSV", csv, "", DATA + "not a whole dataset .. save_to_disk"),
    ("Parquet without a column", parquet(actions=None), "",
     DATA + "trajectory 0: found dones, observations, rewards; expected .. actions"),
    ("Parquet of a step a row", parquet(steps=True), "",
     DATA + "found the columns .. none of lists; expected a trajectory a row"),
    ("Parquet without the split", parquet(name="test-00000-of-00001"), "",
     DATA + "found the splits test, expected 'train'"),
    ("a pickle", text("rows.pkl", "rows"), "data.path={at}/rows.pkl",
     "data.path={at}/rows.pkl: a Python pickle is never loaded .. save_trajectories"),
    ("no Minari dataset", nothing, "data.path=nobody/has/this-v0",
     "data.path=nobody/has/this-v0: no such folder, and no Minari dataset .. download"),
    ("nothing to convert", nothing, "--mode=convert",
     DATA + "nothing to convert; expected one of"),
    ("a run for its data", nothing, "data.path={at}/run",
     "data.path={at}/run: not a whole dataset .. save_to_disk"),
    ("a file cut short", cut("data/*.arrow"), "",
     DATA + f"not a readable dataset ({ARROW}: .. save_to_disk"),
    ("a file of nothing", text(f"data/{ARROW}", ""), "",
     DATA + f"not a readable dataset ({ARROW}: .. save_to_disk"),
    ("a file of text", text(f"data/{ARROW}", "text " * 99), "",
     DATA + f"not a readable dataset ({ARROW}: .. save_to_disk"),
    ("a file gone", remove("data/*.arrow"), "",
     DATA + f"not a whole dataset .. {ARROW} .. save_to_disk"),
    ("state.json broken", text("data/state.json", "{"), "",
     DATA + "not a readable dataset (state.json: .. save_to_disk"),
    ("state.json of another thing", text("data/state.json", "[1]"), "",
     DATA + "not a readable dataset (state.json: .. save_to_disk"),
    ("state.json of no files", text("data/state.json", '{"_data_files": [3]}'), "",
     DATA + "not a readable dataset (state.json: .. save_to_disk"),
    ("state.json gone", remove("data/state.json"), "", DATA + "not a whole dataset"),
    ("no split of that name", without_train, "",
     DATA + "found the splits test, expected 'train'"),
    # What is in it.
    ("a missing column", columns(actions=None), "",
     DATA + "found the columns observations, rewards, dones; expected .. actions"),
    ("a missing field", struct("observations", "actions", "dones"), "",
     DATA + "found the fields observations, actions, dones .. expected .. rewards"),
    ("no rows", without_rows, "", DATA + "found no rows, expected at least one"),
    ("no steps", without_steps, "",
     DATA + "trajectory 1: column 'observations' has no steps; .. at least one"),
    ("no numbers", columns(observations=[[[]] * n for n in LENGTHS]), "",
     DATA + "column 'observations' holds null, expected numbers"),
    ("ragged states", put([1.0], "observations", 1, 2), "",
     DATA + "trajectory 1: column 'observations' has a row of 1 .. first row has 3"),
    ("ragged actions", put([1.0, 2.0, 3.0], "actions", 3, 0), "",
     DATA + "trajectory 3: column 'actions' has a row of 3 .. first row has 2"),
    ("too few rewards", put([1.0], "rewards", 3), "",
     DATA + "trajectory 3: column 'rewards' has 1 steps, .. 'observations' has 4"),
    ("too many dones", put([True] * 3, "dones", 0), "",
     DATA + "trajectory 0: column 'dones' has 3 steps, .. 'observations' has 2"),
    ("NaN in the states", put(NAN, "observations", 3, 2, 1), "",
     DATA + "trajectory 3: .. 'observations' holds nan at step 2, feature 1; .. a f"),
    ("infinity in the actions", put(-INF, "actions", 1, 0, 0), "",
     DATA + "trajectory 1: column 'actions' holds -inf at step 0, feature 0; .. a f"),
    ("NaN in the rewards", put(NAN, "rewards", 2, 0), "",
     DATA + "trajectory 2: column 'rewards' holds nan at step 0; expected a finite"),
    ("a state beyond float32", put(1e39, "observations", 3, 2, 1), "",
     DATA + "trajectory 3: column 'observations' holds 1e+39 at step 2, .. float32"),
    ("a reward beyond float32", put(-1e39, "rewards", 3, 2), "",
     DATA + "trajectory 3: column 'rewards' holds -1e+39 at step 2; .. float32"),
    ("rewards of text", columns(rewards=[["a"] * n for n in LENGTHS]), "",
     DATA + "column 'rewards' holds string, expected numbers"),
    ("states of text", columns(observations=["a"] * 4), "",
     DATA + "column 'observations' holds string where a list was expected"),
    ("dones of text", columns(dones=[["no"] * n for n in LENGTHS]), "",
     DATA + "column 'dones' holds string, expected numbers"),
    ("states in no list", columns(observations=[1.0] * 4), "",
     DATA + "column 'observations' holds double where a list was expected"),
    ("rewards in three lists", columns(rewards=[[[[1.0]]] * n for n in LENGTHS]), "",
     DATA + "column 'rewards' holds list .. expected numbers"),
    ("a null trajectory", put(None, "observations", 2), "",
     DATA + "trajectory 2: column 'observations' has an empty (null) value"),
    ("a null step", put(None, "actions", 3, 1), "",
     DATA + "trajectory 3: column 'actions' has an empty (null) value"),
    ("a null number", put(None, "rewards", 3, 1), "",
     DATA + "trajectory 3: column 'rewards' has an empty (null) value"),
    ("short statistics", statistics(width=5), "",
     DATA + "columns state_mean and state_std have 4 rows, but states have 5 numbers"),
    ("a std of zero", statistics(std=(1.0, 0.0, 1.0, 0.0)), "",
     DATA + "column 'state_std' holds 0.0 for feature 1, expected a positive number"),
    ("a negative std", statistics(std=(1.0, 1.0, -2.0, 0.0)), "",
     DATA + "column 'state_std' holds -2.0 for feature 2, expected a positive number"),
    ("a tiny std", statistics(std=(1.0, 1e-60, 1.0, 0.0)), "",  # 0 in float32
     DATA + "column 'state_std' holds 0.0 for feature 1, expected a positive number"),
    ("a std of NaN", statistics(std=(1.0, NAN, 1.0, 0.0)), "",
     DATA + "column 'state_std' holds nan for feature 1, expected a finite float32"),
    ("a huge mean", statistics(mean=(0.0, 0.0, 1e39, 0.0)), "",
     DATA + "column 'state_mean' holds 1e+39 for feature 2, expected a finite float32"),
    ("states of two names", columns(states=make_columns()["observations"]), "",
     DATA + "found the columns .. expected either observations or states, not both"),
    ("no dones to split on", columns(dones=None), "data.split_on_dones=True",
     "data.split_on_dones=True needs a column 'dones'"),
    ("all held out", nothing, "data.validation_fraction=0.99",
     "data.validation_fraction=0.99 of 4 trajectories .. at least one"),
    # The command line.
    ("an unknown flag", nothing, "--batch_size=3", "batch_size"),
    ("an unknown mode", nothing, "--mode=fly", "--mode='fly': .. train .. inspect"),
    ("a word too much", nothing, "-- stray", "stray .. expected --config"),
    ("an unknown key", nothing, "model.width=3", "--config.model.width=3: no such key"),
    ("a misspelt key", nothing, "train.bath_size=3", "train.bath_size"),
    ("an unknown section", nothing, "nothing.width=3", "--config.nothing.width=3: no"),
    ("no number", nothing, "train.batch_size=abc", "train.batch_size=abc"),
    ("no whole number", nothing, "train.batch_size=1.5", "train.batch_size=1.5"),
    ("no float", nothing, "optimizer.learning_rate=fast", "learning_rate=fast"),
    ("neither true nor false", nothing, "model.action_tanh=maybe", "action_tanh=maybe"),
    ("no value", nothing, "train.batch_size=", "train.batch_size="),
    ("a whole section", nothing, "data=3", "--config.data "),
    ("a workdir that is a file", text("file", ""), "--workdir={at}/file",
     "--workdir={at}/file: found a file, expected a folder"),
    ("a workdir in a file", nothing, "--workdir={at}/data/state.json/run",
     "Not a directory: '{at}/data/state.json/run'"),
    ("a workdir in a file, inspected", nothing,
     "--mode=inspect --workdir={at}/data/state.json/run",
     "Not a directory: '{at}/data/state.json/run'"),
    # The config file.
    ("no file", nothing, "--config={at}/no.py", "--config={at}/no.py: no such file"),
    ("no file to change", nothing, "--config={at}/no.py seed=1",
     "--config={at}/no.py: no such file"),
    ("a folder", nothing, "--config={at}/data", "--config={at}/data: no such file"),
    ("does not parse", config("return ("), MINE, "{at}/mine.py, line 2: "),
    ("no get_config", text("mine.py", ""), MINE, "'get_config'"),
    ("raises", config("return 1 / 0"), MINE, "{at}/mine.py, line 2: ZeroDivisionError"),
    ("raises lines", config("raise ValueError('two\\nlines')"), MINE,
     "{at}/mine.py, line 2: ValueError: two lines"),
    ("imports nothing", config("import no_such"), MINE,
     "{at}/mine.py, line 2: ModuleNotFoundError: No module named 'no_such'"),
    ("returns a number", config("return 3"), MINE,
     "{at}/mine.py: found 3, expected a ConfigDict"),
    ("returns a dict", config("return {}"), MINE,
     "{at}/mine.py: found {}, expected a ConfigDict"),
    ("lacks a key",
     changed_base("with config.unlocked(): del config.train.save_steps"), MINE,
     "{at}/mine.py: train.save_steps is missing; take dt_jax.config.default_config()"),
    ("has another key", changed_base("config.train.bath_size = 3"), MINE,
     "{at}/mine.py, line 4: AttributeError: .. Did you mean \"batch_size\""),
    ("a wrong type", changed_base("config.train.batch_size = 'many'"), MINE,
     "{at}/mine.py, line 4: TypeError: .. batch_size .. int"),
    # What its values mean.
    ("no updates", nothing, "train.max_steps=0 train.num_train_epochs=0",
     "train.num_train_epochs=0.0: expected above 0"),
    ("three heads", nothing, "model.n_head=3",
     "model.hidden_size=8 is not a multiple of model.n_head=3"),
    ("no targets", nothing, "eval.targets=much", "eval.targets: found 'much', exp"),
    ("one reference", nothing, "eval.score_range=(1.0,)",
     "eval.score_range=(1.0,): expected two numbers"),
    ("arguments of no JSON", nothing, "eval.environment_kwargs={oops",
     "eval.environment_kwargs='{oops': .. expected JSON"),
    ("arguments in a list", nothing, "eval.environment_kwargs=[1]",
     "eval.environment_kwargs='[1]': expected a JSON object"),
    ("other arguments", nothing,
     'eval.environment=Pendulum-v1 eval.environment_kwargs={"h":1}',
     "eval.environment_kwargs={'h': 1}: .. expected the arguments of Pendulum-v1"),
    ("an environment of another size", nothing, "eval.environment=Pendulum-v1",
     "eval.environment=Pendulum-v1: actions are Box(-2.0, 2.0, (1,) .. a Box of 2"),
    ("an environment of the old API", nothing,
     "eval.environment=test_bad_input:Old",
     "eval.environment=Old: step() returned 4 values (ndarray, float, bool, dict), but "
     "Gymnasium expects (observation, reward, terminated, truncated, info)"),
    ("no time at all", nothing,
     "eval.environment=test_bad_input:Still eval.max_episode_steps=-1",
     "eval.max_episode_steps=-1: expected 0"),
    ("no such baseline", nothing, f"{EVALUATE} eval.baselines=('nowhere',)",
     "eval.baselines: actor 'nowhere': no such folder; expected"),
    ("no agent as a baseline", nothing, f"{EVALUATE} eval.baselines=('none.zip',)",
     "eval.baselines: actor 'none.zip': no such file"),
    ("no episodes", nothing, f"{EVALUATE} eval.episodes=0",
     "eval.episodes=0: expected at least 1"),
    ("no environment", nothing, f"--mode=evaluate {RUN}", "eval.environment is empty"),
    ("no actor", nothing, COLLECT, "collect.actor='': expected"),
    ("no such actor", nothing, f"{COLLECT} collect.actor=no_such:actor",
     "collect.actor: actor 'no_such:actor': No module named"),
    ("no such algorithm", nothing, f"{REST} collect.algorithm=REDQ",
     "collect.actor: collect.algorithm='REDQ': expected one of PPO, TRPO, A2C, SAC"),
    ("no such normalization", nothing, f"{REST} collect.normalization=none.pkl",
     "collect.actor: collect.normalization='none.pkl': no such file"),
    ("nothing collected", nothing, f"{REST} collect.episodes=0", "collect.episodes=0"),
    ("collected already", empty("run/dataset"), f"{REST} {RUN}",
     "{at}/run/dataset exists already"),
    # The run and its checkpoints.
    ("another batch size", nothing, f"train.batch_size=8 {RUN}",
     "{at}/run holds a run with train.batch_size=4, .. =8; choose another --workdir"),
    ("another depth", nothing, f"model.n_layer=2 {RUN}",
     "{at}/run holds a run with model.n_layer=1, .. n_layer=2; .. another --workdir"),
    ("other data", put(7.0, "rewards", 0, 0), RUN,
     "{at}/run holds a run on data of fingerprint .. data.path='{at}/data' .. another"),
    ("bytes flipped", flip(STATES), RUN, NONE_GOOD + ".. delete .. or .. --workdir"),
    ("states cut short", cut(STATES), RUN, NONE_GOOD + ".. delete .. or .. --workdir"),
    ("no states", remove("run/checkpoints/*/state"), RUN, NONE_GOOD + ".. delete"),
    ("no records", remove("run/checkpoints/*/record"), RUN, NONE_GOOD + ".. delete"),
    ("records of no JSON", cut("run/checkpoints/*/record/metadata"), RUN,
     NONE_GOOD + ".. delete .. or choose another --workdir"),
    ("bytes flipped, exported", flip(STATES), f"--mode=export {RUN}", NONE_GOOD),
    ("bytes flipped, evaluated", flip(STATES), EVALUATE, NONE_GOOD),
    ("bytes flipped, to start from", flip(STATES), NEW_FROM_RUN, NONE_GOOD),
    ("checkpoints in a file", text("run/checkpoints", ""), RUN,
     "File exists: '{at}/run/checkpoints'"),
    ("no checkpoint to start from", empty("run/checkpoints"), NEW_FROM_RUN,
     "{at}/run: the run has no checkpoint yet"),
    ("another model to start from", nothing, f"{NEW_FROM_RUN} model.n_layer=2",
     "train.init_from={at}/run is another model; add --config.model.n_layer=1"),
    ("nothing to start from", nothing, "train.init_from={at}/none",
     "{at}/none: neither checkpoints/ nor config.json there; expected"),
    ("nothing to export", nothing, "--mode=export --workdir={at}/new",
     "{at}/new: neither checkpoints/ nor config.json there; expected"),
    ("the summary broken", text("run/summary.json", "{"), RUN,
     "{at}/run/summary.json: not JSON"),
    ("the data report broken", text("run/data_report.json", "{"), EVALUATE,
     "{at}/run/data_report.json: not JSON"),
    # A Hugging Face folder.
    ("no config.json", remove("run/hf/config.json"), NEW_FROM_HF,
     HF + ": neither checkpoints/ nor config.json there; expected"),
    ("config.json broken", text("run/hf/config.json", "{"), NEW_FROM_HF,
     HF + "/config.json: not JSON"),
    ("config.json a list", text("run/hf/config.json", "[]"), NEW_FROM_HF,
     HF + "/config.json: found list, expected an object"),
    ("GPT-2", hf(model_type="gpt2"), NEW_FROM_HF,
     HF + "/config.json: model_type is 'gpt2', expected 'decision_transformer'"),
    ("a width of text", hf(hidden_size="8"), NEW_FROM_HF,
     HF + "/config.json: hidden_size is '8', expected a value like 128"),
    ("an unknown activation", hf(activation_function="swishh"), NEW_FROM_HF,
     f"train.init_from={HF}: model.activation_function='swishh' .. expected one of"),
    ("heads that do not divide", hf(n_head=3), NEW_FROM_HF,
     f"train.init_from={HF}: model.hidden_size=8 is not a multiple of model.n_head=3"),
    ("no weights", remove("run/hf/model.safetensors"), NEW_FROM_HF,
     HF + ": no model.safetensors nor pytorch_model.bin, nor an index of either"),
    ("weights cut short", cut("run/hf/model.safetensors"), NEW_FROM_HF,
     HF + "/model.safetensors: not a whole safetensors file"),
    ("weights of text", text("run/hf/model.safetensors", "text"), NEW_FROM_HF,
     HF + "/model.safetensors: not a whole safetensors file"),
    ("a broken pickle", pickled, NEW_FROM_HF, HF + "/pytorch_model.bin: "),
    ("a missing tensor", tensor(lambda bias: None), NEW_FROM_HF,
     HF + "/model.safetensors: embed_ln.bias missing"),
    ("a tensor cut short", tensor(lambda bias: bias[:3]), NEW_FROM_HF,
     HF + "/model.safetensors: embed_ln.bias is (3,), expected (8,)"),
    ("a tensor of NaN", tensor(lambda bias: bias * NAN), NEW_FROM_HF,
     HF + "/model.safetensors: embed_ln.bias is not finite"),
    ("a tensor of integers", tensor(lambda bias: bias.astype(np.int32)), NEW_FROM_HF,
     HF + "/model.safetensors: embed_ln.bias is int32, expected float32"),
    ("weights for other states", hf(state_dim=4), NEW_FROM_HF,
     HF + "/model.safetensors: embed_state.weight is (8, 3), expected (8, 4)"),
    ("normalization.json broken", text("run/hf/normalization.json", "{"), NEW_FROM_HF,
     HF + "/normalization.json: not JSON"),
]
# fmt: on
# Values out of range: the line tells the key, the value and what was expected.
WRONG += [
    (f"{key}={value}", nothing, f"{key}={value}", f"{key}= .. {value} .. {expected}")
    for key, value, expected in (
        ("seed", -1, "expected 0 to 2**32 - 1"),
        ("seed", 2**70, "expected 0 to 2**32 - 1"),
        ("data.context_length", 0, "at least 1"),
        ("data.max_ep_len", 0, "at least 1"),
        ("data.return_scale", 0.0, "above 0"),
        ("data.return_scale", NAN, "above 0"),
        ("data.discount", 1.5, "0 to 1"),
        ("data.validation_fraction", 1.0, "0 to 1"),
        ("data.weighting", "both", "expected length or uniform"),
        ("data.statistics", "mine", "expected stored or computed"),
        ("data.placement", "moon", "expected one of auto, host, device"),
        ("data.store_dtype", "int8", "expected float32 or bfloat16"),
        ("model.n_head", 0, "at least 1"),
        ("model.n_layer", 0, "at least 1"),
        ("model.hidden_size", 0, "at least 1"),
        ("model.n_inner", -1, "at least 1"),
        ("model.max_ep_len", 3, "data.max_ep_len=4"),
        ("model.activation_function", "prelu", "expected one of gelu"),
        ("model.dtype", "int8", "expected one of float32, bfloat16, float16"),
        ("model.layer_norm_epsilon", -1.0, "0 or more"),
        ("model.initializer_range", INF, "finite"),
        ("model.resid_pdrop", 1.5, "0 to 1"),
        ("model.embd_pdrop", -0.1, "0 to 1"),
        ("model.attn_pdrop", NAN, "0 to 1"),
        ("optimizer.learning_rate", -1.0, "0 or more"),
        ("optimizer.learning_rate", NAN, "finite"),
        ("optimizer.weight_decay", INF, "finite"),
        ("optimizer.adam_beta1", 1.0, "0 to 1"),
        ("optimizer.max_grad_norm", 0.0, "above 0"),
        ("optimizer.warmup_ratio", 2.0, "0 to 1"),
        ("optimizer.lr_scheduler_type", "polynomial", "expected one of linear"),
        ("train.batch_size", 0, "at least 1"),
        ("train.batch_size", 6, "4 and 8"),
        ("train.updates_per_call", -1, "0 (the best) or more"),
        ("train.logging_steps", 0, "at least 1"),
        ("train.save_steps", 0, "at least 1"),
        ("train.save_total_limit", 0, "at least 1"),
        ("train.max_bad_updates", 0, "at least 1"),
        ("distributed.heartbeat_seconds", 0, "at least 1"),
        ("eval.environment", "NoSuch-v0", "expected a Gymnasium id"),
        ("eval.environment", "no_such:make", "expected a 'module:callable'"),
    )
]


def files_of(at):
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in at.rglob("*")
    }


def arguments(at, flags):
    """Those of the finished run, then those of a row."""
    settings = {} if "--config=" in flags else {"data.path": at / "data"} | SMALL
    typed = flags.replace("{at}", str(at)).split()
    return [
        *(["--config=configs/base.py"] if settings else []),
        *(f"--config.{key}={value}" for key, value in settings.items()),
        *(flag if flag[:2] in ("--", "st") else f"--config.{flag}" for flag in typed),
    ]


def assert_refused(status, told, at, expected):
    assert status == 2, told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert told.endswith("\n")
    assert "Traceback" not in told
    rest = told
    for part in expected.replace("{at}", str(at)).split(" .. "):
        assert part in rest, told
        rest = rest.split(part, 1)[1]


NAMES = [name for name, *_ in WRONG]


@pytest.mark.parametrize("row", WRONG, ids=NAMES)
def test_what_is_wrong_is_told_in_one_line_and_changes_nothing(
    prompt, place, caplog, row
):
    _, damage, flags, expected = row
    damage(place)
    before = files_of(place)
    for workdir in ("new", "run"):
        typed = flags if "--workdir" in flags else f"--workdir={{at}}/{workdir} {flags}"
        status, _, told = prompt(*arguments(place, typed))
        assert_refused(status, told, place, expected)
        assert not caplog.records  # they would be lines, too
        assert files_of(place) == before


def test_no_two_rows_are_alike():
    assert len(set(NAMES)) == len(NAMES) >= 45


def run_main(*args):
    command = [sys.executable, "main.py", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["raises", "a file cut short", "bytes flipped"])
def test_nothing_else_comes_from_a_process_of_its_own(place, name):
    _, damage, flags, expected = WRONG[NAMES.index(name)]
    damage(place)
    before = files_of(place)
    refused = run_main(*arguments(place, f"{RUN} {flags}"))
    assert_refused(refused.returncode, refused.stderr, place, expected)
    assert files_of(place) == before


def test_a_platform_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "rocm")  # JAX knows it, as it knows cuda
    refused = run_main("--mode=inspect", f"--workdir={tmp_path}/run")
    expected = "error: JAX_PLATFORMS=rocm: JAX .. finds no such device; leave it out"
    assert_refused(refused.returncode, refused.stderr, tmp_path, expected)
    assert not list(tmp_path.iterdir())


def test_a_workdir_in_use_by_another_process_is_refused(place):
    with locked(place / "run"):
        before = files_of(place)
        refused = run_main(*arguments(place, f"{RUN} train.max_steps=3"))
        assert files_of(place) == before
    expected = f"{{at}}/run is in use by process {os.getpid()} .. another --workdir"
    assert_refused(refused.returncode, refused.stderr, place, expected)

# SPDX-License-Identifier: Apache-2.0
"""What a user types: every key is read, and the defaults are the notebook's."""

import json
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from configs import base, fast, notebook
from dt_jax.__main__ import MODES
from dt_jax.commands import inspect, setup
from dt_jax.commands.collect import collect
from dt_jax.commands.train import train
from dt_jax.config import default_config
from dt_jax.data.writer import save_trajectories
from dt_jax.prompt import run_name
from dt_jax.trading.behaviours import behaviour_episodes
from dt_jax.trading.simulation import SIMULATED, simulate_market
from dt_jax.training import trackers

BASE = "--config=configs/base.py"
pytestmark = [
    pytest.mark.usefixtures("compile_fast"),
    # Of ml_collections' own.
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "dataset"
    episodes = [
        {
            "observations": generator.normal(size=(length, 3)),
            "actions": generator.uniform(-1, 1, size=(length, 2)),
            "rewards": generator.normal(size=length),
            "dones": np.arange(length) == length - 1,
        }
        for length in range(1, 9)
    ]
    save_trajectories(path, episodes)
    return path


def assert_refused(answer, names):
    status, _, told = answer
    assert status == 2
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert told.endswith("\n")
    for name in names:
        assert name in told


def test_without_a_config_it_is_the_base_recipe(prompt, tmp_path, dataset):
    flags = (f"--config.data.path={dataset}", "--mode=inspect")
    assert prompt(f"--workdir={tmp_path / 'run'}", *flags)[0] == 0
    with_it = prompt(BASE, f"--workdir={tmp_path / 'with'}", *flags)
    assert with_it[0] == 0
    reports = [tmp_path / name / "data_report.json" for name in ("run", "with")]
    assert reports[0].read_text() == reports[1].read_text()


def test_keys_may_stand_before_the_config(prompt, tmp_path):
    given = ("--config.seed=-1", "--config", "configs/base.py")
    answer = prompt(*given, f"--workdir={tmp_path / 'run'}")
    assert_refused(answer, ["seed=-1: expected 0 to"])


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("optimizer.lr", "no such key; did you mean optimizer.learning_rate?"),
        ("train.max_step", "no such key; did you mean train.max_steps?"),
        ("learning_rate", "no such key; did you mean optimizer.learning_rate?"),
        ("hosts.cluster", "this key is now called distributed.cluster"),
        ("eval.beside", "this key is now called eval.baselines"),
    ],
)
def test_a_wrong_key_is_told_with_the_right_one(prompt, tmp_path, key, told):
    workdir = tmp_path / "run"
    answer = prompt(BASE, f"--workdir={workdir}", f"--config.{key}=3")
    assert_refused(answer, [f"--config.{key}=3: {told}"])
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("auto", ("auto",)),
        ("('auto',)", ("auto",)),
        ("('auto',1.5)", ("auto", 1.5)),
    ],
)
def test_a_list_may_be_a_word_alone(prompt, monkeypatch, tmp_path, given, read):
    found = []
    monkeypatch.setattr(inspect, "inspect", lambda *args: found.extend(args))
    flags = (f"--workdir={tmp_path}", f"--config.eval.targets={given}")
    assert prompt(*flags, "--mode=inspect")[0] == 0
    assert found[0].eval.targets == read


@pytest.fixture
def small_market(monkeypatch):
    """The embedded dataset, made of a few episodes."""
    market = simulate_market(200, 6, seed=0)
    few = list(behaviour_episodes(market, 8, (60, 70), 0, rules=SIMULATED))
    monkeypatch.setattr(setup, "simulated_episodes", lambda: few)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            "optimizer.lr_scheduler_type=cosin",
            "='cosin': expected one of linear, cosine, constant_with_warmup, constant; "
            "did you mean cosine?",
        ),
        ("data.weighting=lenght", "'lenght': expected length or uniform; did you mean"),
        ("data.statistics=compute", "stored or computed; did you mean computed?"),
        ("data.placement=devise", "auto, host, device; did you mean device?"),
        ("data.store_dtype=bfloat", "float32 or bfloat16; did you mean bfloat16?"),
        ("data.discount=1.5", "data.discount=1.5: expected 0 to 1"),
        ("model.activation_function=gleu", "did you mean gelu"),
        ("model.dtype=float23", "did you mean float32"),
        ("model.n_head=3", "model.hidden_size=128 is not a multiple of model.n_head=3"),
        ("train.batch_size=6", "train.batch_size=6"),
        ("train.max_steps=many", "expected a whole number like 0"),
        ("train.deterministic=maybe", "expected True or False"),
        ("optimizer=adam", "a section, expected a key like optimizer."),
        ("eval.environment=Pendulum-v9", "eval.environment='Pendulum-v9': "),
        ("eval.environment=Pendulum-v1", "eval.environment=Pendulum-v1: "),
        ("eval.targets=('x',)", "eval.targets: found 'x', expected finite numbers"),
        ("eval.baselines=('nowhere',)", "eval.baselines: actor 'nowhere': no such"),
    ],
)
def test_nothing_is_written_before_all_is_checked(
    prompt, tmp_path, small_market, wrong, told
):
    flags = (f"--workdir={tmp_path / 'run'}", f"--config.{wrong}")
    assert_refused(prompt(BASE, *flags), [told])
    assert list(tmp_path.iterdir()) == []


def test_the_market_is_kept_once_all_is_checked(prompt, tmp_path, small_market):
    flags = (f"--workdir={tmp_path}", "--mode=inspect")
    assert prompt(BASE, *flags)[0] == 0
    left = {"simulated_market", "data_report.json"}
    assert {path.name for path in tmp_path.iterdir()} == left
    first = (tmp_path / "data_report.json").read_text()
    assert prompt(BASE, *flags)[0] == 0  # now it is read where it lies
    assert (tmp_path / "data_report.json").read_text() == first


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--mode=trian", "--mode='trian': expected one of train, evaluate, inspect, "),
        ("--workdr=x", "--workdr=x: no such flag; did you mean --workdir?"),
        ("--lr=3", "no such flag; did you mean --config.optimizer.learning_rate?"),
    ],
)
def test_a_mistyped_flag_is_told_with_the_right_one(prompt, flag, told):
    assert_refused(prompt(BASE, flag), [told])


def test_a_run_is_named_by_what_was_given(prompt, monkeypatch):
    given = []
    monkeypatch.setattr(inspect, "inspect", lambda *args: given.extend(args))
    flags = ("--config.seed=3", "--config.data.weighting=uniform", "--mode=inspect")
    status, told, _ = prompt("--config=configs/fast.py", "--workdir=auto", *flags)
    assert status == 0
    workdir = given[1]
    assert re.fullmatch(r"runs/fast-seed_3-weighting_uniform-\d+", str(workdir))
    assert f"\nworkdir: {workdir}\n" in told
    assert not workdir.exists()


def test_a_name_is_of_safe_letters_and_not_long():
    changed = {"eval.baselines": ("runs/a b", "../\u00e9$?.zip"), "data.path": "/x/d/"}
    assert run_name("base", changed) == "base-baselines_a-b-.zip-path_d"
    assert len(run_name("base", dict.fromkeys("abcdefgh", 1.23456789012))) == 75


@pytest.mark.parametrize(
    ("key", "typed", "found"),
    [
        ("train.max_steps", "1e3", 1000),
        ("train.batch_size", "8.0", 8),
        ("seed", "7", 7),
        ("model.n_inner", "None", None),
        ("model.n_inner", "2e1", 20),
        ("train.num_train_epochs", "2", 2.0),
        ("train.num_train_epochs", "0.25", 0.25),
        ("data.path", "~/data", "/home/me/data"),
        ("train.init_from", "~/run", "/home/me/run"),
        ("data.statistics", "computed", "computed"),
    ],
)
def test_how_values_may_be_typed(prompt, monkeypatch, key, typed, found):
    given = []
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(inspect, "inspect", lambda *args: given.extend(args))
    flags = ("--mode=inspect", "--workdir=~/run", f"--config.{key}={typed}")
    assert prompt(BASE, *flags)[0] == 0
    config, workdir = given
    value = flat(config)[key]
    assert (value, type(value)) == (found, type(found))
    assert workdir == Path("/home/me/run")


@pytest.mark.parametrize("typed", ["1.5", "1e400", "nan", "many", "1e-3", "None"])
def test_what_is_no_whole_number_is_refused(prompt, tmp_path, typed):
    flags = (f"--workdir={tmp_path / 'run'}", f"--config.train.max_steps={typed}")
    found = f"train.max_steps={typed}"
    told = "expected one like 0" if typed == "None" else "expected a whole number"
    assert_refused(prompt(BASE, *flags), [f"{found}: {told}"])


@pytest.mark.parametrize(
    ("epochs", "updates"), [("1", 2), ("0.5", 1), ("0.6", 2), ("2.5", 5), ("1e-9", 1)]
)
def test_a_part_of_an_epoch_is_rounded_up_as_hugging_face_does(
    tmp_path, dataset, epochs, updates
):
    config = default_config()
    config.data.path, config.train.batch_size = str(dataset), 4  # of 8 trajectories
    config.model.update(hidden_size=8, n_layer=1)
    config.train.num_train_epochs = float(epochs)
    assert setup.Setup(config, tmp_path).total_steps == updates


@pytest.mark.parametrize("epochs", ["0", "-1", "nan", "inf"])
def test_epochs_are_above_0(prompt, tmp_path, dataset, epochs):
    flags = (
        f"--config.data.path={dataset}",
        f"--config.train.num_train_epochs={epochs}",
    )
    answer = prompt(BASE, f"--workdir={tmp_path / 'run'}", *flags)
    assert_refused(answer, [f"num_train_epochs={float(epochs)}: expected above 0"])


def test_help_names_every_mode_and_every_key_in_80_columns(prompt):
    status, told, errors = prompt("--help")
    assert (status, errors) == (0, "")
    assert max(map(len, told.splitlines())) <= 80
    for name in (*MODES, *flat(default_config())):
        assert name in told
    assert "Rows of the timestep table; at least data.max_ep_len." in told


def test_wandb_missing_is_named(prompt, tmp_path, dataset, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    flags = (f"--config.data.path={dataset}", "--config.log.wandb=True")
    answer = prompt(BASE, f"--workdir={tmp_path / 'run'}", *flags)
    assert_refused(answer, ["log.wandb=True", "pip install wandb"])
    assert not (tmp_path / "run").exists()


def test_inspect_reports_on_the_data_and_trains_nothing(prompt, tmp_path, dataset):
    workdir = tmp_path / "run"
    args = ("--mode=inspect", f"--workdir={workdir}", f"--config.data.path={dataset}")
    status, told, errors = prompt(BASE, *args)
    assert (status, errors) == (0, "")
    assert "8 trajectories, 36 steps" in told
    assert [path.name for path in workdir.iterdir()] == ["data_report.json"]
    report = json.loads((workdir / "data_report.json").read_text())
    assert (report["trajectories"], report["steps"]) == (8, 36)


def test_convert_writes_what_inspect_reads(prompt, tmp_path, dataset):
    rows = datasets.load_from_disk(dataset).to_list()
    table = pa.table({"train": pa.array([row["train"] for row in rows])})
    pq.write_table(table, tmp_path / "rows.parquet")
    workdir, given = tmp_path / "new", f"--config.data.path={tmp_path}/rows.parquet"
    args = ("--mode=convert", f"--workdir={workdir}")
    status, told, _ = prompt(BASE, *args, given)
    assert status == 0
    assert f"--config.data.path={workdir}/dataset" in told.replace("\\\n", "")
    assert [path.name for path in workdir.iterdir()] == ["dataset"]
    assert_refused(prompt(BASE, *args, given), [f"{workdir}/dataset exists already"])
    assert_refused(prompt(BASE, "--mode=convert"), ["data.path is empty"])
    for path in (f"{workdir}/dataset", f"{tmp_path}/rows.parquet"):
        args = (f"--workdir={tmp_path}/run", f"--config.data.path={path}")
        status, told, _ = prompt(BASE, "--mode=inspect", *args)
        assert "8 trajectories, 36 steps" in told
        assert "converted from Parquet" in told
    (folder,) = (tmp_path / "converted").iterdir()  # beside the workdir
    assert folder.name.startswith("rows-")
    flags = (*args, f"--config.data.cache={tmp_path}/mine")
    assert prompt(BASE, "--mode=inspect", *flags)[0] == 0
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [folder.name]


def flat(config, prefix=""):
    values = {}
    for key, value in config.items():
        inner = isinstance(value, ConfigDict)
        values |= flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return values


class Listener:
    """A config that notes which of its keys are read."""

    def __init__(self, config, read, prefix=""):
        self._config, self._read, self._prefix = config, read, prefix

    def __getitem__(self, key):
        value = self._config[key]
        if isinstance(value, ConfigDict):
            return Listener(value, self._read, f"{self._prefix}{key}.")
        self._read.add(self._prefix + key)
        return value

    __getattr__ = __getitem__

    def keys(self):
        return self._config.keys()

    def to_dict(self):
        return self._config.to_dict()


def no_trades(observations_ExS):
    return np.zeros((len(observations_ExS), 6))


@pytest.mark.usefixtures("compile_fast")
def test_every_key_is_read(tmp_path):
    config, read = default_config(), set()
    config.model.update({"hidden_size": 8, "n_layer": 1})
    config.train.num_train_epochs, config.eval.episodes = 1, 1
    config.collect.update(actor=f"{__name__}:no_trades", episodes=2)
    with config.unlocked():
        config.train.nobody_reads_this = 1
    config.distributed.cluster = "none"
    setup.join(Listener(config, read))
    train(Listener(config, read), tmp_path)
    collect(Listener(config, read), tmp_path)
    assert flat(config).keys() - read == {"train.nobody_reads_this"}


@pytest.mark.parametrize("file", [notebook, fast])
def test_a_config_changes_keys_that_exist(file):
    defaults, changed = flat(default_config()), flat(file.get_config())
    assert changed.keys() == defaults.keys()
    for key, value in changed.items():
        assert type(value) is type(defaults[key]), key


@pytest.mark.parametrize("file", [base, notebook, fast])
def test_the_defaults_are_the_notebooks_recipe(file):
    recipe = """
        data.context_length 20, data.max_ep_len 985, data.return_scale 1000.0,
        data.discount 1.0, model.hidden_size 128, model.n_layer 3, model.n_head 1,
        model.activation_function relu, model.max_ep_len 4096, model.action_tanh True,
        model.resid_pdrop 0.1, model.embd_pdrop 0.1, model.attn_pdrop 0.1,
        optimizer.learning_rate 0.0001, optimizer.weight_decay 0.0001,
        optimizer.adam_beta1 0.9, optimizer.adam_beta2 0.999,
        optimizer.adam_epsilon 1e-08, optimizer.max_grad_norm 0.25,
        optimizer.warmup_ratio 0.1, optimizer.lr_scheduler_type linear,
        train.num_train_epochs 120.0, train.max_steps 0, train.batch_size 64
    """
    values = flat(file.get_config())
    for key, value in (entry.split() for entry in recipe.split(",")):
        assert str(values[key]) == value, key

# SPDX-License-Identifier: Apache-2.0
"""A run leaves what it promises, and a kill changes nothing of where it ends."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dt_jax.acting.policy import Policy
from dt_jax.commands import setup
from dt_jax.commands import train as command
from dt_jax.commands.export import export
from dt_jax.commands.inspect import inspect
from dt_jax.commands.same_run import is_free
from dt_jax.commands.setup import SIMULATED_MARKET, Setup
from dt_jax.commands.train import train
from dt_jax.config import default_config, flatten
from dt_jax.data.readers import load_trajectories
from dt_jax.data.segments import SegmentSampler
from dt_jax.data.writer import save_trajectories
from dt_jax.model.decision_transformer import DecisionTransformer, init_params
from dt_jax.system.files import locked
from dt_jax.training import feed
from dt_jax.training.checkpoint import Checkpoints, load_trained
from dt_jax.training.feed import Feed
from dt_jax.training.metrics import read_metrics
from dt_jax.training.optimizer import make_optimizer
from dt_jax.training.placement import Placement
from dt_jax.training.population import DEVICES
from dt_jax.training.train_step import init_state, train_step
from dt_jax.training.validation import HeldOut

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("compile_fast")
UPDATES = 36
SMALL = {
    "data.context_length": 4,
    "data.max_ep_len": 12,
    "data.return_scale": 10.0,
    "model.max_ep_len": 12,
    "model.hidden_size": 16,
    "model.n_layer": 1,
    "optimizer.learning_rate": 0.01,
    "train.batch_size": 8,
    "train.max_steps": UPDATES,
    "train.updates_per_call": 6,
    "train.logging_steps": 1,
    "train.save_steps": 6,
}
HELD_OUT = {
    "data.validation_fraction": 0.25,
    "train.max_steps": 15,
    "train.logging_steps": 3,  # records within what would be calls
}
TIMES = ("steps_per_second", "samples_per_second", "train_runtime")
# main.py, but something is done as it writes the record of a step.
DISTURBED = """
import os, resource, runpy, sys
from dt_jax.training.metrics import MetricWriter
disturb, step = sys.argv.pop(1), int(sys.argv.pop(1))
def write(self, record, write=MetricWriter.write):
    write(self, record)
    if record["step"] == step:
        exec(disturb)
MetricWriter.write = write
runpy.run_path("main.py", run_name="__main__")
"""
KILL, TERMINATE = (f"os.kill(os.getpid(), {number})" for number in (9, 15))
# Root heeds the mode of a folder, once it may not take CAP_DAC_OVERRIDE along.
HEEDING_MODES = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
FOLDER = "sys.argv[2].removeprefix('--workdir=') + '/checkpoints'"
MAKE_READ_ONLY = f"os.chmod({FOLDER}, 0o500)"
# Less than the parameters need: to who writes a checkpoint, a full disk.
FILL_THE_DISK = "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))"


def make_dataset(path, seed, extreme=None, state_dim=3):
    """Actions are a function of the state, so that there is something to learn.

    But for the last one of the trajectory `extreme`, whose square is beyond float32.
    """
    generator = np.random.default_rng(seed)
    weights_SxA = np.array([[1.0, -0.5], [0.5, 1.0], [-1.0, 0.0]])

    def episodes():
        for episode, length in enumerate(generator.integers(2, 12, size=20)):
            states_TxS = generator.normal(size=(length, state_dim))
            actions_TxA = np.tanh(states_TxS[:, :3] @ weights_SxA)
            if episode == extreme:
                actions_TxA[-1, 0] = 1e25
            yield {
                "observations": states_TxS,
                "actions": actions_TxA,
                "rewards": generator.normal(size=length),
                "dones": np.arange(length) == length - 1,
            }

    save_trajectories(path, episodes())
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset", seed=0)


def make_config(dataset, **changes):
    config = default_config()
    config.update_from_flattened_dict({"data.path": str(dataset)} | SMALL | changes)
    return config


def arguments(dataset, workdir, **changes):
    settings = {"data.path": dataset} | SMALL | changes
    flags = (f"--config.{key}={value}" for key, value in settings.items())
    return ["--config=configs/base.py", f"--workdir={workdir}", *flags]


def python(*args, **environment):
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def complete(dataset, tmp_path_factory):
    """The workdir of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "complete"
    train(make_config(dataset), workdir)
    return workdir


@pytest.fixture
def copy(complete, tmp_path):
    return Path(shutil.copytree(complete, tmp_path / "copy"))


def records_of(workdir):
    """The records without what a clock says."""
    return [
        {key: value for key, value in record.items() if key not in TIMES}
        for record in read_metrics(workdir / "metrics.jsonl")
    ]


def arrays_of(workdir, folder="checkpoints"):
    with closing(Checkpoints(workdir / folder, None)) as checkpoints:
        checkpoint = checkpoints.restore()
    return checkpoint.step, {k: x.tobytes() for k, x in checkpoint.arrays.items()}


def files_of(workdir):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in workdir.rglob("*")
        if path.is_file()
    }


def assert_ends_alike(workdir, other):
    assert arrays_of(workdir) == arrays_of(other)
    assert records_of(workdir) == records_of(other)
    losses = [json.loads((w / "summary.json").read_text()) for w in (workdir, other)]
    assert losses[0]["train_loss"] == losses[1]["train_loss"]


def test_a_run_leaves_its_files(complete, dataset):
    found = {str(path.relative_to(complete)) for path in files_of(complete)}
    assert found >= {
        "config.json",
        "data_report.json",
        "metrics.jsonl",
        "report/index.html",
        "run.json",
        "summary.json",
    }
    assert not [name for name in found if name.endswith((".partial", ".tmp", ".lock"))]
    assert any(name.startswith("tensorboard/events.") for name in found)
    kept = {int(path.name) for path in (complete / "checkpoints").iterdir()}
    assert kept == {UPDATES - 12, UPDATES - 6, UPDATES}
    run = json.loads((complete / "run.json").read_text())
    assert run["total_steps"] == UPDATES
    assert [start["step"] for start in run["starts"]] == [0]
    assert run["starts"][0]["versions"]["jax"] == jax.__version__
    config = json.loads((complete / "config.json").read_text())
    assert config == json.loads(json.dumps(make_config(dataset).to_dict()))
    summary = json.loads((complete / "summary.json").read_text())
    assert summary["global_step"] == UPDATES
    assert summary["epoch"] == UPDATES / 3  # 20 trajectories in batches of 8
    losses = [record["loss"] for record in records_of(complete)]
    assert summary["train_loss"] == pytest.approx(np.mean(losses), rel=1e-12)
    for key in ("runtime", "samples_per_second", "steps_per_second"):
        assert summary[f"train_{key}"] > 0


@pytest.fixture
def x64():
    """As JAX_ENABLE_X64=1 in the environment: what names no dtype has 64 bits."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.slow
def test_under_jax_enable_x64_parameters_stay_float32(complete, dataset, tmp_path, x64):
    train(make_config(dataset), tmp_path)
    with closing(Checkpoints(tmp_path / "checkpoints", None)) as checkpoints:
        found = checkpoints.restore().arrays
    with closing(Checkpoints(complete / "checkpoints", None)) as checkpoints:
        expected = checkpoints.restore().arrays
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        mine, theirs = np.array(found[name]), np.array(array)
        if name.endswith("c_attn']['bias']"):  # that of the keys is moved by rounding
            mine[16:32] = theirs[16:32] = 0
        # Single numbers, such as Adam's corrections, have more digits: an update then
        # differs in its last bits, of which the smallest weights show most.
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5, err_msg=name)
    export(make_config(dataset), tmp_path)
    actions = []
    for folder in (tmp_path, tmp_path / "hf"):
        policy = Policy.load(folder)
        policy.reset([1.0, 2.0])
        actions.append(policy.act(np.ones((2, 3))))
    assert actions[0].dtype == np.float32
    assert actions[0].tolist() == actions[1].tolist()


def test_the_loss_falls_on_data_that_can_be_learned(complete):
    losses = [record["loss"] for record in records_of(complete)]
    assert np.mean(losses[-6:]) < 0.5 * np.mean(losses[:6])


def test_records_hold_the_rate_of_their_update(complete):
    rises, falls = np.arange(4) / 4, 1 - np.arange(UPDATES - 4) / (UPDATES - 4)
    logged = [record["learning_rate"] for record in records_of(complete)]
    # ceil(0.1 * 36) = 4 updates of warmup from 0, then linearly to 0; float32.
    np.testing.assert_allclose(logged, 0.01 * np.append(rises, falls), rtol=1e-6)


def test_records_hold_the_loss_of_every_update(complete, dataset):
    config = make_config(dataset)
    trajectories = load_trajectories(dataset)
    data = {key: config.data[key] for key in ("context_length", "max_ep_len")}
    data |= {"return_scale": 10.0, "weighting": "length", "seed": config.seed}
    sampler = SegmentSampler(trajectories, batch_size=8, **data)
    model = DecisionTransformer(state_dim=3, act_dim=2, **config.model)
    optimizer = make_optimizer(total_steps=UPDATES, **config.optimizer)
    update = jax.pmap(
        partial(
            train_step,
            model=model,
            optimizer=optimizer,
            state_mean=trajectories.state_mean,
            state_std=trajectories.state_std,
            axis_name=DEVICES,
        ),
        axis_name=DEVICES,
        in_axes=(None, 0),
        out_axes=None,
    )
    keys_G = jnp.broadcast_to(jax.random.key(config.seed), 4)
    params = jax.jit(partial(init_params, model))(jax.random.key(config.seed))
    state, found = init_state(params, optimizer), []
    for step in range(UPDATES):
        batch = jax.tree.map(
            lambda x: x.reshape(4, 2, *x.shape[1:]), sampler.batch(step)
        )
        state, metrics = update(state, batch, key=keys_G)
        found.append((step + 1, float(metrics.loss), float(metrics.grad_norm)))
    records = records_of(complete)
    logged = [(r["step"], r["loss"], r["grad_norm"]) for r in records]
    # In the run, updates are scanned: XLA may order sums otherwise, and a rounding
    # grows from update to update.
    np.testing.assert_allclose(logged, found, rtol=1e-4)


@pytest.mark.slow
def test_a_run_killed_and_terminated_ends_like_one_that_was_not(
    complete, dataset, tmp_path
):
    workdir = tmp_path / "killed"
    # Calls that a save cuts short, and others of what `complete` has made.
    flags = arguments(dataset, workdir, **{"train.updates_per_call": 4})
    killed = python("-c", DISTURBED, KILL, 15, *flags)
    assert killed.returncode == -9
    assert [r["step"] for r in records_of(workdir)] == list(range(1, 16))
    assert (workdir / ".lock").exists()  # but nobody holds it
    terminated = python("-c", DISTURBED, TERMINATE, 27, *flags)
    assert terminated.returncode == 143, terminated.stderr
    assert "stopped at update" in terminated.stdout
    assert "going on from update" in terminated.stdout
    assert not (workdir / "summary.json").exists()
    # The state is that of the last update of which the records tell.
    stopped, _ = arrays_of(workdir)
    assert [r["step"] for r in records_of(workdir)] == list(range(1, stopped + 1))
    assert 27 < stopped < UPDATES
    page = (workdir / "report" / "index.html").read_text()
    assert f"Not finished: {stopped} of {UPDATES} updates" in page
    resumed = python("main.py", *flags)
    assert resumed.returncode == 0, resumed.stderr
    assert f"going on from update {stopped}" in resumed.stdout
    assert_ends_alike(workdir, complete)


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices(complete, copy, dataset):
    for step in (UPDATES - 6, UPDATES):
        shutil.rmtree(copy / "checkpoints" / str(step))
    flags = arguments(dataset, copy)
    disturbed = ("-c", DISTURBED, TERMINATE, UPDATES - 10)
    stopped = python(*disturbed, *flags, JAX_NUM_CPU_DEVICES="1")
    assert stopped.returncode == 143, stopped.stderr
    assert f"going on from update {UPDATES - 12}" in stopped.stdout
    resumed = python("main.py", *flags, JAX_NUM_CPU_DEVICES="2")
    assert resumed.returncode == 0, resumed.stderr
    found, expected = (
        [[r["step"], r["loss"], r["grad_norm"]] for r in records_of(workdir)]
        for workdir in (copy, complete)
    )
    # A record of other batches, or of other dropout, would differ by a tenth.
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    params = [load_trained(workdir).params for workdir in (copy, complete)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), *params)
    assert found[UPDATES - 12 :] != expected[UPDATES - 12 :], "sums in another order"


def test_a_damaged_last_checkpoint_is_made_again(complete, copy, dataset, capsys):
    step = copy / "checkpoints" / str(UPDATES)
    for path in step.glob("state/**/d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    train(make_config(dataset), copy)
    assert f"going on from update {UPDATES - 6}" in capsys.readouterr().out
    assert_ends_alike(copy, complete)
    assert (copy / "checkpoints" / f"{UPDATES}.damaged").is_dir()


def test_without_a_good_checkpoint_the_run_is_refused_and_untouched(copy, dataset):
    for step in (copy / "checkpoints").iterdir():
        shutil.rmtree(step / "record")
    before = files_of(copy)
    with pytest.raises(
        ValueError, match=r"none of the checkpoints .+ is good .+; delete"
    ):
        train(make_config(dataset), copy)
    assert files_of(copy) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("disturb", "cause", "late"),
    [(FILL_THE_DISK, "File too large", 6), (MAKE_READ_ONLY, "Permission denied", 0)],
    ids=["a full disk", "a read-only folder"],
)
def test_what_cannot_be_saved_stops_the_run_and_keeps_the_last_checkpoint(
    copy, dataset, disturb, cause, late
):
    flags = arguments(dataset, copy, **{"train.max_steps": UPDATES + 18})
    kept = arrays_of(copy)
    script = ("-c", HEEDING_MODES, "-c", DISTURBED)
    stopped = python(*script, disturb, UPDATES + 1, *flags)
    (copy / "checkpoints").chmod(0o700)
    assert stopped.returncode == 2, stopped.stderr
    assert "Traceback" not in stopped.stderr
    told = stopped.stderr.splitlines()[-1]
    assert re.match("error: .*checkpoints: a checkpoint could not be saved", told), (
        stopped.stderr
    )
    assert cause in told
    # The save that failed is that of 6 updates on; if it had begun, it is told when the
    # next one is due.
    assert records_of(copy)[-1]["step"] == UPDATES + 6 + late
    assert arrays_of(copy) == kept


def test_a_write_that_fails_names_the_workdir(dataset, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")  # a write knows no file's name

    monkeypatch.setattr(command, "write_json", fail)
    with pytest.raises(OSError, match=f"^{tmp_path}: No space left on device$"):
        train(make_config(dataset), tmp_path)


def test_a_second_run_in_the_workdir_is_refused(copy, dataset):
    longer = make_config(dataset, **{"train.max_steps": UPDATES + 5})
    with locked(copy):
        before = files_of(copy)
        with pytest.raises(
            ValueError, match=f"{copy} is in use by process {os.getpid()} "
        ):
            train(longer, copy)
        load_trained(copy)  # reading needs no lock
        inspect(longer, copy)
        changed = {
            path.name for path, what in files_of(copy).items() if what != before[path]
        }
        assert changed == {"data_report.json"}
    assert not (copy / ".lock").exists()


def test_a_complete_run_started_again_changes_nothing(copy, dataset, capsys):
    before = files_of(copy)
    train(make_config(dataset), copy)
    told = re.sub(r" \\\n", " ", capsys.readouterr().out).replace("\\\n", "")
    told = " ".join(told.split())  # a long path breaks the lines
    assert f"complete at update {UPDATES}, nothing to do in {copy} You can:" in told
    for way in (
        f"--mode=evaluate --workdir {copy}",
        "--config.eval.environment=YOUR_ENVIRONMENT",
        f"--mode=export --workdir {copy}",
        f"--mode=report --workdir {copy}",
        f"--config.train.max_steps={2 * UPDATES}",
        f"--workdir {copy}-1",
    ):
        assert way in told
    assert files_of(copy) == before


def test_a_run_killed_before_its_summary_gets_one(copy, dataset):
    (copy / "summary.json").unlink()
    train(make_config(dataset), copy)
    assert json.loads((copy / "summary.json").read_text())["global_step"] == UPDATES


@pytest.mark.slow
def test_a_longer_run_ended_before_its_page_is_concluded(copy, dataset, monkeypatch):
    longer = make_config(dataset, **{"train.max_steps": UPDATES + 6})

    def end(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_run_page", end)
        with pytest.raises(KeyboardInterrupt):
            train(longer, copy)
    train(longer, copy)
    page = (copy / "report" / "index.html").read_text()
    assert f"Complete: {UPDATES + 6} updates" in page
    run = json.loads((copy / "run.json").read_text())
    assert [start["step"] for start in run["starts"]] == [0, UPDATES, UPDATES + 6]


def test_a_longer_run_goes_on(complete, copy, dataset, capsys):
    train(make_config(dataset, **{"train.max_steps": UPDATES + 5}), copy)
    # Linear to 0: after 4 of 36 updates 1/32 a step, after 5 of 41 1/36.
    assert (
        f"learning rate goes from {0.01 / 32:.2g} back to {0.01 * 5 / 36:.2g}: "
        f"{UPDATES} -> {UPDATES + 5} updates\n"
        "to start afresh, choose another --workdir, such"
    ) in capsys.readouterr().out
    records = records_of(copy)
    assert [record["step"] for record in records] == list(range(1, UPDATES + 6))
    assert records[:UPDATES] == records_of(complete)
    assert arrays_of(copy)[0] == UPDATES + 5
    summary = json.loads((copy / "summary.json").read_text())
    assert summary["global_step"] == UPDATES + 5


def test_other_settings_are_refused_and_the_run_is_untouched(copy, dataset):
    before = files_of(copy)
    refused = python("main.py", *arguments(dataset, copy, **{"train.batch_size": 16}))
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
    for value in (8, 16):
        assert f"train.batch_size={value}" in refused.stderr
    assert files_of(copy) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"data.weighting": "uniform"},
        {"data.statistics": "computed"},
        {"optimizer.learning_rate": 0.02},
        {"train.max_steps": UPDATES + 5, "train.logging_steps": 0},
    ],
)
def test_a_run_that_is_refused_is_untouched(copy, dataset, changes):
    before = files_of(copy)
    key, value = list(changes.items())[-1]
    with pytest.raises(ValueError, match=f"{key}={value}"):
        train(make_config(dataset, **changes), copy)
    assert files_of(copy) == before


def flat(config):
    return flatten(config.to_dict())


def test_every_key_means_the_run_or_may_change():
    means_the_run = {
        *("seed", "sweep", "sweep_at_once"),
        *("data.context_length", "data.max_ep_len", "data.return_scale"),
        *("data.discount", "data.relative_to", "data.weighting"),
        *("data.split_on_dones", "data.keep_best"),
        *("data.statistics", "data.action_scaling"),
        *("data.validation_fraction", "data.store_dtype"),
        *("train.batch_size", "train.init_from"),
    }
    means_the_run |= {k for k in flat(default_config()) if k.startswith("model.")}
    means_the_run |= {k for k in flat(default_config()) if k.startswith("optimizer.")}
    assert {key for key in flat(default_config()) if not is_free(key)} == means_the_run


@pytest.mark.slow
def test_logging_saving_placement_and_evaluation_may_change(copy, dataset, capsys):
    changes = {
        "data.placement": "device",
        "data.cache": "elsewhere",
        "data.split": "none of its own",
        "eval.temperature": 0.5,
        "eval.environment_kwargs": '{"market": "prices.csv"}',
        "eval.targets": (1.0, 2.0),
        "eval.episodes": 3,
        "eval.max_episode_steps": 5,
        "eval.baselines": ("runs/other",),
        "eval.score_range": (0.0, 1.0),
        "collect.actor": "ppo.zip",
        "collect.algorithm": "PPO",
        "collect.normalization": "vecnormalize.pkl",
        "collect.episodes": 5,
        "train.num_train_epochs": 7,
        "train.max_steps": UPDATES + 4,
        "train.updates_per_call": 2,
        "train.deterministic": False,
        "train.max_bad_updates": 3,
        "train.logging_steps": 2,
        "train.save_steps": 3,
        "train.save_total_limit": 2,
        "distributed.cluster": "none",
        "distributed.initialization_timeout": 5,
        "distributed.heartbeat_timeout_seconds": 6,
        "distributed.heartbeat_seconds": 7,
    }
    train(make_config(dataset, **changes), copy)
    assert f"going on from update {UPDATES} in" in capsys.readouterr().out
    assert arrays_of(copy)[0] == UPDATES + 4
    # Not tried here: the data elsewhere, another environment, discrete actions, a
    # package we lack.
    others = {"data.path", "eval.environment", "eval.sample", "log.wandb"}
    free = {key for key in flat(default_config()) if is_free(key)}
    assert changes.keys() | others == free


@pytest.fixture(params=["placing", "compiling"])
def too_small(request, monkeypatch):
    """A device with less memory than the plan of `placement=auto` has found there."""

    def exhaust(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room\nin detail")

    if request.param == "placing":
        monkeypatch.setattr(feed, "make_store", exhaust)
        cause = "RESOURCE_EXHAUSTED: no room"
    else:
        needs = iter([3e9, 0])
        monkeypatch.setattr(feed, "memory_limit", lambda: 2e9)
        monkeypatch.setattr(feed, "bytes_of_call", lambda _: next(needs))
        cause = "3.0 of 2.0 GB"
    return f"placement=device needs more memory than a device has: {cause}"


def test_auto_takes_the_host_where_the_store_proves_too_large(
    complete, dataset, tmp_path, monkeypatch, capsys, too_small
):
    monkeypatch.setattr(
        setup,
        "choose_placement",
        lambda _, plan: Placement("device", "8.7 GB fit", plan),
    )
    train(make_config(dataset), tmp_path)
    report = json.loads((tmp_path / "data_report.json").read_text())
    assert report["placement"] == f"host ({too_small})"
    text = " ".join(capsys.readouterr().out.split())
    assert text.count(" placement: ") == 1
    assert f" placement: host ({too_small})" in text
    assert_ends_alike(tmp_path, complete)


def test_a_store_asked_for_that_proves_too_large_is_refused(
    dataset, tmp_path, too_small
):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared as a whole below)
        train(make_config(dataset, **{"data.placement": "device"}), tmp_path)
    assert str(caught.value) == (
        f"data.{too_small}; data.placement=host or data.store_dtype=bfloat16 needs less"
    )
    assert not (tmp_path / "config.json").exists()


def test_memory_exhausted_by_an_update_is_one_line(dataset, tmp_path, monkeypatch):
    def exhaust(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")

    monkeypatch.setattr(command, "run_updates", exhaust)
    with pytest.raises(ValueError, match=r"^data.placement=host needs .+: RESOURCE_"):
        train(make_config(dataset), tmp_path)


def test_other_dims_are_refused_and_named(copy, tmp_path):
    before = files_of(copy)
    other = make_dataset(tmp_path / "other", seed=0, state_dim=4)
    with pytest.raises(ValueError, match=r"a run with state_dim=3, but .* state_dim=4"):
        train(make_config(other), copy)
    assert files_of(copy) == before


def test_other_data_is_refused_and_the_run_is_untouched(copy, dataset, tmp_path):
    before = files_of(copy)
    other = make_dataset(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="fingerprint") as caught:
        train(make_config(other), copy)
    for path in (dataset, other):
        assert load_trajectories(path).fingerprint() in str(caught.value)
    assert files_of(copy) == before


def test_the_same_data_elsewhere_is_the_same_run(copy, dataset, tmp_path, capsys):
    moved = shutil.copytree(dataset, tmp_path / "moved")
    train(make_config(moved), copy)
    assert "complete" in capsys.readouterr().out


@pytest.mark.slow
def test_without_a_dataset_the_simulated_market_is_made_once(tmp_path, capsys):
    workdir = tmp_path / "run"
    changes = {"train.max_steps": 2, "eval.episodes": 1}
    done = python("main.py", *arguments("", workdir, **changes))
    assert done.returncode == 0, done.stderr
    assert json.loads((workdir / "summary.json").read_text())["global_step"] == 2
    before = files_of(workdir)
    assert {path for path in before if SIMULATED_MARKET in path.parts}
    train(make_config("", **changes), workdir)
    assert "complete at update 2" in capsys.readouterr().out
    assert files_of(workdir) == before


def reason_of_the_stop(config, workdir):
    with pytest.raises(FloatingPointError) as stopped:
        train(config, workdir)
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


@pytest.mark.slow
def test_a_loss_that_stays_infinite_stops_the_run(dataset, tmp_path):
    changes = {"optimizer.learning_rate": 1e30, "train.max_bad_updates": 5}
    config = make_config(dataset, **changes, **{"train.save_steps": 1})
    line = reason_of_the_stop(config, tmp_path)
    assert "every segment does so alone: the weights have diverged" in line
    bad = int(re.search(r"updates (\d+) to", line)[1])
    assert f"updates {bad} to {bad + 4}, train.max_bad_updates in a row" in line
    records = records_of(tmp_path)
    assert [record["step"] for record in records] == list(range(1, bad + 5))
    finite = [math.isfinite(record["loss"]) for record in records]
    assert finite == [True] * (bad - 1) + [False] * 5
    # A checkpoint a save: had the bad updates been saved, the good were pushed out.
    assert arrays_of(tmp_path)[0] == bad - 1


@pytest.fixture(scope="module")
def extreme(tmp_path_factory):
    """A dataset whose trajectory 16 has an action, its last, that is far too large."""
    path = tmp_path_factory.mktemp("data") / "extreme"
    return make_dataset(path, seed=0, extreme=16)


AS_IT_IS = {"data.action_scaling": "none"}  # else it is 1, and all others are 0


def steps_of(extreme, config):
    """The updates, from 1, that see the extreme action, each with its start."""
    trajectories = load_trajectories(extreme)
    data = {key: config.data[key] for key in ("context_length", "max_ep_len")}
    data |= {"return_scale": 10.0, "weighting": "length", "seed": config.seed}
    sampler = SegmentSampler(trajectories, batch_size=8, **data)
    for step in range(UPDATES):
        episodes_B, starts_B = sampler.draw(step)
        last_B = (
            starts_B + config.data.context_length >= trajectories.lengths[episodes_B]
        )
        for start in starts_B[(episodes_B == 16) & last_B]:
            yield step + 1, start


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_the_trajectory_that_stops_the_run_is_named(extreme, tmp_path, prompt):
    changes = {"train.max_bad_updates": 1, **AS_IT_IS}
    step, start = next(steps_of(extreme, make_config(extreme, **changes)))
    status, _, told = prompt(*arguments(extreme, tmp_path, **changes))
    assert status == 3
    line = told.splitlines()[-1]
    assert line.startswith(f"error: updates {step} to {step}, ")
    assert f"these do so alone: trajectory 16 from its step {start} on; " in line


def test_bad_updates_are_skipped_and_counted_and_the_run_goes_on(
    extreme, tmp_path, caplog
):
    config = make_config(extreme, **AS_IT_IS)
    train(config, tmp_path)
    bad = {step for step, _ in steps_of(extreme, config)}
    assert 0 < len(bad) < UPDATES / 2
    records = records_of(tmp_path)
    assert [r["skipped_updates"] for r in records] == [
        int(record["step"] in bad) for record in records
    ]
    assert {r["step"] for r in records if math.isnan(r["loss"])} == bad
    assert records[-1]["step"] == UPDATES
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["skipped_updates"] == len(bad)
    assert 0 < summary["train_loss"] < 1
    told = re.findall(
        r"update (\d+) skipped: loss inf, gradient norm inf$", caplog.text, re.M
    )
    assert {*map(int, told)} == bad
    params = load_trained(tmp_path).params
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.fixture(scope="module")
def held_out(dataset, tmp_path_factory):
    """The workdir of a run with data held out."""
    workdir = tmp_path_factory.mktemp("runs") / "held_out"
    train(make_config(dataset, **HELD_OUT), workdir)
    return workdir


def test_a_record_tells_of_held_out_data_after_its_update(
    held_out, dataset, tmp_path, capsys
):
    train(make_config(dataset, **HELD_OUT, **{"train.save_steps": 3}), tmp_path)
    printed = capsys.readouterr().out
    # The same updates; but a save waits for them, and a record does not.
    records = records_of(held_out)
    assert records == records_of(tmp_path)
    assert [record["step"] for record in records] == [3, 6, 9, 12, 15]

    training, held = load_trajectories(dataset).split(0.25)
    data = {"context_length": 4, "max_ep_len": 12, "return_scale": 10.0, "seed": 0}
    samplers = [
        SegmentSampler(part, batch_size=8, weighting="length", **data)
        for part in (held, training)
    ]
    model = DecisionTransformer(**load_trained(tmp_path).fields)
    measure = HeldOut(samplers[0], model, Feed(samplers[1], "host", "float32"))
    for record in records[:-4:-1]:
        params = jax.tree.map(jnp.asarray, load_trained(tmp_path).params)
        assert float(measure.loss(params)) == record["validation_loss"]
        shutil.rmtree(tmp_path / "checkpoints" / str(record["step"]))
    report = tmp_path / "report"
    found = json.loads((report / "held_out.json").read_text())
    # A record has all of so few windows; only the last sums are in float64 here.
    assert found["mse"] == pytest.approx(records[-1]["validation_loss"], rel=1e-6)
    assert found["step"] == 15
    assert "Data: 15 trajectories" in printed
    assert "held out besides: 5 trajectories" in printed
    assert f"Held-out data: mean squared error {found['mse']:.4g}\n" in printed
    assert "  report/held_out.json " in printed


def test_a_run_that_goes_on_measures_held_out_data_alike(held_out, dataset, tmp_path):
    copy = shutil.copytree(held_out, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "15")
    for name in ("summary.json", "report/held_out.json"):
        (copy / name).unlink()
    train(make_config(dataset, **HELD_OUT), copy)
    assert_ends_alike(copy, held_out)
    both = [(w / "report" / "held_out.json").read_text() for w in (copy, held_out)]
    assert both[0] == both[1]
    less = HELD_OUT | {"data.validation_fraction": 0.2}
    with pytest.raises(
        ValueError, match=r"a run with data\.validation_fraction=0\.25,"
    ):
        train(make_config(dataset, **less), copy)


def test_a_record_ends_a_call_only_when_data_is_held_out(dataset, tmp_path):
    def calls(fraction):
        changes = {"data.validation_fraction": fraction, "train.updates_per_call": 4}
        changes = HELD_OUT | changes
        return list(
            Setup(make_config(dataset, **changes), tmp_path).intervals("host").calls(0)
        )

    assert calls(0.0) == [(0, 4), (4, 2), (6, 4), (10, 2), (12, 3)]
    assert calls(0.25) == [(0, 3), (3, 3), (6, 3), (9, 3), (12, 3)]

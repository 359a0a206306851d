# SPDX-License-Identifier: Apache-2.0
"""A run from Python: train, look, act, evaluate, export; in a notebook, too."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

import dt_jax
from dt_jax.commands.run import Run, train
from dt_jax.config import default_config
from dt_jax.training.metrics import MetricWriter
from tests.commands.test_train import SMALL, UPDATES, make_dataset

pytestmark = pytest.mark.usefixtures("compile_fast")
# Made by version 0.1 (commit b22bbb0) with `make_dataset` of seed 0, SMALL, 12 updates.
OLD = Path(__file__).parents[1] / "golden/run_0_1"


def make_config(path, **changes):
    config = default_config()
    config.data.path = str(path)
    config.update_from_flattened_dict(SMALL | changes)
    return config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset", seed=0)


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    return train(make_config(dataset), str(tmp_path_factory.mktemp("run") / "x"))


def test_a_run_shows_what_it_has_left(run):
    assert run.summary["global_step"] == UPDATES
    assert run.metrics["step"].tolist() == list(range(1, UPDATES + 1))
    assert run.metrics["loss"].iloc[-1] < run.metrics["loss"].iloc[0]
    assert run.evaluation == {}
    assert run.config.train.max_steps == UPDATES
    again = Run.load(str(run.workdir))
    assert again.summary == run.summary
    assert repr(again) == (
        f"Run({str(run.workdir)!r}): {UPDATES} updates, complete, loss "
        f"{run.metrics['loss'].iloc[-1]:.4g}"
    )


def test_a_notebook_shows_the_curve_and_the_figures(run):
    shown = run._repr_html_()
    assert "<svg" in shown
    assert f"<b>{run.metrics['loss'].iloc[-1]:.4g}</b>" in shown
    assert "<script" not in shown
    fresh = run.workdir.with_name("fresh")
    fresh.mkdir()
    shutil.copy(run.workdir / "config.json", fresh)
    assert "<svg" not in Run(fresh)._repr_html_()
    assert repr(Run(fresh)).endswith("no record yet")


def test_a_run_acts_and_is_exported(run):
    policy = run.policy()
    policy.reset(1.0)
    action = policy.act(np.zeros(3))
    again = dt_jax.Policy.load(run.export())
    again.reset(1.0)
    np.testing.assert_array_equal(again.act(np.zeros(3)), action)


def test_the_same_call_again_changes_nothing(run, dataset, capsys):
    before = run.metrics
    config = make_config(dataset)
    assert train(config, run.workdir).metrics.equals(before)
    assert f"complete at update {UPDATES}, nothing to do" in capsys.readouterr().out
    assert config.to_dict() == make_config(dataset).to_dict()


def test_a_key_by_mistake_is_an_error_with_the_right_one(dataset, tmp_path):
    config = ConfigDict(make_config(dataset).to_dict())  # not locked
    config.train.max_step = 40
    with pytest.raises(ValueError, match=r"train.max_step: .* mean train.max_steps\?"):
        train(config, tmp_path / "run")
    config = make_config(dataset, **{"train.batch_size": 0})
    with pytest.raises(ValueError, match=r"^train.batch_size=0: expected at least 1"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_stop_button_saves_and_the_same_call_goes_on(
    run, dataset, tmp_path, monkeypatch
):
    write = MetricWriter.write

    def interrupt(self, record):
        write(self, record)
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MetricWriter, "write", interrupt)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(make_config(dataset), tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    stopped = Run(tmp_path)
    assert 3 <= len(stopped.metrics) < UPDATES
    assert repr(stopped).split(", ")[1] == "not finished"
    monkeypatch.setattr(MetricWriter, "write", write)
    ended = train(make_config(dataset), tmp_path)
    assert ended.metrics["loss"].tolist() == run.metrics["loss"].tolist()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json: no such file, expected"):
        Run.load(tmp_path)


@pytest.mark.parametrize("more", [12, pytest.param(14, marks=pytest.mark.slow)])
def test_a_run_of_version_0_1_acts_and_goes_on(dataset, tmp_path, more):
    shutil.copytree(OLD, tmp_path / "run")
    old = Run(tmp_path / "run")
    assert old.config.distributed.heartbeat_seconds == 30
    policy = old.policy()
    policy.reset([1.0, -2.0])
    draw = np.random.default_rng(7)
    states_TxExS, rewards_TxE = draw.normal(size=(6, 2, 3)), draw.normal(size=(6, 2))
    actions = [
        policy.act(*given) for given in zip(states_TxExS, rewards_TxE, strict=True)
    ]
    expected = json.loads((OLD / "actions.json").read_text())
    # Another processor, and XLA without its optimisations, round differently.
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)
    changes = {"train.max_steps": more, "train.save_total_limit": 1}
    ended = train(make_config(dataset, **changes), tmp_path / "run")
    losses = old.metrics["loss"].tolist()
    assert losses[:12] == Run(OLD).metrics["loss"].tolist()
    assert len(losses) == ended.summary["global_step"] == more


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_at_the_prompt_a_run_knows_its_own_config(run, prompt):
    where = f"--workdir={run.workdir}"
    status, _, told = prompt("--mode=evaluate", where)
    # The base recipe would act in the simulated market.
    assert (status, told) == (
        2,
        "error: eval.environment is empty; expected a Gymnasium id or "
        "'module:callable'\n",
    )
    status, _, told = prompt(
        "--mode=evaluate", where, "--config.eval.environment=No-v0"
    )
    assert status == 2
    assert told.startswith("error: eval.environment='No-v0': ")
    page = run.workdir / "report" / "index.html"
    page.unlink()
    status, told, _ = prompt("--mode=report", where)
    assert status == 0
    assert " ".join(told.split()).endswith(f"{page} all of it on one page")
    assert str(UPDATES) in page.read_text()


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_page_needs_a_run(prompt, tmp_path):
    (tmp_path / "config.json").write_text(default_config().to_json_best_effort())
    for folder in (tmp_path, tmp_path / "none"):
        status, _, told = prompt("--mode=report", f"--workdir={folder}")
        assert status == 2
        assert told.startswith(f"error: {folder}: no records of a run; --mode=report")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]

# SPDX-License-Identifier: Apache-2.0
"""A member of a sweep is the run that it would be alone, and leaves what one leaves."""

import json
import os
import shutil
import signal
from contextlib import closing
from types import SimpleNamespace

import gymnasium
import jax
import numpy as np
import pytest
from test_train import SMALL, make_config, make_dataset

from dt_jax.acting.policy import Policy
from dt_jax.commands import train as command
from dt_jax.commands.evaluate import evaluate
from dt_jax.commands.members import members_of
from dt_jax.commands.report import report
from dt_jax.commands.setup import Setup
from dt_jax.commands.sweep import Sweep
from dt_jax.commands.train import train
from dt_jax.config import default_config, saved_config
from dt_jax.system.files import read_json
from dt_jax.training.checkpoint import load_trained
from dt_jax.training.metrics import (
    MetricWriter,
    PopulationMetrics,
    PopulationWriter,
    read_metrics,
)

pytestmark = pytest.mark.usefixtures("compile_fast")
UPDATES = 200
# All that can differ does, in two ways at least.
SETTINGS = [
    {"seed": 0, "optimizer.learning_rate": 1e-4, "optimizer.adam_epsilon": 1e-3},
    {"seed": 0, "model.resid_pdrop": 0.0, "model.attn_pdrop": 0.4}
    | {"data.return_scale": 2.0, "optimizer.max_grad_norm": 0.05},
    {"seed": 3, "model.embd_pdrop": 0.2, "data.discount": 0.5}
    | {"model.condition_on": "nothing", "data.keep_best": 0.4}
    | {"optimizer.warmup_ratio": 0.4, "optimizer.weight_decay": 0.3}
    | {"optimizer.adam_beta1": 0.8, "optimizer.adam_beta2": 0.99},
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset", seed=0)


def losses_of(setup):
    """UPDATES losses, of a sweep with an axis of members."""
    feed = setup.feed(setup.config.data.placement)
    call, state = setup.train_call(feed), setup.place(setup.first_state())
    losses = []
    with closing(feed.items(setup.intervals("host").calls(0))) as items:
        for item in items:
            state, outcome = call(state, feed.store, item)
            losses.append(jax.device_get(outcome.loss))
    return np.concatenate(losses)


def long_config(dataset, placement, settings):
    changes = {
        "train.max_steps": UPDATES,
        "train.save_steps": UPDATES,
        "train.updates_per_call": 50,
        "optimizer.learning_rate": 2e-4,  # a faster one lets rounding grow faster
        "data.placement": placement,
        "sweep": json.dumps(settings),
    }
    return make_config(dataset, **changes)


@pytest.fixture(scope="module")
def alone(dataset, tmp_path_factory):
    """The losses of a run with each of the settings, UPDATES x P."""
    configs = members_of(long_config(dataset, "host", SETTINGS)).values()
    folder = tmp_path_factory.mktemp("alone")
    return np.stack([losses_of(Setup(config, folder)) for config in configs], axis=1)


@pytest.mark.parametrize(
    ("placement", "chosen"),
    [
        ("device", [0, 1, 2, 0, 2]),  # on 4 devices 2 places each, 3 of them in vain
        # Fewer than devices: each has a share of the batches, of which two are of one
        # seed and so the same.
        ("host", [2, 0, 1]),
    ],
)
def test_a_member_is_the_run_that_it_would_be_alone(
    dataset, alone, tmp_path, placement, chosen
):
    setup = Setup(long_config(dataset, placement, SETTINGS), tmp_path)
    found = losses_of(Sweep(setup, [setup.members[number] for number in chosen]))
    # Sums in another order: over 200 updates that grows a hundredfold.
    np.testing.assert_allclose(found, alone[:, chosen], rtol=1e-5)
    assert np.std(alone, axis=1).min() > 1e-3  # and no two settings are alike


def test_a_member_that_predicts_returns_is_the_run_that_it_would_be(dataset, tmp_path):
    settings = [{"seed": 0}, {"seed": 1, "optimizer.max_grad_norm": 0.05}]
    config = long_config(dataset, "device", settings)
    config.train.update({"max_steps": 20, "updates_per_call": 10, "save_steps": 20})
    config.model.predict_return = True
    setup = Setup(config, tmp_path)
    found = losses_of(Sweep(setup, setup.members))
    alone = losses_of(Setup(members_of(config)["seed=0"], tmp_path))
    np.testing.assert_allclose(found[:, 0], alone, rtol=1e-5)  # as above
    config.model.predict_return = False
    plain = losses_of(Setup(members_of(config)["seed=0"], tmp_path))
    assert (alone > plain + 0.01).all()  # the loss has the return's, too


def sweep_config(dataset, sweep, **changes):
    few = {"train.max_steps": 12, "train.logging_steps": 2, "sweep": json.dumps(sweep)}
    return make_config(dataset, **few | changes)


SEEDS = {"seed": [0, 1], "optimizer.learning_rate": [0.01, 0.001]}
NAMES = [
    f"seed={seed},learning_rate={rate}" for seed in (0, 1) for rate in (0.01, 0.001)
]
HELD_OUT = {"data.validation_fraction": 0.25}


@pytest.fixture(scope="module")
def swept(dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("swept")
    train(sweep_config(dataset, SEEDS, **HELD_OUT), workdir)
    return workdir


def without_times(records):
    return [
        {k: v for k, v in r.items() if not k.endswith(("_second", "runtime"))}
        for r in records
    ]


def assert_same(found, expected):
    """Records and weights of all members, bit for bit."""
    for name in NAMES:
        paths = [run / "members" / name for run in (found, expected)]
        records = [without_times(read_metrics(p / "metrics.jsonl")) for p in paths]
        assert records[0] == records[1]
        params = [Policy.load(path)._params for path in paths]
        jax.tree.map(np.testing.assert_array_equal, *params)


def test_what_a_sweep_leaves(swept, capsys):
    found = read_json(swept / "population.json")
    assert [member["name"] for member in found["members"]] == NAMES
    first, second = found["settings"]
    assert first["setting"] == {"optimizer.learning_rate": 0.01}
    assert first["seeds"] == second["seeds"] == [0, 1]
    last = [read_metrics(swept / "members" / n / "metrics.jsonl")[-1] for n in NAMES]
    losses = [record["validation_loss"] for record in last]
    assert first["validation_loss"]["mean"] == pytest.approx(
        (losses[0] + losses[2]) / 2, rel=1e-12
    )
    assert found["best"]["validation_loss"] in (first["setting"], second["setting"])
    for name in NAMES:
        member = swept / "members" / name
        assert read_json(member / "summary.json")["global_step"] == 12
        assert (member / "report" / "index.html").is_file()
        assert (member / "report" / "held_out.json").is_file()
    page = (swept / "report" / "index.html").read_text()
    assert f'href="../members/{NAMES[0]}/report/index.html"' in page


def test_it_says_the_settings_and_nothing_is_done_again(dataset, swept, capsys):
    before = (swept / "members" / NAMES[0] / "summary.json").stat().st_mtime_ns
    train(sweep_config(dataset, SEEDS, **HELD_OUT), swept)
    told = capsys.readouterr().out
    assert "4 runs, by setting" in told
    assert "learning_rate=0.001" in told
    assert max(map(len, told.splitlines())) <= 80
    assert (swept / "members" / NAMES[0] / "summary.json").stat().st_mtime_ns == before


def test_interrupted_it_ends_at_the_same_bits(dataset, swept, tmp_path, monkeypatch):
    config, write = sweep_config(dataset, SEEDS, **HELD_OUT), MetricWriter.write
    write_all = PopulationWriter.write

    def stop(self, record):
        write_all(self, record)
        if record["step"] == 4 and record["member"] == 0:
            os.kill(os.getpid(), signal.SIGINT)

    def interrupt(self, record):
        write(self, record)
        if record["step"] == 8:
            raise KeyboardInterrupt

    def killed(*_):  # after the last save of all, before those of the members
        raise KeyboardInterrupt

    for place, name, disturbed in (
        (PopulationWriter, "write", stop),
        (MetricWriter, "write", interrupt),
        (command, "_save_members", killed),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, disturbed)
            with pytest.raises(KeyboardInterrupt):
                train(config, tmp_path)
        assert not (tmp_path / "population.json").exists()
        # A signal saved them all; what came later, a crash, did not.
        (step,) = {load_trained(tmp_path / "members" / name).step for name in NAMES}
        assert 4 <= step < 8
    train(config, tmp_path)
    assert_same(tmp_path, swept)
    assert (tmp_path / "population.json").is_file()


def test_in_turns_they_are_the_same_whatever_stops(dataset, swept, tmp_path):
    # Of the first turn all stop; a single one on 4 devices is divided as 4 are not.
    settings = [
        {"optimizer.learning_rate": 1e38, "optimizer.weight_decay": 0.0},
        {"seed": 1, "optimizer.learning_rate": 0.01},
    ]
    changes = {"sweep_at_once": 1, "train.max_bad_updates": 3} | HELD_OUT
    train(sweep_config(dataset, settings, **changes), tmp_path)
    stopped, other = read_json(tmp_path / "population.json")["members"]
    assert (stopped["stopped"], other["name"]) == (True, NAMES[2])
    losses = [
        [r["loss"] for r in read_metrics(run / "members" / NAMES[2] / "metrics.jsonl")]
        for run in (tmp_path, swept)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_member_goes_on_alone(swept, tmp_path):
    member = shutil.copytree(swept / "members" / NAMES[1], tmp_path / "member")
    config = saved_config(member)
    config.train.max_steps = 14
    train(config, member)
    assert read_json(member / "summary.json")["global_step"] == 14


def test_a_member_that_stops_is_marked_and_the_others_go_on(dataset, tmp_path, capsys):
    rates = {"optimizer.learning_rate": [1e38, 0.01]}
    config = sweep_config(dataset, rates, **{"train.max_bad_updates": 3})
    config.optimizer.weight_decay = 0.0
    train(config, tmp_path)
    stopped, other = read_json(tmp_path / "population.json")["members"]
    assert stopped["stopped"]
    assert stopped["step"] < 12
    assert not other["stopped"]
    assert other["step"] == 12
    assert not (tmp_path / "members" / stopped["name"] / "checkpoints").exists()
    assert "has stopped at update" in " ".join(capsys.readouterr().out.split())
    # Of one seed, both have read the same batches; the other one is as it is alone.
    train(members_of(config)[other["name"]], tmp_path / "alone")
    losses = [
        [r["loss"] for r in read_metrics(run / "metrics.jsonl")]
        for run in (tmp_path / "alone", tmp_path / "members" / other["name"])
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_sweep_stops_when_all_members_have():
    members = [SimpleNamespace(step=5, bad_in_a_row=3)]
    members.append(SimpleNamespace(step=12, bad_in_a_row=0))
    metrics = PopulationMetrics(members)
    assert (metrics.step, metrics.bad_in_a_row) == (12, 0)
    members[1].bad_in_a_row = 4
    assert metrics.bad_in_a_row == 3


class Points(gymnasium.Env):
    """The reward tells how near the action is to what the state shows."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.state = 0, self.np_random.normal(size=3).astype(np.float32)
        return self.state, {}

    def step(self, action):
        reward = -float(np.abs(action - np.tanh(self.state[:2])).sum())
        self.count += 1
        self.state = self.np_random.normal(size=3).astype(np.float32)
        return self.state, reward, self.count == 5, False, {}


def test_members_are_evaluated_together_on_the_same_seeds(swept, tmp_path):
    workdir = shutil.copytree(swept, tmp_path / "swept")
    config = sweep_config("data", SEEDS)
    config.eval.update({"environment": "test_sweep:Points", "episodes": 2})
    found = evaluate(config, workdir)
    achieved = [member["return"] for member in found["members"]]
    for name, mean in zip(NAMES, achieved, strict=True):
        own = read_json(workdir / "members" / name / "report" / "evaluation.json")
        assert own["first_seed"] == 0
        config.sweep = ""
        alone = evaluate(config, workdir / "members" / name)
        actors = [a["mean"] for a in alone["actors"] if a["target"] is not None]
        assert actors[-1] == pytest.approx(mean, rel=1e-5)


def test_a_sweep_that_has_not_ended_is_not_evaluated(swept, tmp_path):
    workdir = shutil.copytree(swept, tmp_path / "swept")
    (workdir / "population.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=f"end; .*={workdir}/members/{NAMES[0]}"
    ):
        evaluate(sweep_config("data", SEEDS), workdir)


def test_its_page_is_made_again(swept, capsys):
    page = swept / "report" / "index.html"
    page.unlink()
    report(default_config(), swept)
    assert "4 runs, by setting" in capsys.readouterr().out
    assert "4 runs trained together" in page.read_text()


def test_a_sweep_is_no_run(swept):
    with pytest.raises(ValueError, match="members/"):
        Policy.load(swept)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("{", r"^sweep='\{': Expecting"),
        ("[]", "expected JSON: lists of values"),
        ('{"seed": 1}', "expected JSON: lists of values"),
        ('{"model.hidden_size": [1, 2]}', "model.hidden_size changes shapes or the"),
        ('{"data.path": ["a", "b"]}', "data.path changes shapes or the data"),
        ('{"learning_rate": [1e-3]}', "did you mean optimizer.learning_rate"),
        ('{"seed": [1, 1]}', "seed=1 is there twice"),
        ('{"seed": [0.5]}', r"sweep: seed=0.5: expected one like 0"),
        ('{"seed": ["a"]}', r"sweep: seed='a': expected one like 0"),
        ('{"optimizer.learning_rate": [-1.0]}', "learning_rate=-1.0: expected 0 or"),
    ],
)
def test_faults_are_one_line_and_leave_nothing(dataset, tmp_path, sweep, message):
    config = make_config(dataset, sweep=sweep)
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_names_and_configs():
    config = make_config("data", sweep='[{"seed": 5}, {"seed": 6, "data.discount": 0}]')
    found = members_of(config)
    assert list(found) == ["seed=5", "seed=6,discount=0"]
    assert [one.seed for one in found.values()] == [5, 6]
    assert found["seed=5"].data.discount == SMALL.get("data.discount", 1.0)
    assert not found["seed=5"].sweep

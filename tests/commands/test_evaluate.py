# SPDX-License-Identifier: Apache-2.0
"""From a workdir to its report, and what is refused before any training."""

import json
import shutil

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import dt_jax
from dt_jax.acting.policy import Policy
from dt_jax.commands.collect import collect
from dt_jax.commands.evaluate import (
    check_environment,
    check_evaluation,
    evaluate,
    track,
    with_known_environment,
    with_source,
)
from dt_jax.commands.export import export
from dt_jax.commands.run import Run
from dt_jax.commands.train import train
from dt_jax.config import default_config
from dt_jax.data.readers import load_trajectories
from dt_jax.data.writer import save_trajectories
from dt_jax.model.decision_transformer import DecisionTransformer
from dt_jax.reporting.html_page import Picture
from dt_jax.reporting.plots import draw_loss
from dt_jax.system import distributed

pytestmark = pytest.mark.usefixtures("compile_fast")
FILES = {"evaluation.json", "evaluations", "index.html"}


def make_config():
    config = default_config()
    config.model.update({"hidden_size": 8, "n_layer": 1})
    config.train.update({"max_steps": 2, "updates_per_call": 1})
    config.eval.update({"episodes": 2, "targets": (3000.0, -1000.0, 0.5)})
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluate") / "run"
    train(make_config(), path)
    return path


def report_of(workdir):
    return json.loads((workdir / "report" / "evaluation.json").read_text())


def test_a_run_ends_with_its_report(workdir):
    assert {path.name for path in (workdir / "report").iterdir()} == FILES
    found = report_of(workdir)
    assert [actor["target"] for actor in found["actors"]] == [
        -1000.0,
        0.5,
        3000.0,
        None,
    ]
    assert found["step"] == 2
    assert {*found["backtest_references"]} == {"buy and hold", "equal weight"}
    assert all(actor["lengths"] == [80, 80] for actor in found["actors"])
    data = load_trajectories(workdir / "simulated_market")
    returns_E = data.returns_to_go[data.starts]
    # In float32 after the scale of 1,000.
    expected = pytest.approx([returns_E.mean(), returns_E.std()], rel=1e-6)
    assert [found["data"]["returns"][key] for key in ("mean", "std")] == expected


def test_tensorboard_has_the_evaluation_of_its_update(workdir):
    (path,) = (workdir / "tensorboard" / "evaluation").iterdir()
    events = path.read_bytes()
    for tag in ("return/target_3000", "sharpe/random_actions"):
        assert f"evaluation/{tag}".encode() in events
    picture = Picture("loss", draw_loss([{"step": 1, "loss": 1.0}]), "The loss.")
    track(make_config(), workdir, 2, {}, [picture])
    assert any(b"pictures/loss" in file.read_bytes() for file in path.parent.iterdir())


def test_evaluating_again_finds_the_same(workdir):
    before = report_of(workdir)
    evaluate(make_config(), workdir)
    assert report_of(workdir) == before
    kept = workdir / "report" / "evaluations" / "2.json"
    assert json.loads(kept.read_text()) == before


def test_a_run_that_was_killed_while_it_acted_is_concluded(workdir, capsys):
    (workdir / "summary.json").unlink()  # the last file
    (workdir / "report" / "evaluation.json").unlink()
    train(make_config(), workdir)
    assert report_of(workdir)["step"] == 2
    train(make_config(), workdir)
    assert "nothing to do" in capsys.readouterr().out


def test_clones_are_trained_and_judged_on_the_same_seeds(
    workdir, tmp_path, capsys, monkeypatch
):
    config, copied = make_config(), tmp_path / "run"
    shutil.copytree(workdir, copied)
    config.eval.baselines = ("clone", "clone-best-50%")
    with pytest.raises(FileNotFoundError, match="without --mode=evaluate trains it"):
        evaluate(config, copied)
    config.eval.score_range = (0.0, 1.0)
    parted = []
    monkeypatch.setattr(distributed, "leave", lambda: parted.append(True))
    train(config, copied)
    assert not parted  # several processes train the run after the clones
    folder = copied / "baselines"
    clones = {"condition_on=nothing", "condition_on=nothing,keep_best=0.5"}
    assert {path.name for path in (folder / "members").iterdir()} == clones
    assert not [*folder.rglob("evaluation.json")]  # they act for the run alone
    half = json.loads(
        (folder / "members" / max(clones) / "data_report.json").read_text()
    )
    assert half["kept"]["keep_best"] == 0.5
    assert 0.5 * half["steps"] <= half["kept"]["steps"] < 0.5 * half["steps"] + 100
    capsys.readouterr()
    evaluate(config, copied)
    assert (
        "does not clearly beat" in (text := capsys.readouterr().out) or "beats" in text
    )
    found = report_of(copied)
    assert [actor["name"] for actor in found["actors"][-2:]] == [*config.eval.baselines]
    returns = {actor["name"]: np.array(actor["returns"]) for actor in found["actors"]}
    best = max(found["actors"][:3], key=lambda actor: actor["mean"])["name"]
    for verdict in found["verdicts"]:
        differences = returns[best] - returns[verdict["baseline"]]
        assert verdict["difference"] == pytest.approx(differences.mean())
    alone = Policy.load(folder / "members" / min(clones))
    assert alone._model.condition_on == "nothing"


def test_targets_come_from_the_data_and_others_act_beside(workdir):
    config = make_config()
    config.eval.targets = ()
    config.eval.baselines = (str(workdir), f"{__name__}:hold")
    config.eval.score_range = (0.0, 1000.0)
    evaluate(config, workdir)
    found = report_of(workdir)
    quantiles = [found["data"]["returns"][k] for k in ("10 %", "median", "90 %", "max")]
    targeted, beside = found["actors"][:4], found["actors"][4:]
    assert [actor["target"] for actor in targeted] == quantiles
    assert [a["name"] for a in beside] == [
        "random actions",
        str(workdir),
        beside[2]["name"],
    ]
    # The policy itself, asked for the most of the data, and an account left in cash.
    assert beside[1]["returns"] == targeted[3]["returns"]
    assert beside[2]["returns"] == [0.0, 0.0]
    assert targeted[0]["normalized"] == pytest.approx(targeted[0]["mean"] / 10)


def test_auto_is_the_target_that_the_data_report_has_chosen(workdir, tmp_path, capsys):
    run = Run(shutil.copytree(workdir, tmp_path / "run"))
    path = run.workdir / "data_report.json"
    report = json.loads(path.read_text())
    chosen = report["auto_target"]
    data = load_trajectories(run.workdir / "simulated_market")
    returns_E = data.returns_to_go[data.starts]
    assert chosen["return"] in returns_E.tolist()
    found = run.evaluate(targets=["auto", 0], episodes=1)
    targets = [actor["target"] for actor in found["actors"]]
    assert targets == [0.0, chosen["return"], None]
    assert found["auto_target"] == run.evaluation["auto_target"] == chosen
    assert "by auto: the highest return" in capsys.readouterr().out
    assert dt_jax.evaluate(run.workdir, targets=[0])["auto_target"] is None
    del report["auto_target"]
    path.write_text(json.dumps(report))
    with pytest.raises(ValueError, match=r"^eval.targets=auto: .*report.json is of a"):
        run.evaluate(targets="auto")


def hold(observations_ExS):
    return np.zeros((len(observations_ExS), 6))


def test_the_card_of_an_exported_model_has_the_figures(workdir):
    export(None, workdir)
    card = (workdir / "hf" / "README.md").read_text()
    assert "## Evaluation" in card
    assert "buy and hold" in card
    assert "mean return, target" in card
    Policy.load(workdir / "hf")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"targets": (1.0, "much")}, "eval.targets: found 'much', expected finite"),
        ({"targets": (float("nan"),)}, "eval.targets: found nan, expected finite"),
        (
            {"score_range": (1.0,)},
            r"eval.score_range=\(1.0,\): expected two",
        ),
        ({"episodes": -1}, "eval.episodes=-1: expected 0 or more"),
        ({"baselines": ("clone-best-0%",)}, "clone-best-0%: expected above 0 and"),
        (
            {"environment": "Pendulum-v1"},
            "eval.environment=Pendulum-v1: observations .* 61",
        ),
        ({"environment": "NoSuch-v0"}, "eval.environment='NoSuch-v0'"),
        ({"environment_kwargs": "{oops"}, "eval.environment_kwargs='{oops': .* JSON"),
        ({"environment_kwargs": "[1]"}, "expected a JSON object"),
        ({"baselines": ("nowhere",)}, "actor 'nowhere': no such folder"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_training(
    tmp_path, workdir, keys, message
):
    config = make_config()
    (tmp_path / "simulated_market").symlink_to(workdir / "simulated_market")
    config.eval.update(keys)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither checkpoints/"):
        evaluate(make_config(), tmp_path)
    config = make_config()
    config.data.path = "some/dataset"
    with pytest.raises(ValueError, match=r"^eval\.environment is empty"):
        evaluate(config, tmp_path)
    with pytest.raises(ValueError, match="expected both"):
        collect(config, tmp_path)


def test_in_python_what_is_given_counts_and_the_rest_is_of_the_run(workdir, tmp_path):
    run = Run(shutil.copytree(workdir, tmp_path / "run"))
    found = run.evaluate(
        targets=[5, -1],
        episodes=1,
        environment_kwargs={"episode_length": 5},
        score_range=[0, 1],
    )
    assert run.evaluation == json.loads(json.dumps(found))
    assert [actor["target"] for actor in found["actors"]] == [-1.0, 5.0, None]
    assert found["actors"][0]["lengths"] == [5]
    assert found["reference"] == {"low": 0.0, "high": 1.0, "given": True}
    # What was given counts once: the run itself is as before.
    assert dt_jax.evaluate(run.workdir)["actors"][0]["lengths"] == [80, 80]
    with pytest.raises(ValueError, match=r"^eval.environment='nowhere': "):
        dt_jax.evaluate(run.workdir, environment="nowhere")


def test_a_table_by_the_hour_is_evaluated_from_json(workdir, tmp_path, capsys):
    """Six stocks make the run's 61 features; days of three hours make its year."""
    rng = np.random.default_rng(0)
    rows = [
        f"{day} {hour}:30:00,T{stock},{rng.uniform(50, 100):.3f},7"
        for day in np.busday_offset("2020-07-01", np.arange(20))
        for hour in ("09", "10", "11")
        for stock in range(7)
    ]
    table = tmp_path / "hours.csv"
    table.write_text("\n".join(["Timestamp,Ticker,Close,Volume", *rows]))
    run = Run(shutil.copytree(workdir, tmp_path / "run"))
    kwargs = {
        **{"market": str(table), "drop": ["T3"], "start": "2020-07-07"},
        **{"end": "2020-07-14", "rules": {"cost": {f"T{s}": 0.01 for s in range(7)}}},
    }
    options = {"environment": "dt_jax/StockTrading-v0", "targets": [0.0], "episodes": 1}
    with pytest.raises(
        ValueError, match=r"environment_kwargs=.* no ticker 'T3', found"
    ):
        run.evaluate(environment_kwargs=kwargs, **options)
    del kwargs["rules"]["cost"]["T3"]
    found = run.evaluate(environment_kwargs=kwargs, **options)
    assert found["actors"][0]["lengths"] == [14]  # five days of three hours
    assert found["periods_a_year"] == 3 * 252
    assert found["backtest_references"]["buy and hold"]["max_drawdown"] > 0
    printed = capsys.readouterr().out
    assert (
        printed.count("the market's table has columns that are not used: Volume") == 1
    )
    assert "annual figures: a year has 756 rows" in printed


def keep(observations_ExS):
    return np.zeros((len(observations_ExS), 2))


def test_rewards_must_be_paid_as_those_of_the_data_were(tmp_path):
    table, config = tmp_path / "prices.csv", default_config()
    rows = [
        f"{day},{name},{price + number}"
        for number, day in enumerate(np.busday_offset("2020-07-01", np.arange(6)))
        for name, price in (("A", 50.0), ("B", 60.0))
    ]
    table.write_text("\n".join(["date,tic,close", *rows]))
    config.eval.environment = "dt_jax/StockTrading-v0"
    config.collect.update({"actor": f"{__name__}:keep", "episodes": 1})

    def trades(**kwargs):
        kwargs = {"market": str(table), "indicators": []} | kwargs
        config.eval.environment_kwargs = json.dumps(kwargs)

    trades(rules={"benchmark": "equal_weight"})
    collect(config, tmp_path / "relative")
    relative = load_trajectories(tmp_path / "relative" / "dataset").about
    trades()
    collect(config, tmp_path / "plain")
    plain = load_trajectories(tmp_path / "plain" / "dataset").about
    assert (relative["benchmark"], plain["benchmark"]) == ("equal_weight", None)
    assert check_environment(config, plain)
    assert check_environment(config, {})  # of a version that did not record it
    asked = (
        '^eval.environment_kwargs: found "benchmark": null, expected "equal_weight", '
    )
    with pytest.raises(ValueError, match=asked):
        check_environment(config, relative)
    trades(benchmark="equal_weight")
    assert check_environment(config, relative)
    with pytest.raises(
        ValueError, match='found "benchmark": "equal_weight", expected null'
    ):
        check_environment(config, plain)
    trades(reward_scaling=0.01)
    with pytest.raises(
        ValueError, match=r'found "reward_scaling": 0\.01, expected 0\.0001, with which'
    ):
        check_environment(config, plain)
    config.eval.update({"environment": "CartPole-v1", "environment_kwargs": "{}"})
    assert check_environment(config, {"benchmark": "cash"})  # it trades nothing


class Cart(gymnasium.Env):
    """Pushed about without an end; says where it is and how fast in two parts."""

    observation_space = spaces.Dict(
        {"x": spaces.Box(-99, 99, (2,), np.float32), "v": spaces.Box(-1, 1, (1,))}
    )
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 3)
        return self.observation(), {}

    def step(self, action):
        self.place[2] = action[0]
        self.place[:2] += action[0]
        return self.observation(), -abs(self.place[0]), False, False, {}

    def observation(self):
        return {"x": self.place[:2].tolist(), "v": self.place[2:].astype("float32")}


class FlatCart(Cart):
    """The same three numbers in another order."""

    observation_space = spaces.Box(-99, 99, (3,))

    def observation(self):
        return self.place[[1, 0, 2]]


def push(observations_Ex3):
    return np.sin(10 * observations_Ex3[:, :1])


def test_what_is_structured_and_endless_is_collected_and_acted_upon(tmp_path, capsys):
    config = make_config()
    config.eval.environment = f"{__name__}:Cart"
    config.collect.update({"actor": f"{__name__}:push", "episodes": 5})
    config.data.max_ep_len = 12
    collect(config, tmp_path)
    assert "5 episodes, 5 cut by a time limit" in capsys.readouterr().out
    config.data.path = str(tmp_path / "dataset")
    data = load_trajectories(config.data.path)
    assert data.lengths.tolist() == [12] * 5
    config.eval.environment = f"{__name__}:FlatCart"
    with pytest.raises(ValueError, match="vectors, but in the data they were Dict"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    # One that knows how to make its environment needs none named.
    known = {"environment": f"{__name__}:Cart", "environment_kwargs": "{}"}
    about = {**data.about, **known, "score_range": [-70.0, -5.0]}
    save_trajectories(tmp_path / "known", data, about=about)
    config.data.path = str(tmp_path / "known")
    config.eval.environment = ""
    config.eval.targets = (-5.0,)
    train(config, tmp_path / "run")
    assert report_of(tmp_path / "run")["environment"] == known["environment"]
    reference = {"low": -70, "high": -5, "given": True}
    assert report_of(tmp_path / "run")["reference"] == reference
    assert "cut by a time limit: 4 of 4 episodes" in capsys.readouterr().out
    (policy, chance) = report_of(tmp_path / "run")["actors"]
    assert policy["lengths"] == chance["lengths"] == [12, 12]
    assert policy["truncated"] == 2
    run = Run(tmp_path / "run")
    found = run.evaluate(max_episode_steps=7)
    assert found["actors"][0]["lengths"] == [7, 7]
    with pytest.raises(ValueError, match="in the data they were Dict"):
        run.evaluate(environment=f"{__name__}:FlatCart")


def test_what_the_user_sets_wins_over_what_the_data_knows():
    about = {
        "environment": "Pendulum-v1",
        "environment_kwargs": '{"g": 9.0}',
        "score_range": [-1200.0, -150.0],
    }
    config = default_config()
    config.data.path = "data"
    found = with_source(config, about).eval
    assert (found.environment, found.environment_kwargs) == (
        "Pendulum-v1",
        '{"g": 9.0}',
    )
    assert found.score_range == (-1200, -150)
    assert not config.eval.environment  # it is left as it was
    # Its name alone, as a collected dataset has it, does not say how to make it.
    assert not with_source(config, {"environment": "Pendulum-v1"}).eval.environment
    config.eval.update({"environment": "Mine-v0", "score_range": (0.0, 1.0)})
    found = with_source(config, about).eval
    assert (found.environment, found.environment_kwargs) == ("Mine-v0", "{}")
    assert found.score_range == (0, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"environment": "no_such_package:Pen-v1"}, "No module named"),
        ({"environment": "CartPole-v1"}, "observations are"),
        ({"observations": "Dict('a': Box)"}, "in the data they were Dict"),
    ],
)
def test_an_environment_that_nobody_asked_for_stops_no_training(change, said, capsys):
    known = {"environment": "Pendulum-v1", "environment_kwargs": "{}"}
    config, about = default_config(), known | change
    config.data.path = "data"
    model = DecisionTransformer(state_dim=3, act_dim=1, hidden_size=8)
    found = with_known_environment(config, model, about).eval.environment
    told = " ".join(capsys.readouterr().out.split())  # however its lines break
    assert (found, told) == ("Pendulum-v1", "") if said is None else not found
    assert said is None or said in told
    assert told.count("no evaluation") == bool(said)
    if said:  # asked for, it is an error
        config.eval.environment = about["environment"]
        with pytest.raises(ValueError, match=said):
            check_evaluation(config, model, about)

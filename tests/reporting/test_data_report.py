# SPDX-License-Identifier: Apache-2.0
"""The data report says what is in the data, and warns when and only when it should."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dt_jax.data.segments import SegmentSampler
from dt_jax.data.trajectories import Trajectories
from dt_jax.reporting.data_report import auto_target, data_report, describe_data
from dt_jax.training.placement import memory_plan

WARNINGS = {
    "actions": "actions reach from -2 to 2, but model.action_tanh=True",
    "constant": "1 features never change",
    "misfit": "state_mean and state_std do not fit 2 features; worst is 1: stored "
    "50 and 0.01, found 6 and 1.604; data.statistics=computed has them computed",
    "repeated": "1 trajectories repeat another one exactly",
    "inner done": "1 trajectories go on after a done",
    "clipped": "2 timesteps lie beyond data.max_ep_len=2",
    "weak": "returns-to-go reach only 0.0998 after data.return_scale",
}


def make_episodes():
    """Three trajectories that give no cause for a warning."""
    return [
        {
            "states": [[0, 5], [1, 6], [2, 7], [3, 8]],
            "actions": [[-1.0], [0.0], [0.5], [1.0]],
            "rewards": [100, 0, 0, 300],
            "dones": [0, 0, 0, 1],
        },
        {
            "states": [[4, 4], [9, 4]],
            "actions": [[0.0], [0.0]],
            "rewards": [-50, 150],
            "dones": [0, 0],
        },
        {"states": [[8, 8]], "actions": [[1.0]], "rewards": [200], "dones": [1]},
    ]


def report_of(
    data,
    *,
    action_tanh=True,
    action_bounds=None,
    max_ep_len=4,
    return_scale=1000.0,
    whole=None,
    relative_to="nothing",
):
    sampler = SegmentSampler(
        Trajectories.from_episodes(data) if isinstance(data, list) else data,
        batch_size=8,
        context_length=2,
        max_ep_len=max_ep_len,
        return_scale=return_scale,
        weighting="length",
        seed=0,
    )
    options = {
        "action_bounds": action_bounds,
        "action_tanh": action_tanh,
        "relative_to": relative_to,
        "placement": "host",
        "plan": memory_plan(sampler, 3, state_bytes=1000, store_dtype="float32"),
    }
    return data_report(sampler, whole=whole or sampler.trajectories, **options)


def quantiles(*values):
    names = ("min", "10 %", "median", "90 %", "max")
    return pytest.approx(dict(zip(names, values, strict=True)), rel=1e-6)  # float32


def test_the_figures_by_hand():
    episodes = make_episodes()
    report = report_of(episodes)
    store = Trajectories.from_episodes(episodes)
    expected = {
        "trajectories": 3,
        "steps": 7,
        "state_dim": 2,
        "act_dim": 1,
        "bytes": 7 * 3 * 8,  # lists of numbers become 64-bit arrays
        "fingerprint": store.fingerprint(),
        "held_out_trajectories": 0,
        "lengths": quantiles(1, 1.2, 2, 3.6, 4),
        "kept": None,
        # Of 100, 200 and 400 none has another near: the median.
        "auto_target": {
            **{"return": 200.0, "quantile": 2 / 3, "near": 1, "enough": 2},
            **{"within": 0.0, "trajectories": 3},
        },
        "relative_to": "nothing",
        # By timestep 400, 100, 200; 300, 150; 300; 300: the squares around 250 sum to
        # 65,000, those around 700 / 3 and 225 to 140,000 / 3 and 11,250.
        "explained_by_timestep": round(1 - (140000 / 3 + 11250) / 65000, 4),
        "returns": quantiles(0.1, 0.12, 0.2, 0.36, 0.4),
        # of 0.4, 0.1 and 0.2 in float32
        "return_mean": pytest.approx(0.7 / 3, rel=1e-6),
        "return_std": pytest.approx((0.14 / 9) ** 0.5, rel=1e-6),
        # of 0.4, 0.3, 0.3, 0.3; 0.1, 0.15; 0.2
        "returns_to_go": quantiles(0.1, 0.13, 0.3, 0.34, 0.4),
        "action_range": [-1, 1],
        "action_ranges": {"min": [-1.0], "max": [1.0]},
        "action_bounds": None,
        "choices": [],
        "histograms": report["histograms"],
        "returns_to_go_by_timestep": report["returns_to_go_by_timestep"],
        "constant_features": [],
        "repeated_trajectories": 0,
        "trajectories_with_inner_dones": 0,
        "misfit": None,
        "clipped_timesteps": 0,
        "about": {},
        "placement": "host",
        "memory_plan": report["memory_plan"],
        "warnings": [],
    }
    assert report.keys() == expected.keys()
    for name, value in expected.items():
        assert report[name] == value, name


def test_histograms_and_levels_by_hand():
    report = report_of(make_episodes())
    lengths, returns = (report["histograms"][key] for key in ("length", "return"))
    assert lengths == {"edges": [0.5, 1.5, 2.5, 3.5, 4.5], "counts": [1, 1, 0, 1]}
    assert (returns["edges"][0], returns["edges"][-1]) == pytest.approx((0.1, 0.4))
    assert (len(returns["counts"]), sum(returns["counts"])) == (40, 3)
    # Returns-to-go 0.4, 0.3, 0.3, 0.3; 0.1, 0.15; 0.2.
    levels = report["returns_to_go_by_timestep"]
    assert levels["timestep"] == [0, 1, 2, 3]
    assert levels["median"] == pytest.approx([0.2, 0.225, 0.3, 0.3])
    assert levels["max"] == pytest.approx([0.4, 0.3, 0.3, 0.3])


def test_what_the_timestep_explains_and_leaves():
    store = Trajectories.from_episodes(make_episodes())
    relative = store.relative_to(store.mean_returns_to_go(4))
    found = report_of(relative, whole=store, relative_to="timestep")
    before = report_of(store)
    changed = {key for key in before if found[key] != before[key]}
    levels = ("returns_to_go", "returns_to_go_by_timestep")
    assert changed == {"relative_to", *levels}
    # Less 700 / 3 and 225: the targets stay those of the returns as they are.
    levels = found["returns_to_go"]
    assert (levels["min"], levels["max"]) == pytest.approx((-0.4 / 3, 0.5 / 3))
    share = "  the timestep explains 10.9% of their variance"
    assert f"{share}\n" in describe_data(before)
    assert f"{share}: its mean is subtracted\n" in describe_data(found)


@pytest.mark.parametrize(
    ("returns", "chosen", "near"),
    [
        # Of 8 the span without both ends is 5 - 1, a twentieth of it 0.2.
        ([0, 1, 1.125, 2, 3, 4.875, 5, 9], 5.0, 2),
        ([0, 1, 1.125, 2, 3, 4, 5, 9], 1.125, 2),
        ([*range(100), 10**6], 99.0, 5),  # a lucky one is not learned from
        ([0] * 98 + [7, 7], 7.0, 2),  # two of a hundred are
        ([0] * 148 + [7, 7], 0.0, 148),
        ([*range(101)], 100.0, 5),  # 4.8 below the highest
        ([3], 3.0, 1),
        ([1, 2, 4, 8], 2.0, 1),  # too few: the median
    ],
)
def test_the_target_of_auto_on_paper(returns, chosen, near):
    found = auto_target(np.random.default_rng(0).permutation(np.float64(returns)))
    assert (found["return"], found["near"]) == (chosen, near)
    assert found["quantile"] == np.mean(np.array(returns) <= chosen)


def test_the_target_of_auto_for_a_normal_distribution():
    returns = np.random.default_rng(0).normal(size=20_000)
    assert auto_target(returns)["quantile"] == pytest.approx(0.98, abs=0.005)


def test_returns_that_are_all_alike_have_one_bin():
    episodes = [episode | {"rewards": [0] * 4} for episode in make_episodes()[:1]]
    histogram = report_of(episodes)["histograms"]["return"]
    assert histogram == {"edges": [-0.5, 0.5], "counts": [1]}


def test_choices_are_counted_and_said():
    episodes = make_episodes()
    for episode, actions in zip(episodes, ([0, 2, 2, 1], [0, 0], [2]), strict=True):
        episode["actions"] = actions
    report = report_of(episodes)
    assert (report["act_dim"], report["choices"]) == (3, [[3, 1, 3]])
    assert "discrete actions of 3 choices, taken 3 1 3 times" in describe_data(report)
    assert report["warnings"] == []


def actions(episodes):
    episodes[1]["actions"] = [[-2.0], [2.0]]


def constant(episodes):
    for episode in episodes:
        episode["states"] = [[first, 7] for first, _ in episode["states"]]


def repeated(episodes):
    episodes.append(episodes[2])


def inner_done(episodes):
    episodes[1]["dones"] = [1, 0]


def weak(episodes):
    for episode in episodes:
        episode["rewards"] = [reward * 0.2495 for reward in episode["rewards"]]


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (actions, {}, ["actions"]),
        (actions, {"action_tanh": False}, []),
        (actions, {"action_bounds": (np.array([-2.0]), np.array([2.0]))}, []),
        (constant, {}, ["constant"]),
        (repeated, {}, ["repeated"]),
        (inner_done, {}, ["inner done"]),
        (list, {"max_ep_len": 2}, ["clipped"]),
        (list, {"max_ep_len": 10**6}, []),
        (weak, {}, ["weak"]),
        (weak, {"return_scale": 10.0}, []),
    ],
)
def test_each_warning_comes_when_and_only_when_it_should(change, options, expected):
    episodes = make_episodes()
    change(episodes)
    found = report_of(episodes, **options)["warnings"]
    assert len(found) == len(expected)
    for text, name in zip(found, expected, strict=True):
        assert text.startswith(WARNINGS[name])


def with_statistics(mean, std):
    store = Trajectories.from_episodes(make_episodes())
    return Trajectories.from_arrays(
        store.states.pieces,
        store.actions.pieces,
        store.rewards,
        starts=store.starts,
        lengths=store.lengths,
        dones=store.dones,
        state_mean=np.array(mean),
        state_std=np.array(std),
    )


def test_statistics_of_other_data_are_named_with_the_worst():
    report = report_of(with_statistics([30, 50], [0.01, 0.01]))
    assert report["misfit"]["found_mean"] == 6
    assert report["warnings"] == [WARNINGS["misfit"]]
    assert WARNINGS["misfit"] in " ".join(describe_data(report).split())
    # By hand: 27 / 7 and 42 / 7, sqrt(496) / 7 and sqrt(126) / 7.
    assert report_of(with_statistics([3.857, 6], [3.18, 1.6]))["warnings"] == []


def test_the_order_of_trajectories_is_of_no_consequence():
    episodes = make_episodes()
    inner_done(episodes)
    store = Trajectories.from_episodes(episodes)
    order = {key: getattr(store, key)[[2, 0, 1]] for key in ("starts", "lengths")}
    found, expected = report_of(replace(store, **order)), report_of(store)
    assert found.pop("fingerprint") != expected.pop("fingerprint")
    assert found == expected


def test_without_dones_a_reset_inside_is_unknown():
    episodes = make_episodes()
    del episodes[0]["dones"]
    report = report_of(episodes)
    assert report["trajectories_with_inner_dones"] is None
    assert report["warnings"] == []
    assert "with a done inside: unknown" in describe_data(report)


def test_held_out_trajectories_are_counted_apart():
    episodes = make_episodes()
    inner_done(episodes)
    store = Trajectories.from_episodes(episodes)
    report = report_of(store.select([0, 2]), whole=store)
    assert (report["trajectories"], report["steps"]) == (2, 5)
    assert report["held_out_trajectories"] == 1
    assert report["trajectories_with_inner_dones"] == 0
    assert report["fingerprint"] == store.fingerprint()
    assert "held out besides: 1 trajectories" in describe_data(report)
    assert "held out" not in describe_data(report_of(store))


def test_returns_to_go_of_large_data_are_sampled_evenly(monkeypatch):
    monkeypatch.setattr("dt_jax.reporting.data_report.SAMPLED_STEPS", 4)
    found = report_of(make_episodes())["returns_to_go"]
    # of the steps 0, 1, 3 and 5 of seven: 0.4, 0.3, 0.3, 0.15
    assert found["min"] == pytest.approx(0.15)
    assert found["median"] == pytest.approx(0.3)


def worst_case():
    """Every warning at once, and numbers as wide as they come."""
    draw = np.random.default_rng(0)
    episodes = [
        {
            "states": np.full((n, 4000), -1.2345e-30),
            "actions": -1.2345e30 * draw.normal(size=(n, 1)),
            "rewards": -1.2345e-30 * draw.normal(size=n),
            "dones": np.ones(n),
        }
        for n in (20, 9, 11)
    ]
    return report_of([*episodes, episodes[0]], max_ep_len=2)


@pytest.mark.parametrize("make", [worst_case, lambda: report_of(make_episodes())])
def test_the_text_fits_a_screen_and_the_dict_json(make):
    report = make()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    lines = describe_data(report).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert text.startswith(f"Data: {report['trajectories']} trajectories")
    assert all(warning in text for warning in report["warnings"])
    assert len(report["warnings"]) in (0, len(WARNINGS) - 1)  # computed: they fit


def test_what_was_converted_says_where_it_comes_from():
    about = {
        "format": "Minari",
        "source": "D4RL/pen/human-v2",
        "left_out": "the last 5 steps, an episode without end",
        "observations": "Dict('a': Box)",
        "actions": "Box(-2.0, 2.0, (24,), float32)",
        "environment": "robotics:Pen-v1",
        "environment_kwargs": "{}",
        "score_range": [96.262799, 3076.8331],
    }
    report = report_of(make_episodes()) | {"about": about}
    lines = describe_data(report).splitlines()
    assert max(map(len, lines)) <= 80
    told = " ".join(" ".join(lines).split())
    assert (
        "converted from Minari, D4RL/pen/human-v2; left out: the last 5 steps, an "
        "episode without end observations, flattened: Dict('a': Box) actions of the "
        "environment: Box(-2.0, 2.0, (24,), float32) unless you set them: "
        "eval.environment=robotics:Pen-v1, eval.score_range=(96.2628, 3076.83)"
    ) in told
    collected = {"environment": "CartPole-v1", "observations": "Dict('a': Box)"}
    text = describe_data(report | {"about": collected})
    assert "  collected in CartPole-v1\n  observations, flattened: Dict" in text
    assert "eval.environment" not in text  # its arguments are not known

# SPDX-License-Identifier: Apache-2.0
"""The card is of one update, and the Hub can read its header."""

from huggingface_hub import ModelCard

from dt_jax.reporting.model_card import model_card

LEVELS = {"min": 1.0, "10 %": 2.0, "median": 3.0, "90 %": 4.0, "max": 5.0}
DATA = {
    "trajectories": 12,
    "steps": 108,
    "action_range": [-1.0, 1.0],
    "lengths": LEVELS,
    "returns": LEVELS,
    "returns_to_go": LEVELS,
}
RECORDS = [{"step": step, "loss": step / 8} for step in (10, 20, 30)]


def make_evaluation(step):
    facts = {"lengths": [9, 9], "std": 0.5, "normalized": 20.0, "backtest": None}
    facts |= {"returns": [2.5, 3.5], "mean": 3.0, "truncated": 0}
    return {
        "environment": "Some: Env-v1",
        "step": step,
        "episodes": 2,
        "first_seed": 0,
        "data": {"returns": LEVELS | {"mean": 3.0, "std": 1.0}, "longest": 9},
        "reference": {"low": 0.0, "high": 9.0, "given": True},
        "actors": [
            facts | {"name": "target 4", "target": 4.0},
            facts | {"name": "random actions", "target": None},
        ],
        "spearman": None,
        "backtest_references": None,
        "periods_a_year": None,
        "warnings": [],
    }


def make_card(changed=None, **given):
    fields = {"state_dim": 3, "act_dim": 2}
    changed = {"model.n_layer": 1} if changed is None else changed
    options = {"step": 20, "return_scale": 10.0} | given
    return model_card(changed, DATA, RECORDS, fields, **options)


def test_the_hub_reads_the_header():
    data = ModelCard(make_card(evaluation=make_evaluation(20))).data
    assert (data.license, data.library_name) == ("apache-2.0", "transformers")
    assert data.pipeline_tag == "reinforcement-learning"
    assert "decision-transformer" in data.tags
    (result,) = data.eval_results
    assert result.dataset_name == "Some: Env-v1"
    assert result.metric_name == "mean return, target 4"
    assert result.metric_value == "3 +/- 0.5"


def test_what_is_of_another_update_is_not_shown():
    card = make_card(evaluation=make_evaluation(30), held_out={"step": 30, "mse": 0.25})
    assert card == make_card()
    assert ModelCard(card).data.eval_results is None
    assert "## Evaluation" not in card
    assert "| 20 | 2.5 |" in card
    assert "| 30 |" not in card


def test_held_out_data_of_the_same_update_is_shown():
    card = make_card(held_out={"step": 20, "mse": 0.25})
    assert "Mean squared error on held-out data: 0.25." in card


def test_the_target_of_the_snippet_is_one_of_the_data():
    assert "policy.reset(target_return=40)" in make_card()  # 4 times the scale


def test_the_recipe_is_what_was_changed():
    assert "| model.n_layer | 1 |" in make_card()
    assert "All keys are dt-jax's defaults." in make_card(changed={})

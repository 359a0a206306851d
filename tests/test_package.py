# SPDX-License-Identifier: Apache-2.0
"""What `import dt_jax` offers, and what it leaves alone."""

import ast
import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import dt_jax
from dt_jax.model.decision_transformer import Prediction
from dt_jax.trading.simulation import simulate_market

ROOT = Path(__file__).parents[1]
CONTRACT = (
    *("load_trajectories", "save_trajectories", "Trajectories", "SegmentSampler"),
    *("DecisionTransformer", "import_hf", "export_hf", "make_optimizer", "TrainState"),
    *("train_step", "Policy", "TradingEnv", "load_market", "default_config", "train"),
    *("evaluate", "Run"),
)


def test_importing_starts_nothing():
    slow = {"jax", "datasets", "numpy", "pandas", "gymnasium", "ml_collections"}
    code = f"import dt_jax, sys; print(*{slow} & set(sys.modules))"
    told = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert told == "\n"


def test_a_start_imports_nothing_before_it_is_used(tmp_path):
    episode = {"observations": np.ones((5, 3)), "actions": np.ones((5, 2))}
    episode |= {"rewards": np.ones(5), "dones": np.zeros(5)}
    dt_jax.save_trajectories(tmp_path / "data", [episode])
    slow = {"datasets", "pandas", "orbax", "tensorboardX", "tensorstore", "matplotlib"}
    code = "import sys, dt_jax.commands.train as train, dt_jax.data.readers as readers;"
    code += f"readers.load_trajectories({str(tmp_path / 'data')!r});"
    code += f"print(*{slow} & set(sys.modules))"
    told = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert told == "\n"


@pytest.mark.parametrize("name", CONTRACT)
def test_what_a_user_calls_is_offered(name):
    assert name in dir(dt_jax)
    assert callable(getattr(dt_jax, name))
    assert getattr(dt_jax, name).__doc__


def test_the_stub_names_the_home_of_everything():
    tree = ast.parse((ROOT / "dt_jax/__init__.pyi").read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            (name,) = node.names
            assert name.name == name.asname
            # Where it is defined, so that its help is found there too.
            assert getattr(dt_jax, name.name).__module__ == f"dt_jax.{node.module}"


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version", "dependencies"]
    if found := importlib.metadata.packages_distributions().get("dt_jax"):
        assert importlib.metadata.version(found[0]) == dt_jax.__version__


def test_what_a_user_meets_says_in_one_line_what_it_is():
    episodes = dt_jax.Trajectories.from_episodes(
        [{"states": np.ones((5, 3)), "actions": np.ones((5, 2)), "rewards": np.ones(5)}]
    )
    sizes = {"batch_size": 4, "context_length": 2, "max_ep_len": 9}
    sampler = dt_jax.SegmentSampler(
        episodes, **sizes, return_scale=1.0, weighting="length", seed=0
    )
    model = dt_jax.DecisionTransformer(state_dim=3, act_dim=2, hidden_size=8, n_layer=1)
    state = dt_jax.TrainState(3, {"a": np.ones((2, 5))}, ())
    prediction = Prediction(np.ones((4, 2, 2)), None, None)
    market = simulate_market(num_days=5, num_stocks=2, seed=0)
    told = "Trajectories(1 trajectories, 5 steps, state_dim 3, act_dim 2)"
    assert repr(sampler) == f"SegmentSampler({told}, batch_size=4, context_length=2)"
    assert repr(sampler.batch(0)) == (
        "Batch(states 4x2x3, actions 4x2x2, rewards 4x2x1, returns_to_go 4x2x1, "
        "timesteps 4x2, attention_mask 4x2)"
    )
    assert repr(episodes.states) == "Rows(5 x 3, pieces: 1)"
    assert repr(model) == (
        "DecisionTransformer(state_dim=3, act_dim=2, hidden_size=8, n_layer=1, "
        "n_head=1)"
    )
    assert repr(state) == "TrainState(step=3, 10 parameters)"
    assert repr(prediction) == "Prediction(action_preds 4x2x2)"
    assert repr(market) == "Market(2 stocks, 2000-01-03 to 2000-01-07, 5 days)"

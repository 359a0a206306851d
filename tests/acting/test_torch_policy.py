# SPDX-License-Identifier: Apache-2.0
"""What is exported beside the weights acts in torch as we do."""

from functools import partial

import jax
import numpy as np
import pytest

from dt_jax.acting.policy import Policy
from dt_jax.model.decision_transformer import DecisionTransformer, init_params
from dt_jax.model.hf_weights import export_hf

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("compile_fast")]
PLAIN = {
    "state_mean": [1.0, -1.0, 0.0],
    "state_std": [2.0, 0.5, 1.0],
    "return_scale": 10.0,
    "context_length": 4,
    "max_ep_len": 9,
}
MEANS = {"mean_returns_to_go": [30.0, -20.0, 5.0]}
BOUNDS = {"action_low": [-3.0, 0.0, 1.0], "action_high": [5.0, 2.0, 1.0]}


@pytest.mark.parametrize(
    ("sizes", "normalization"),
    [((), PLAIN | BOUNDS | MEANS), ((3,), PLAIN), ((2, 3), PLAIN)],
    ids=["scaled", "discrete", "multi-discrete"],
)
def test_actions_of_every_kind(tmp_path, sizes, normalization):
    pytest.importorskip("transformers")
    from dt_jax.acting.torch_policy import Policy as TorchPolicy

    model = DecisionTransformer(
        state_dim=3,
        act_dim=sum(sizes) or 3,
        hidden_size=16,
        n_layer=1,
        max_ep_len=9,
        initializer_range=0.3,
        action_sizes=sizes,
    )
    params = jax.device_get(jax.jit(partial(init_params, model))(jax.random.key(0)))
    export_hf(tmp_path, model, params, normalization)
    ours, theirs = Policy.load(tmp_path), TorchPolicy(tmp_path)
    for policy in (ours, theirs):
        policy.reset(7.0)
    draw, seen = np.random.default_rng(0), set()
    for _ in range(12):
        state, reward = draw.normal(size=3).astype(np.float32), float(draw.normal())
        action = ours.act(state, reward)
        # Float32 sums in another order; choices are the same.
        tolerance = {} if sizes else {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(theirs.act(state, reward), action, **tolerance)
        seen.add(str(action))
    assert len(seen) > 2
    for policy in (ours, theirs):
        with pytest.raises(ValueError, match=r"^reward"):
            policy.act(state)

# SPDX-License-Identifier: Apache-2.0
"""The optimiser is torch's AdamW as HF's `Trainer` drives it (golden numbers)."""

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dt_jax.model.decision_transformer import DecisionTransformer, init_params
from dt_jax.training.optimizer import (
    clip_by_global_norm,
    global_norm,
    make_optimizer,
    make_schedule,
)

pytestmark = pytest.mark.usefixtures("compile_fast")
GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "optimizer.npz"))
RECIPE = {
    "learning_rate": 1e-4,
    "weight_decay": 1e-4,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 0.25,
    "warmup_ratio": 0.1,
    "lr_scheduler_type": "linear",
}
# What no loss reads: torch gives it no gradient and skips it, decay included.
UNTOUCHED = {
    "encoder.wte/embedding",
    "predict_return/bias",
    "predict_return/kernel",
    "predict_state/bias",
    "predict_state/kernel",
}
DECAYED = {
    "embed_action/kernel",
    "embed_return/kernel",
    "embed_state/kernel",
    "embed_timestep/embedding",
    "encoder.wpe/embedding",
    "predict_action.0/kernel",
    *(
        f"encoder.h.{layer}.{module}/kernel"
        for layer in range(2)
        for module in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ),
}


def golden_tree(prefix):
    tree = {}
    for name, array in GOLDEN.items():
        if name.startswith(f"{prefix}/"):
            _, module, leaf = name.split("/")
            tree.setdefault(module, {})[leaf] = array
    return tree


def schedule(total_steps, **changes):
    """The rates of all updates."""
    keys = ("learning_rate", "warmup_ratio", "lr_scheduler_type")
    recipe = {key: RECIPE[key] for key in keys} | changes
    return make_schedule(total_steps=total_steps, **recipe)(np.arange(total_steps))


def names_where(condition, *trees):
    """The 'module/leaf' names of the leaves for which the condition holds."""
    holds = jax.tree.map(condition, *trees)
    return {
        f"{m}/{leaf}" for m, leaves in holds.items() for leaf in leaves if leaves[leaf]
    }


@pytest.mark.parametrize(("final", "decay"), [("final", 1e-4), ("final_heavy", 1.0)])
def test_fifty_updates_move_the_parameters_as_torch_does(final, decay):
    optimizer = make_optimizer(total_steps=50, **RECIPE | {"weight_decay": decay})

    def update(carry, grads):
        params, opt_state = carry
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    initial = jax.tree.map(jnp.asarray, golden_tree("initial"))
    scan = jax.jit(partial(jax.lax.scan, update))
    (found, _), _ = scan((initial, optimizer.init(initial)), golden_tree("gradients"))
    expected = golden_tree(final)
    # torch clips by max / (norm + 1e-6), optax by max / norm: gradients differ by up to
    # 4e-6 of their size, and that much of 2.5e-3, the sum of the rates, is 1e-8. The
    # rest is some 150 roundings on each side, of 6e-8 of a parameter.
    close = partial(np.testing.assert_allclose, rtol=1.5e-6, atol=1e-7)
    jax.tree.map(close, found, expected)
    still = names_where(lambda x, y: (x == y).all(), found, initial)
    assert still == UNTOUCHED


def test_two_updates_on_paper():
    changes = {"adam_beta1": 0.5, "adam_beta2": 0.25, "lr_scheduler_type": "constant"}
    optimizer = make_optimizer(
        total_steps=2, **RECIPE | changes | {"adam_epsilon": 0.1, "weight_decay": 0.0}
    )
    params = {"embed_ln": {"bias": np.zeros(1, np.float32)}}
    first, opt_state = optimizer.update(
        {"embed_ln": {"bias": np.float32([0.1])}}, optimizer.init(params), params
    )
    second, _ = optimizer.update(params, opt_state, params)  # a gradient of 0
    moves = [float(update["embed_ln"]["bias"][0]) for update in (first, second)]
    # -rate * m / (sqrt(v) + epsilon), both moments divided by 1 - beta^t
    expected = [-1e-4 * 0.1 / (0.1 + 0.1), -1e-4 * (0.1 / 3) / (0.1 * 0.2**0.5 + 0.1)]
    np.testing.assert_allclose(moves, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup"])
def test_rates_are_those_of_hf(name):
    # optax computes in float32: 1e-7 of the highest rate, 1e-4.
    found = schedule(50, lr_scheduler_type=name)
    np.testing.assert_allclose(found, GOLDEN[name], rtol=0, atol=2e-11)


@pytest.mark.parametrize(
    ("total_steps", "changes", "expected"),
    [
        # One update of warmup is an update at rate 0, in HF too.
        (1, {}, [0]),
        (2, {}, [0, 1]),
        (1, {"warmup_ratio": 0.0}, [1]),
        (4, {"warmup_ratio": 0.0}, [1, 3 / 4, 2 / 4, 1 / 4]),
        (4, {"warmup_ratio": 1.0}, [0, 1 / 4, 2 / 4, 3 / 4]),
        (5, {"warmup_ratio": 0.3}, [0, 1 / 2, 1, 2 / 3, 1 / 3]),
        (3, {"lr_scheduler_type": "constant", "warmup_ratio": 0.5}, [1, 1, 1]),
        (3, {"lr_scheduler_type": "constant_with_warmup"}, [0, 1, 1]),
        (
            4,
            {"lr_scheduler_type": "cosine", "warmup_ratio": 0.0},
            [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)],
        ),
    ],
)
def test_rates_of_few_updates_on_paper(total_steps, changes, expected):
    found = np.broadcast_to(schedule(total_steps, **changes), total_steps)
    np.testing.assert_allclose(found, 1e-4 * np.array(expected), rtol=0, atol=2e-11)


def test_rates_of_the_notebook():
    rates = schedule(9480)
    assert rates.argmax() == 948
    paper = {0: 0, 1: 1e-4 / 948, 474: 5e-5, 948: 1e-4, 5214: 5e-5, 9479: 1e-4 / 8532}
    found = rates[np.array(list(paper))]
    np.testing.assert_allclose(found, list(paper.values()), rtol=0, atol=2e-11)


@pytest.mark.parametrize("predict_return", [False, True])
def test_every_leaf_of_the_model_is_decayed_or_not_or_left_alone(predict_return):
    model = DecisionTransformer(hidden_size=8, n_layer=2)
    shapes = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    zeros = jax.tree.map(np.zeros_like, ones)
    changes = {"warmup_ratio": 0.0, "weight_decay": 0.5}
    optimizer = make_optimizer(
        total_steps=1, **RECIPE | changes, predict_return=predict_return
    )
    head = {"predict_return/kernel", "predict_return/bias"} if predict_return else set()

    @jax.jit
    def moves(grads):
        return optimizer.update(grads, optimizer.init(ones), ones)[0]

    decayed = names_where(lambda move: (move != 0).all(), moves(zeros))
    assert decayed == DECAYED | {name for name in head if name.endswith("kernel")}
    # Nothing is kept in memory for a leaf that is left alone.
    moments = optimizer.init(ones)[1].inner_state[0].mu
    kept = names_where(lambda leaf: not isinstance(leaf, optax.MaskedNode), moments)
    assert names_where(lambda _: True, ones) - kept == UNTOUCHED - head


@pytest.mark.parametrize("max_norm", [0.25, 100.0])
def test_norm_and_clipping_are_those_of_optax(max_norm):
    generator = np.random.default_rng(0)
    shapes = {"kernel": (30, 7), "bias": (7,), "scale": ()}
    grads = {k: generator.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    norm = optax.tree.norm(grads)
    assert 0.25 < norm < 100
    # A sum of 218 squares in another order; one rounding more where it is clipped.
    np.testing.assert_allclose(global_norm(grads), norm, rtol=1e-6)
    found, _ = clip_by_global_norm(max_norm).update(grads, optax.EmptyState())
    expected, _ = optax.clip_by_global_norm(max_norm).update(grads, optax.EmptyState())
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, expected)
    assert not max_norm > norm or (found["kernel"] == grads["kernel"]).all()


def test_a_leaf_of_no_group_is_named():
    params = {"embed_new": {"gamma": np.ones(3, np.float32)}}
    with pytest.raises(ValueError, match=r"embed_new\.gamma is in no optimiser group"):
        make_optimizer(total_steps=1, **RECIPE).init(params)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", -1e-4),
        ("learning_rate", math.nan),
        ("weight_decay", -1.0),
        ("adam_beta1", 1.0),
        ("adam_beta2", -0.1),
        ("adam_epsilon", -1e-8),
        ("max_grad_norm", 0.0),
        ("max_grad_norm", math.nan),
        ("warmup_ratio", 1.1),
        ("lr_scheduler_type", "polynomial"),
    ],
)
def test_values_out_of_range_are_named(key, value):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared as a whole below)
        make_optimizer(total_steps=1, **RECIPE | {key: value})
    assert str(caught.value).startswith(f"{key}={value!r}: expected ")
    assert "\n" not in str(caught.value)


def test_moments_rest_where_an_update_is_not_finite_and_the_schedule_goes_on():
    # No clipping, no decay: the recipe is then optax's own Adam.
    flat = {"max_grad_norm": 1e9, "weight_decay": 0.0, "warmup_ratio": 0.5}
    optimizer = make_optimizer(total_steps=8, **RECIPE | flat)
    params = {"embed_ln": {"scale": jnp.float32([1.0, -2.0])}}
    grads = [{"embed_ln": {"scale": jnp.float32([g, 1.0])}} for g in (0.5, np.nan, 2.0)]
    state, found = optimizer.init(params), []
    for grad, finite in zip(grads, (True, False, True), strict=True):
        updates, state = optimizer.update(grad, state, params, finite=jnp.array(finite))
        found.append(updates["embed_ln"]["scale"])
    adam = optax.scale_by_adam(0.9, 0.999, 1e-8)
    state = adam.init(params)
    rates = schedule(8, warmup_ratio=0.5)
    for update in (0, 2):
        expected, state = adam.update(grads[update], state)
        np.testing.assert_allclose(
            found[update], -rates[update] * expected["embed_ln"]["scale"], rtol=1e-6
        )

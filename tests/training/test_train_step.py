# SPDX-License-Identifier: Apache-2.0
"""One update is the same however its batch is cut, and many are many of one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dt_jax.data.segments import Batch
from dt_jax.model.decision_transformer import DecisionTransformer, init_params
from dt_jax.training.optimizer import make_optimizer
from dt_jax.training.population import DEVICES
from dt_jax.training.train_call import make_train_call, place
from dt_jax.training.train_step import find_bad_segments, init_state, train_step

pytestmark = pytest.mark.usefixtures("compile_fast")
S, A, K, B, G = 3, 2, 4, 8, 4
SIZES = {"state_dim": S, "act_dim": A, "hidden_size": 8, "n_layer": 1, "max_ep_len": 9}
RATES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
PLAIN = DecisionTransformer(**SIZES, **dict.fromkeys(RATES, 0.0))
DROPPING = DecisionTransformer(**SIZES, **dict.fromkeys(RATES, 0.5))
MEAN, STD = np.float32([0.5, -1.0, 2.0]), np.float32([2.0, 0.5, 1.0])
RAGGED = [1, 1, 1, 2, 4, 3, 4, 4]  # most valid steps fall on the last devices
KEEP_GRADIENTS = optax.trace(decay=0.0)  # its state is the last gradients
RECIPE = make_optimizer(
    total_steps=10,
    learning_rate=0.01,
    weight_decay=1.0,
    adam_beta1=0.9,
    adam_beta2=0.999,
    adam_epsilon=1e-8,
    max_grad_norm=0.25,
    warmup_ratio=0.0,
    lr_scheduler_type="constant",
)
step_of = partial(train_step, model=PLAIN, state_mean=MEAN, state_std=STD)


@pytest.fixture(scope="module")
def params():
    """Far from zero, so that every part of the model and every leaf counts."""
    shapes = jax.eval_shape(partial(init_params, PLAIN), jax.random.key(0))
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: generator.normal(0, 0.5, leaf.shape).astype(leaf.dtype), shapes
    )


@pytest.mark.parametrize("enabled", [False, True])
def test_all_that_training_changes_is_float32_whatever_jax_enable_x64(enabled):
    def first_and_second():
        first = init_state(init_params(DROPPING, jax.random.key(0)), RECIPE)
        how = {"model": DROPPING, "optimizer": RECIPE, "key": jax.random.key(0)}
        return first, *step_of(first, make_batch(RAGGED), **how)

    with jax.enable_x64(enabled):
        states = jax.eval_shape(first_and_second)
        words = jax.make_jaxpr(first_and_second)()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(states)} == {"float32", "int32"}
    assert "u64" not in str(words), "other bits would drop other numbers"


def make_batch(lengths, seed=0) -> Batch:
    """Segments of these lengths, left-padded as the sampler pads them."""
    generator = np.random.default_rng(seed)
    steps_BxK = np.arange(K)[None] - (K - np.array(lengths)[:, None])
    valid_BxKx1 = (steps_BxK >= 0)[..., None]

    def draw(width, elsewhere=0.0):
        values = generator.normal(0, 0.7, (*steps_BxK.shape, width))
        return np.where(valid_BxKx1, values, elsewhere).astype(np.float32)

    return Batch(
        states=draw(S),
        actions=draw(A, elsewhere=-10.0),
        rewards=draw(1),
        returns_to_go=draw(1),
        timesteps=np.maximum(steps_BxK, 0).astype(np.int32),
        attention_mask=valid_BxKx1[..., 0].astype(np.float32),
    )


def split(batch, num_devices=G):
    """[B] -> [G, B/G]"""
    return jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), batch)


def items(batches):
    """U batches as what a call gets: [G, U, B/G]."""
    parts = [split(batch) for batch in batches]
    return jax.tree.map(lambda *xs: np.stack(xs, axis=1), *parts)


def make_call(model, optimizer, seed=0):
    return make_train_call(
        model,
        optimizer,
        state_mean=MEAN,
        state_std=STD,
        seed=seed,
        fetch=lambda store, item: item,
    )


def run(call, state, batches):
    """One call, and what it returns looked at, so that it is over."""
    state, metrics = call(state, (), items(batches))
    return state, np.asarray(metrics.loss), np.asarray(metrics.grad_norm)


@pytest.fixture(scope="module")
def dropping_call():
    return make_call(DROPPING, RECIPE)


@pytest.fixture
def state(params):
    return place(init_state(params, RECIPE))


def test_an_update_on_paper(params):
    # All weights are 0 but the head's bias b: every action is predicted as tanh(b).
    params = jax.tree.map(np.zeros_like, params)
    bias = params["predict_action.0"]["bias"] = np.float32([0.5, -0.25])
    batch = make_batch([2, 1])
    batch.actions[0, 2:] = [[0.1, 0.2], [0.3, 0.4]]
    batch.actions[1, 3:] = [[0.5, 0.6]]
    optimizer = optax.sgd(2.0)
    update = jax.jit(partial(step_of, optimizer=optimizer))
    state, metrics = update(init_state(params, optimizer), batch, key=jax.random.key(0))
    predicted = np.tanh([0.5, -0.25])
    error_NxA = predicted - np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    # The mean is over 3 valid steps and 2 dimensions.
    gradient = 2 * error_NxA.sum(0) * (1 - predicted**2) / 6
    close = partial(np.testing.assert_allclose, rtol=1e-6)
    close(metrics.loss, (error_NxA**2).sum() / 6)
    close(metrics.grad_norm, np.linalg.norm(gradient))
    close(state.params["predict_action.0"]["bias"], bias - 2 * gradient)
    assert state.step == 1

    # With a return head of 0.1, one return is missed by 0.4 and two by -0.3.
    params["predict_return"]["bias"] = np.float32([0.1])
    batch.returns_to_go[batch.attention_mask > 0] = [[0.5], [-0.2], [-0.2]]
    how = {"model": PLAIN.clone(predict_return=True), "optimizer": optimizer}
    state, both = jax.jit(partial(step_of, **how))(
        init_state(params, optimizer), batch, key=jax.random.key(0)
    )
    close(both.loss, metrics.loss + (0.99 * 0.4**2 + 2 * 0.01 * 0.3**2) / 3)
    close(state.params["predict_action.0"]["bias"], bias - 2 * gradient)
    slope = -2 * (0.99 * 0.4 - 2 * 0.01 * 0.3) / 3
    close(state.params["predict_return"]["bias"], 0.1 - 2 * slope)


@pytest.fixture(scope="module")
def whole(params):
    """The loss and the gradients of the whole batch, on one device."""
    update = jax.jit(partial(step_of, optimizer=KEEP_GRADIENTS))
    state = init_state(params, KEEP_GRADIENTS)
    return update(state, make_batch(RAGGED), key=jax.random.key(0))


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_an_update_is_the_same_on_any_number_of_devices(params, whole, num_devices):
    update = jax.pmap(
        partial(step_of, optimizer=KEEP_GRADIENTS, axis_name=DEVICES),
        axis_name=DEVICES,
        in_axes=(None, 0),
        out_axes=None,
        devices=jax.devices()[:num_devices],
    )
    state = init_state(params, KEEP_GRADIENTS)
    batch = split(make_batch(RAGGED), num_devices)
    key = jnp.broadcast_to(jax.random.key(0), num_devices)
    state, metrics = update(state, batch, key=key)
    # Sums of at most 44 squares in another order; a mean of means is off by 10 %.
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, (state.opt_state, metrics), (whole[0].opt_state, whole[1]))


def test_a_call_makes_the_update_of_the_whole_batch(params, whole):
    call = make_call(PLAIN, KEEP_GRADIENTS)
    state = place(init_state(params, KEEP_GRADIENTS))
    state, loss, grad_norm = run(call, state, [make_batch(RAGGED)])
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, state.opt_state, whole[0].opt_state)
    close((loss[0], grad_norm[0]), whole[1][:2])


@pytest.mark.slow
def test_one_call_of_three_updates_is_three_calls_of_one(state, dropping_call):
    batches = [make_batch(RAGGED, seed) for seed in range(3)]
    first = jax.device_get(state)
    together, losses, _ = run(dropping_call, state, batches)
    one_by_one, found = place(first), []
    for batch in batches:
        one_by_one, loss, _ = run(dropping_call, one_by_one, [batch])
        found.extend(loss)
    assert together.step == one_by_one.step == 3
    # XLA may order sums otherwise inside a loop than outside; Adam divides by the
    # gradient's own size, so that a rounding of a small one counts in full. That of
    # the keys' biases is nothing but rounding: they move all scores of a query alike.
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    params = jax.tree.map(np.array, [one_by_one.params, together.params])
    for tree in params:
        tree["encoder.h.0.attn.c_attn"]["bias"][8:16] = 0
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(close, *params)


# An infinite loss; one that is not a number; a finite one whose gradient's square is
# beyond float32.
@pytest.mark.parametrize("action", [1e25, np.nan, 1.7e19])
def test_a_bad_update_is_skipped(state, dropping_call, action):
    bad = make_batch([1] * B)
    bad.attention_mask[1:] = 0
    bad.actions[0, -1, 0] = action
    state, *_ = run(dropping_call, state, [make_batch(RAGGED)])
    before = jax.device_get(state)
    state, loss, grad_norm = run(dropping_call, state, [bad])
    assert not np.isfinite(grad_norm[0])
    assert np.isfinite(loss[0]) == (action == 1.7e19)
    after = jax.device_get(state)
    changed = {
        jax.tree_util.keystr(path): new - old
        for (path, new), old in zip(
            jax.tree.leaves_with_path(after), jax.tree.leaves(before), strict=True
        )
        if new.tobytes() != old.tobytes()
    }
    # The step, and the schedule's; Adam's own counts the gradients in its moments.
    assert changed.keys() == {".step", ".opt_state[1].inner_state[2].count"}
    assert set(changed.values()) == {1}
    state, loss, _ = run(dropping_call, state, [make_batch(RAGGED, 1)])
    assert np.isfinite(loss[0])
    bias = after.params["predict_action.0"]["bias"]
    assert not np.array_equal(state.params["predict_action.0"]["bias"], bias)


def test_the_segments_to_blame_are_found(params):
    batch = make_batch(RAGGED)
    batch.actions[2, -1, 1] = 1e25
    batch.states[5, -1, 0] = np.nan
    batch.states[6, -2] = 1e6  # far out, but the loss is finite
    how = {"model": PLAIN, "state_mean": MEAN, "state_std": STD}
    bad_B = find_bad_segments(params, batch, step=3, key=jax.random.key(0), **how)
    np.testing.assert_array_equal(np.flatnonzero(bad_B), [2, 5])


def test_replicas_agree_and_untrained_heads_rest(state, params, dropping_call):
    for seed in range(2):
        batches = [make_batch(RAGGED, seed + u) for u in range(3)]
        state, _, _ = run(dropping_call, state, batches)
    for path, leaf in jax.tree.leaves_with_path(state):
        replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(replicas) == G
        for replica in replicas[1:]:
            np.testing.assert_array_equal(
                replica, replicas[0], jax.tree_util.keystr(path)
            )
    still = {
        f"{module}/{name}"
        for module, leaves in params.items()
        for name, leaf in leaves.items()
        if (leaf == np.asarray(state.params[module][name])).all()
    }
    assert still == {
        "encoder.wte/embedding",
        "predict_return/bias",
        "predict_return/kernel",
        "predict_state/bias",
        "predict_state/kernel",
    }


def test_the_state_is_donated(state, dropping_call):
    run(dropping_call, state, [make_batch(RAGGED)])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_dropout_is_a_function_of_seed_step_and_place(state, params, dropping_call):
    batch = make_batch(RAGGED)
    _, loss, grad_norm = run(dropping_call, state, [batch])
    whole = jax.jit(partial(step_of, optimizer=RECIPE, model=DROPPING))
    first = init_state(params, RECIPE)
    _, undivided = whole(first, batch, key=jax.random.key(0))
    # The same masks over four devices and over one: sums differ in their order alone.
    np.testing.assert_allclose(loss[0], undivided.loss, rtol=1e-6)
    np.testing.assert_allclose(grad_norm[0], undivided.grad_norm, rtol=1e-6)
    for others in (
        whole(first, batch, key=jax.random.key(1)),
        whole(first._replace(step=jnp.int32(1)), batch, key=jax.random.key(0)),
        whole(first, jax.tree.map(lambda x: x[::-1], batch), key=jax.random.key(0)),
    ):
        assert abs(others[1].loss / undivided.loss - 1) > 1e-3


@pytest.mark.parametrize("num_devices", [1, 4])
def test_discrete_actions_on_any_number_of_devices(num_devices):
    """Weights of zeros: the probabilities are those of the head's bias."""
    model = DecisionTransformer(
        **SIZES | {"act_dim": 5}, **dict.fromkeys(RATES, 0.0), action_sizes=(2, 3)
    )
    zeros = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), zeros)
    zeros["predict_action.0"]["bias"] = np.log(np.float32([1, 3, 1, 1, 2]))
    batch = make_batch(RAGGED)
    actions = np.where(batch.attention_mask[..., None] > 0, [[[1, 0]]], [[[-10, -10]]])
    actions[-1, -1] = [0, 2]
    batch = batch._replace(actions=actions.astype(np.float32))
    how = {"model": model, "state_mean": MEAN, "state_std": STD}
    update = jax.pmap(
        partial(train_step, **how, optimizer=KEEP_GRADIENTS, axis_name=DEVICES),
        axis_name=DEVICES,
        in_axes=(None, 0),
        out_axes=None,
        devices=jax.devices()[:num_devices],
    )
    key = jnp.broadcast_to(jax.random.key(0), num_devices)
    state = init_state(zeros, KEEP_GRADIENTS)
    _, metrics = update(state, split(batch, num_devices), key=key)
    steps = sum(RAGGED)
    entropies = (steps - 1) * (np.log(4 / 3) + np.log(4)) + np.log(4) + np.log(2)
    np.testing.assert_allclose(metrics.loss, entropies / (2 * steps), rtol=1e-5)
    # Taken for the most likely: 1, right but once, and 2, right only once.
    np.testing.assert_allclose(metrics.accuracy, 0.5, rtol=1e-6)

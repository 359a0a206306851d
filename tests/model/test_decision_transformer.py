# SPDX-License-Identifier: Apache-2.0
"""The model says what HF's says (golden files), sees no future and no padding."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from dt_jax.model.decision_transformer import DecisionTransformer, init_params
from dt_jax.model.hf_weights import export_hf, import_hf
from dt_jax.model.layers import (
    ACTIVATIONS,
    add_by_product,
    add_to_rows,
    attention,
    kept,
    layer_norm,
    look_up,
    norm_dense,
    padded_product,
    product,
)

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/golden.npz"))
RATE = 0.3  # of dropout, where it is measured
# Without optimising, what is run once is compiled in half the time.
once = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def load(name, **changes):
    """The golden model, its parameters, the arguments and HF's answers to them."""
    fields, params = import_hf(GOLDEN / name)
    arrays = dict(np.load(GOLDEN / name / "golden.npz"))
    heads = {key: arrays.pop(key) for key in tuple(arrays) if key.endswith("_preds")}
    del arrays["rewards"]
    return DecisionTransformer(**fields | changes), params, arrays, heads


def predict(model, params, batch, dropout=None, all_heads=False):
    """Prediction of NumPy arrays; compiled once for equal models."""
    return jax.tree.map(np.asarray, _predict(model, params, batch, dropout, all_heads))


@partial(once, static_argnums=(0, 4))
def _predict(model, params, batch, dropout, all_heads):
    options = {"deterministic": dropout is None, "all_heads": all_heads}
    rngs = {} if dropout is None else {"dropout": dropout}
    return model.apply({"params": params}, **batch, **options, rngs=rngs)


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_those_of_hf(name):
    model, params, batch, heads = load(name)
    valid = batch["attention_mask"] > 0
    assert not valid.all()
    full = predict(model, params, batch, all_heads=True)
    trimmed = predict(model, params, batch)
    # Float32 sums of at most 64 terms of order one, in another order than torch's.
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    close(trimmed.action_preds[valid], heads["action_preds"][valid])
    for head, expected in heads.items():
        close(getattr(full, head)[valid], expected[valid])
    assert trimmed.state_preds is None
    assert trimmed.return_preds is None


@pytest.mark.parametrize("all_heads", [False, True])
@pytest.mark.parametrize("predict_return", [False, True])
def test_a_prediction_depends_on_all_of_its_past_and_on_nothing_else(
    all_heads, predict_return
):
    model, params, batch, _ = load("base", predict_return=predict_return)
    batch = {key: array[1:2] for key, array in batch.items()}
    valid_K = batch["attention_mask"][0] > 0
    batch["timesteps"] = np.arange(7)[None]  # so that every step has its own row

    def outputs(inputs, times):
        tree = params | {"embed_timestep": {"embedding": times}}
        found = model.apply({"params": tree}, **batch | inputs, all_heads=all_heads)
        return {head: x[0] for head, x in found._asdict().items() if x is not None}

    inputs = {key: batch[key] for key in ("states", "actions", "returns_to_go")}
    times = params["embed_timestep"]["embedding"]
    slopes = once(jax.jacrev(outputs, argnums=(0, 1)))(inputs, times)
    assert len(slopes) == (3 if all_heads else 1 + predict_return)
    # What a head is told of its own step only after it has spoken.
    later = {("action_preds", "actions")}
    if predict_return:
        later |= {("return_preds", "returns_to_go"), ("return_preds", "actions")}
    for head, (by_input, by_time_KxAxNxD) in slopes.items():
        by_step = {key: x[:, :, 0] for key, x in by_input.items()}
        by_step["timesteps"] = by_time_KxAxNxD[:, :, :7]
        for key, slope in by_step.items():
            last = -1 if (head, key) in later else 0
            expected_KxK = np.tri(7, k=last, dtype=bool) & valid_K[None]
            found_KxK = np.abs(slope).sum((1, 3)) != 0
            np.testing.assert_array_equal(
                found_KxK[valid_K], expected_KxK[valid_K], f"{head} by {key}"
            )


def test_a_clone_never_looks_at_a_return():
    model, params, batch, _ = load("base")
    other = batch | {"returns_to_go": batch["returns_to_go"] + 1}
    valid = batch["attention_mask"] > 0

    def actions(condition_on, batch):
        told = model.clone(condition_on=condition_on)
        found = told.apply({"params": params}, **batch)
        return np.asarray(found.action_preds)[valid]

    seen, found = actions("return", batch), actions("nothing", batch)
    assert (seen != actions("return", other)).any()
    np.testing.assert_array_equal(found, actions("nothing", other))
    assert (found != seen).all()
    # In a population an array of a bool says it: the same numbers.
    np.testing.assert_array_equal(
        actions(jnp.bool_(True), other), actions("return", other)
    )
    np.testing.assert_array_equal(actions(jnp.bool_(False), other), found)


def test_a_state_before_its_return_is_a_return_before_its_state():
    """Where a state is one number, too, HF's order is the other with the two
    exchanged."""
    _, _, batch, _ = load("base")
    batch["states"] = batch["states"][..., :1]
    sizes = {"hidden_size": 8, "n_layer": 2, "max_ep_len": 24, "initializer_range": 0.3}
    model = DecisionTransformer(state_dim=1, act_dim=3, **sizes)
    params = once(partial(init_params, model))(jax.random.key(0))
    asking = model.clone(predict_return=True)
    embeds = {"embed_state": "embed_return", "embed_return": "embed_state"}
    inputs = {"states": "returns_to_go", "returns_to_go": "states"}
    exchanged = (
        {to: params[embeds.get(to, to)] for to in params},
        {to: batch[inputs.get(to, to)] for to in batch},
    )
    valid = batch["attention_mask"] > 0
    # Float32 sums of at most 32 terms of order one, in another order.
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    full = predict(asking, params, batch, all_heads=True)
    expected = predict(model, *exchanged, all_heads=True)
    for head in ("action_preds", "state_preds"):
        close(getattr(full, head)[valid], getattr(expected, head)[valid])
    trimmed = predict(asking, params, batch)
    close(trimmed.action_preds[valid], full.action_preds[valid])
    close(trimmed.return_preds[valid], full.return_preds[valid])
    assert np.std(trimmed.action_preds[valid]) > 0.1
    assert trimmed.state_preds is None


@pytest.mark.parametrize("all_heads", [False, True])
def test_padding_changes_no_bit(all_heads):
    model, params, batch, _ = load("two_heads")
    params["encoder.h.0.attn.c_attn"]["kernel"] *= 10  # scores of hundreds
    valid = batch["attention_mask"] > 0
    generator = np.random.default_rng(0)
    other = {"attention_mask": batch["attention_mask"]}
    for key in ("states", "actions", "returns_to_go"):
        noise = generator.normal(0, 100, batch[key].shape).astype(np.float32)
        other[key] = np.where(valid[:, :, None], batch[key], noise)
    noise = generator.integers(model.max_ep_len, size=valid.shape)
    other["timesteps"] = np.where(valid, batch["timesteps"], noise)
    found = predict(model, params, other, all_heads=all_heads)
    expected = predict(model, params, batch, all_heads=all_heads)
    # Masked weights are exactly 0, so this is equality and not closeness.
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x[valid], y[valid])
        assert (x[~valid] != y[~valid]).any()


@pytest.mark.parametrize(("state_dim", "act_dim"), [(17, 4), (291, 29)])
def test_initial_parameters_are_drawn_as_hf_draws_them(tmp_path, state_dim, act_dim):
    golden = json.loads((GOLDEN / "initial.json").read_text())
    expected = golden[f"{state_dim}x{act_dim}"]
    model = DecisionTransformer(state_dim=state_dim, act_dim=act_dim)
    params = once(partial(init_params, model))(jax.random.key(0))
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    assert sum(sizes) == expected["parameters"]
    export_hf(tmp_path, model, params)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == expected["initial"].keys()
    for key, (mean, std) in expected["initial"].items():
        # Two samples of n normal numbers: 5 standard errors of the differences; what
        # HF sets to a constant has std 0 and must be that constant.
        error = 5 * std / np.sqrt(found[key].size)
        assert abs(found[key].std() - std) <= error, key
        assert abs(found[key].mean() - mean) <= error * np.sqrt(2), key


def test_dropout_follows_its_key():
    model, params, batch, _ = load("unscaled")
    plain = predict(model, params, batch).action_preds
    first, again, other = (
        predict(model, params, batch, jax.random.key(seed)).action_preds
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9
    assert (first != plain).mean() > 0.9


def test_rows_padded_for_a_product_change_neither_it_nor_its_gradient():
    generator = np.random.default_rng(0)
    x_NxI = generator.normal(size=(5, 1001)).astype(np.float32)
    kernel_IxO = generator.normal(size=(1001, 3)).astype(np.float32)

    def loss(multiply, *arguments):
        return jnp.square(multiply(*arguments)).sum()

    for multiply in (product, padded_product):
        np.testing.assert_allclose(
            multiply(x_NxI, kernel_IxO),
            x_NxI.astype(np.float64) @ kernel_IxO,
            # Sums of 1001 products of about 1, in float32.
            atol=1e-4,
        )
        found = jax.grad(partial(loss, multiply), (0, 1))(x_NxI, kernel_IxO)
        expected = jax.grad(partial(loss, jnp.matmul), (0, 1))(x_NxI, kernel_IxO)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-3)


def test_each_place_of_dropout_has_words_of_its_own(monkeypatch):
    rates = {"embd_pdrop": 0.1, "attn_pdrop": 0.2, "resid_pdrop": 0.3}
    model, params, batch, _ = load("two_heads", **rates)

    def draw(key):
        drawn = []

        def record(shape, rate, words_2, first_segment):
            drawn.append((rate, words_2))
            return jnp.ones(shape, bool)

        monkeypatch.setattr("dt_jax.model.decision_transformer.kept", record)
        rngs = {"dropout": key}
        model.apply({"params": params}, **batch, deterministic=False, rngs=rngs)
        return drawn

    drawn = [pair for seed in (0, 1) for pair in once(draw)(jax.random.key(seed))]
    places = 1 + 3 * model.n_layer
    assert len(drawn) == 2 * places
    assert len({tuple(np.ravel(words)) for _, words in drawn}) == 2 * places
    np.testing.assert_allclose([rate for rate, _ in drawn[:4]], [0.1, 0.2, 0.3, 0.3])


# Where a 1 enters under that dropout, and where one enters beside it.
@pytest.mark.parametrize(
    ("field", "module", "beside", "draws"),
    [
        ("embd_pdrop", "embed_ln", "encoder.h.0.mlp.c_proj", 1),
        ("attn_pdrop", "encoder.h.0.attn.c_attn", "embed_ln", 2),
        ("resid_pdrop", "encoder.h.0.attn.c_proj", "embed_ln", 1),
        ("resid_pdrop", "encoder.h.0.mlp.c_proj", "embed_ln", 1),
    ],
)
def test_dropout_drops_at_its_rate_and_scales_what_stays(field, module, beside, draws):
    dropped = stream(field, {module: np.arange(64) > 1, beside: np.arange(64) == 1})
    # Attention weighs two keys, each dropped on its own: 0 when both are.
    levels = np.arange(draws + 1) / draws / (1 - RATE)
    nearest = np.abs(dropped[..., None] - levels).argmin(-1)
    np.testing.assert_allclose(dropped, levels[nearest], atol=1e-5)
    assert len(np.unique(nearest, axis=0)) == 64  # no two samples are dropped alike
    # Four standard errors of a rate measured on 64 x 62 draws.
    assert (nearest == 0).mean() == pytest.approx(RATE**draws, abs=0.03)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_masks_are_fair_and_independent(rate):
    shape, size = (64, 60, 128), 64 * 60 * 128
    words_4x2 = jax.random.bits(jax.random.key(0), (4, 2))
    masks = np.stack([~np.asarray(kept(shape, rate, words)) for words in words_4x2])
    error = np.sqrt(rate * (1 - rate) / size)
    assert np.abs(masks.mean(axis=(1, 2, 3)) - rate).max() < 4 * error
    # No axis has a place that drops more often than chance (5 sigma of many places).
    for axis in ((1, 2), (1, 3), (2, 3)):
        places = masks.mean(axis=axis)
        spread = np.sqrt(rate * (1 - rate) * places[0].size / size)
        assert np.abs(places - rate).max() < 5 * spread
    # Between words, and between neighbours in each direction: no correlation.
    flat = masks.reshape(4, -1).astype(np.float64)
    pairs = [np.corrcoef(flat)[np.triu_indices(4, 1)]]
    for shift in (1, 2, 128, 128 * 60, 1 << 16):
        pairs.append([np.corrcoef(row[shift:], row[:-shift])[0, 1] for row in flat])
    assert np.abs(np.concatenate(pairs)).max() < 5 / np.sqrt(size)


def test_the_two_residual_dropouts_of_a_block_are_independent():
    probe, one = np.arange(64) > 1, np.arange(64) == 1
    attn, mlp = "encoder.h.0.attn.c_proj", "encoder.h.0.mlp.c_proj"
    both = stream("resid_pdrop", {attn: probe, mlp: 2 * probe, "embed_ln": one})
    levels = np.round(both * (1 - RATE)).astype(int)
    rates = np.bincount(levels.ravel(), minlength=4) / levels.size
    stay = 1 - RATE
    expected = [RATE * RATE, stay * RATE, RATE * stay, stay * stay]
    np.testing.assert_allclose(rates, expected, atol=0.03)


def stream(field, biases):
    """What reaches the last norm in channels 2 to 63, with dropout `field` alone.

    All parameters are 0 but the given biases; the head copies the channels. The norm is
    undone by channel 0, where a 0 went in, and channel 1, where a 1 did.
    """
    rates = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0} | {field: RATE}
    sizes = {"state_dim": 1, "act_dim": 64, "hidden_size": 64, "n_head": 64}
    model = DecisionTransformer(n_layer=1, action_tanh=False, **sizes, **rates)
    params = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    for module, bias in biases.items():
        params[module]["bias"][-64:] = bias  # of c_attn, that of the values
        if module.endswith("c_attn"):
            params["encoder.h.0.attn.c_proj"]["kernel"][:] = np.eye(64)
    params["encoder.ln_f"]["scale"][:] = 1
    params["predict_action.0"]["kernel"][:] = np.eye(64)
    batch = {key: np.zeros((64, 1, 1)) for key in ("states", "returns_to_go")}
    batch |= {"actions": np.zeros((64, 1, 64)), "timesteps": np.zeros((64, 1), int)}
    batch["attention_mask"] = np.ones((64, 1))
    found = predict(model, params, batch, jax.random.key(1)).action_preds
    zero, one, channels = np.split(found[:, 0], [1, 2], axis=-1)
    return (channels - zero) / (one - zero)


def test_bfloat16_is_close_and_float32_outside():
    model, params, batch, heads = load("four_heads", dtype="bfloat16")
    valid = batch["attention_mask"] > 0
    found = predict(model, params, batch, all_heads=True)
    for head, expected in heads.items():
        assert getattr(found, head).dtype == np.float32
        # bfloat16 keeps 8 bits: 0.4 % a rounding, of outputs of order one.
        np.testing.assert_allclose(
            getattr(found, head)[valid], expected[valid], rtol=5e-2, atol=5e-2
        )
    drawn = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {np.dtype("float32")}


@pytest.mark.parity
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_slopes_are_those_of_torch(name):
    torch = pytest.importorskip("torch")
    functions = pytest.importorskip("transformers.activations").ACT2FN
    x = np.linspace(-12, 12, 200, dtype=np.float32)  # without 0, where slopes may jump
    x_torch = torch.tensor(x, requires_grad=True)
    y_torch = functions[name](x_torch)
    y_torch.sum().backward()
    y, slope = jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))(jnp.asarray(x))
    # Both sides round in float32, and tanh and erf are approximations.
    np.testing.assert_allclose(y, y_torch.detach(), rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(slope, x_torch.grad, rtol=1e-6, atol=1e-5)


def test_layer_norm_on_paper():
    # Mean 2, variance 1: the row is (-1, 1). Its gradient is 0 whatever comes back, as
    # two numbers normalised are always (-1, 1).
    x, scale, bias = jnp.array([[1.0, 3.0]]), jnp.array([2.0, 4.0]), jnp.array([5.0, 6])
    y, back = jax.vjp(partial(layer_norm, epsilon=0.0), x, scale, bias)
    dx, dscale, dbias = back(jnp.array([[10.0, 1.0]]))
    np.testing.assert_allclose(y, [[3.0, 10.0]], rtol=1e-6)
    np.testing.assert_allclose(dx, [[0.0, 0.0]], atol=1e-5)
    np.testing.assert_allclose(dscale, [-10.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(dbias, [10.0, 1.0], rtol=1e-6)


def value_and_slopes(function, arguments, slope):
    """The value, then the gradient of each argument where `slope` comes back."""

    @once
    def both(arguments, slope):
        value, back = jax.vjp(function, *arguments)
        return value, *back(slope)

    return both(arguments, slope)


def test_the_gradient_of_layer_norm_is_the_one_jax_derives():
    def plainly(x, scale, bias):
        x = x - x.mean(1, keepdims=True)
        std = jnp.sqrt(jnp.square(x).mean(1, keepdims=True) + 1e-5)
        return x / std * scale[None] + bias[None]

    keys = jax.random.split(jax.random.key(0), 4)
    arguments = [
        jax.random.normal(key, shape)
        for key, shape in zip(keys, ((7, 16), (16,), (16,)), strict=False)
    ]
    dy = jax.random.normal(keys[3], (7, 16))
    found = value_and_slopes(partial(layer_norm, epsilon=1e-5), arguments, dy)
    expected = value_and_slopes(plainly, arguments, dy)
    for mine, theirs in zip(found, expected, strict=True):
        # Float32 sums of up to 16 terms of order one, in another order.
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-5)


def test_the_gradient_of_a_norm_and_a_product_is_the_one_jax_derives():
    def plainly(x, scale, shift, kernel, bias):
        return layer_norm(x, scale, shift, 1e-5) @ kernel + bias[None]

    shapes = (7, 16), (16,), (16,), (16, 5), (5,), (7, 5)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    *arguments, dy = map(jax.random.normal, keys, shapes)
    fused = partial(norm_dense, epsilon=1e-5, dtype="float32")
    found = value_and_slopes(fused, arguments, dy)
    expected = value_and_slopes(plainly, arguments, dy)
    for mine, theirs in zip(found, expected, strict=True):
        # Float32 sums of up to 16 terms of order one, in another order.
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("keep", "rate", "out", "dv", "dscores"),
    [
        # Out is the mean of 2 and 6; a weight's gradient is its value, less that mean.
        (None, 0.0, 4.0, [0.5, 0.5], [0.5 * (2 - 4), 0.5 * (6 - 4)]),
        # The second is dropped, the first counts twice.
        ([True, False], 0.5, 2.0, [1.0, 0.0], [0.5 * (2 * 2 - 2), 0.5 * (0 - 2)]),
    ],
)
def test_attention_on_paper(keep, rate, out, dv, dscores):
    q, k, v = (
        jnp.array(x, jnp.float32)[None, None, :, None] for x in ([1], [1, 1], [2, 6])
    )
    mask, keep = (
        jnp.ones((1, 1, 1, 2), bool),
        keep and jnp.array(keep)[None, None, None],
    )
    found, back = jax.vjp(
        lambda q, k, v: attention(q, k, v, mask, keep, rate, 3.0), q, k, v
    )
    dq, dk, *rest = (np.ravel(x) for x in back(jnp.ones_like(found)))
    np.testing.assert_allclose(np.ravel(found), [out], rtol=1e-6)
    np.testing.assert_allclose(rest, [dv], rtol=1e-6)
    np.testing.assert_allclose(dk, 3.0 * np.array(dscores), rtol=1e-6)
    np.testing.assert_allclose(dq, 3.0 * sum(dscores), atol=1e-6)


def test_the_gradient_of_attention_is_the_one_jax_derives():
    def plainly(q, k, v):
        scores = jnp.einsum("bhrc,bhtc->bhrt", 0.5 * q, k)
        weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min))
        return jnp.einsum("bhrt,bhtc->bhrc", jnp.where(keep, weights / 0.7, 0.0), v)

    keys = jax.random.split(jax.random.key(0), 5)
    arguments = [
        jax.random.normal(key, (2, 3, rows, 4))
        for key, rows in zip(keys, (5, 7, 7), strict=False)
    ]
    dout = jax.random.normal(keys[3], (2, 3, 5, 4))
    keep = kept((2, 3, 5, 7), 0.3, jax.random.bits(keys[4], 2))
    mask = jnp.tri(5, 7, 2, bool)[None, None].at[..., 1, :].set(False)  # sees nothing
    found = value_and_slopes(
        lambda *x: attention(*x, mask, keep, 0.3, 0.5), arguments, dout
    )
    expected = value_and_slopes(plainly, arguments, dout)
    for mine, theirs in zip(found, expected, strict=True):
        # Float32 sums of up to 7 terms of order one, in another order.
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"hidden_size": 10, "n_head": 4},
            "hidden_size=10 is not a multiple of n_head=4",
        ),
        (
            {"activation_function": "prelu"},
            "activation_function='prelu': expected one of gelu, ",
        ),
        (
            {"dtype": "int8"},
            "dtype='int8': expected one of float32, bfloat16, float16",
        ),
        ({"condition_on": "none"}, "condition_on='none': expected return or nothing"),
        (
            {"condition_on": "nothing", "predict_return": True},
            "predict_return=True: found condition_on='nothing', which",
        ),
    ],
)
def test_fields_that_make_no_model_are_named(fields, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared as a whole below)
        DecisionTransformer(**fields)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


ROWS_2x3 = np.array([[0, 0, 3], [-1, 9, 3]])  # of a table of 9: the last row, none


@pytest.mark.parametrize("add", [add_to_rows, add_by_product])
def test_the_gradient_of_a_table_is_the_sum_by_rows(add):
    # Values of 12 orders of magnitude: what is lost of a float32 would be seen.
    x_6x4 = (
        np.random.default_rng(0).normal(size=(6, 4)) * np.logspace(-6, 6, 6)[:, None]
    )
    x_6x4 = x_6x4.astype(np.float32)
    expected = np.zeros((9, 4))
    for row, x_4 in zip(ROWS_2x3.ravel(), x_6x4, strict=True):
        if row < 9:
            expected[row] += x_4
    found = jax.jit(partial(add, 9))(ROWS_2x3.ravel(), x_6x4)
    # At most two numbers are added: one rounding.
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_table_is_read_and_its_gradient_made_without_atomics(platform):
    def slope(table):
        return jax.grad(lambda table: jnp.nansum(look_up(table, ROWS_2x3)))(table)

    tables = jnp.stack([jnp.ones((9, 4)), jnp.full((9, 4), 2.0)])
    found = look_up(tables[1], ROWS_2x3)
    np.testing.assert_array_equal(np.isnan(found).all(-1), ROWS_2x3 == 9)
    counts = [2, 0, 0, 2, 0, 0, 0, 0, 1]
    slopes = jax.jit(jax.vmap(slope))  # of many members at once, as of one
    np.testing.assert_array_equal(slopes(tables)[1, :, 0], counts)
    text = slopes.trace(tables).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.scatter" in text) == (platform == "cpu")
    assert ("stablehlo.dot_general" in text) == (platform != "cpu")

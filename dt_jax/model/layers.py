# SPDX-License-Identifier: Apache-2.0
"""The layers of the Decision Transformer: dense, layer norm, attention, dropout.

Arrays in, arrays out. Two gradients are written out by hand because XLA then passes
over the tokens less often.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# The names are HF's (transformers.activations.ACT2FN); those with parameters of their
# own (prelu, xielu) have no place in the weights we exchange; JAX lacks two more.
ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_10": lambda x: jnp.clip(jax.nn.gelu(x, approximate=False), -10.0, 10.0),
    "gelu_accurate": jax.nn.gelu,
    "gelu_fast": jax.nn.gelu,
    "gelu_new": jax.nn.gelu,
    "gelu_python": partial(jax.nn.gelu, approximate=False),
    "gelu_python_tanh": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "hardswish": jax.nn.hard_swish,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}

WIDE = 1000  # columns from which on rows are padded for a product


class Dense(nn.Module):
    """x @ kernel + bias over the last axis, as one matrix product on a 2-D view.

    With `norm`, a layer norm's scale, bias and epsilon, of x as that norm gives it.
    """

    features: int
    init_std: float
    dtype: str

    @nn.compact
    def __call__(self, x, norm=None):
        init = nn.initializers.normal(self.init_std, jnp.float32)
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x_NxI = x.reshape(-1, x.shape[-1])
        if norm is None:
            x_NxI, kernel, bias = (a.astype(self.dtype) for a in (x_NxI, kernel, bias))
            y_NxO = product(x_NxI, kernel) + bias[None]
        else:
            scale, shift, epsilon = norm
            y_NxO = norm_dense(x_NxI, scale, shift, kernel, bias, epsilon, self.dtype)
        return y_NxO.reshape(*x.shape[:-1], self.features)


def product(x_NxI: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
    """x @ kernel."""
    if x_NxI.shape[1] < WIDE:
        return x_NxI @ kernel_IxO
    how = {"cpu": jnp.matmul, "default": padded_product}
    return jax.lax.platform_dependent(x_NxI, kernel_IxO, **how)


def padded_product(x_NxI: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
    """x @ kernel, of rows padded to a multiple of 128 columns.

    XLA on a GPU pads wide rows for the product and, left to itself, makes them anew for
    its gradient: it would gather the states twice.
    """
    columns = -x_NxI.shape[1] % 128
    x_NxI = jnp.pad(x_NxI, ((0, 0), (0, columns)))
    return x_NxI @ jnp.pad(kernel_IxO, ((0, columns), (0, 0)))


class Table(nn.Module):
    """Rows of a table of embeddings."""

    rows: int
    features: int
    init_std: float

    def setup(self):
        init = nn.initializers.normal(self.init_std, jnp.float32)
        self.embedding = self.param("embedding", init, (self.rows, self.features))

    def __call__(self, rows):
        return look_up(self.embedding, rows)


@jax.custom_vjp
def look_up(table_RxD, rows_BxK):
    """BxKxD; NaN where a row is beyond the table.

    Its gradient is a sum in one order on every kind of device: a GPU adds to rows that
    repeat in any order, so off the CPU it is a matrix product, which takes a CPU long.
    """
    return jnp.take(table_RxD, rows_BxK, axis=0)


def _look_up_forward(table_RxD, rows_BxK):
    # The table is saved for its shape alone.
    return look_up(table_RxD, rows_BxK), (table_RxD, rows_BxK)


def _look_up_backward(saved, dy_BxKxD):
    table_RxD, rows_BxK = saved
    dtable_RxD = jax.lax.platform_dependent(
        rows_BxK.reshape(-1),
        dy_BxKxD.reshape(-1, dy_BxKxD.shape[-1]),
        cpu=partial(add_to_rows, len(table_RxD)),
        default=partial(add_by_product, len(table_RxD)),
    )
    return dtable_RxD, None


look_up.defvjp(_look_up_forward, _look_up_backward)


def add_to_rows(num_rows: int, rows_N: jax.Array, x_NxD: jax.Array) -> jax.Array:
    """RxD: each x added to its row of zeros; a row beyond them is left out."""
    return jnp.zeros((num_rows, x_NxD.shape[1]), x_NxD.dtype).at[rows_N].add(x_NxD)


def add_by_product(num_rows: int, rows_N: jax.Array, x_NxD: jax.Array) -> jax.Array:
    """The same as a product with zeros and ones."""
    rows_N = jnp.where(rows_N < 0, rows_N + num_rows, rows_N)
    one_hot_RxN = (jnp.arange(num_rows)[:, None] == rows_N[None]).astype(jnp.float32)
    # x in three parts of 8 bits, which is all of it: float32 by the units for bfloat16.
    exact = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X6
    return jnp.matmul(one_hot_RxN, x_NxD, precision=exact)


class ScaleBias(nn.Module):
    """The parameters of a layer norm."""

    @nn.compact
    def __call__(self, size):
        scale = self.param("scale", nn.initializers.ones, (size,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (size,), jnp.float32)
        return scale, bias


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def norm_dense(x_NxD, scale_D, shift_D, kernel_DxO, bias_O, epsilon, dtype):
    """layer_norm(x, scale, shift) @ kernel + bias; what is multiplied is in `dtype`.

    Its gradient is written out below: those of scale and shift need no sums over the
    tokens of their own, but follow from what the kernel's gradient is made of.
    """
    y_NxD = layer_norm(x_NxD, scale_D, shift_D, epsilon).astype(dtype)
    return y_NxD @ kernel_DxO.astype(dtype) + bias_O.astype(dtype)[None]


def _norm_dense_forward(x_NxD, scale_D, shift_D, kernel_DxO, bias_O, epsilon, dtype):
    y_NxD, normalized = _layer_norm_forward(x_NxD, scale_D, shift_D, epsilon)
    y_NxO = y_NxD.astype(dtype) @ kernel_DxO.astype(dtype) + bias_O.astype(dtype)[None]
    return y_NxO, (normalized, shift_D, kernel_DxO)


def _norm_dense_backward(epsilon, dtype, saved, dy_NxO):
    (x_0xD, unit_NxD, inverse_std_Nx1, scale_D), shift_D, kernel_DxO = saved
    # Made once: XLA on a GPU would put q, k and v together for each of the products.
    dy_NxO = jax.lax.optimization_barrier(dy_NxO)
    dbias_O = dy_NxO.astype(jnp.float32).sum(0)
    products_DxO = (unit_NxD.astype(dtype).T @ dy_NxO).astype(jnp.float32)
    dkernel_DxO = scale_D[:, None] * products_DxO + shift_D[:, None] * dbias_O[None]
    dscale_D = (kernel_DxO * products_DxO).sum(1)
    dshift_D = (kernel_DxO * dbias_O[None]).sum(1)
    slope_NxD = (dy_NxO @ kernel_DxO.T.astype(dtype)) * scale_D[None]
    dx_NxD = _normalize_backward(slope_NxD, unit_NxD, inverse_std_Nx1)
    return dx_NxD.astype(x_0xD.dtype), dscale_D, dshift_D, dkernel_DxO, dbias_O


norm_dense.defvjp(_norm_dense_forward, _norm_dense_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x_NxD, scale_D, bias_D, epsilon):
    """(x - mean) / std * scale + bias of each row, float32.

    Its gradient is written out below: for the one JAX derives, XLA passes over the
    tokens more often, and an update takes a twentieth longer on a CPU.
    """
    return _normalize_rows(x_NxD, epsilon)[0] * scale_D[None] + bias_D[None]


def _layer_norm_forward(x_NxD, scale_D, bias_D, epsilon):
    unit_NxD, inverse_std_Nx1 = _normalize_rows(x_NxD, epsilon)
    # Kept for the gradient, and made once: XLA on a GPU would make it anew there.
    unit_NxD = jax.lax.optimization_barrier(unit_NxD)
    y_NxD = unit_NxD * scale_D[None] + bias_D[None]
    return y_NxD, (x_NxD[:0], unit_NxD, inverse_std_Nx1, scale_D)  # x for its dtype


def _layer_norm_backward(epsilon, saved, dy_NxD):
    x_0xD, unit_NxD, inverse_std_Nx1, scale_D = saved
    dx_NxD = _normalize_backward(dy_NxD * scale_D[None], unit_NxD, inverse_std_Nx1)
    return dx_NxD.astype(x_0xD.dtype), (dy_NxD * unit_NxD).sum(0), dy_NxD.sum(0)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _normalize_rows(x_NxD, epsilon):
    x_NxD = x_NxD.astype(jnp.float32)
    x_NxD = x_NxD - x_NxD.mean(1, keepdims=True)
    inverse_std_Nx1 = jax.lax.rsqrt(jnp.square(x_NxD).mean(1, keepdims=True) + epsilon)
    return x_NxD * inverse_std_Nx1, inverse_std_Nx1


def _normalize_backward(slope_NxD, unit_NxD, inverse_std_Nx1):
    return inverse_std_Nx1 * (
        slope_NxD
        - slope_NxD.mean(1, keepdims=True)
        - unit_NxD * (slope_NxD * unit_NxD).mean(1, keepdims=True)
    )


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attention(q_BxHxRxC, k_BxHxTxC, v_BxHxTxC, mask_Bx1xRxT, keep_BxHxRxT, rate, scale):
    """softmax(scale q k^T) v where `mask` is True, its weights dropped out by `keep`.

    The softmax is in float32, what comes out BxHxRxC in the dtype of v. The gradient is
    written out below with FlashAttention's sum (Dao et al., 2022, arXiv:2205.14135,
    B.2) and no product that XLA would have to transpose: 3 % of an update on a CPU.
    """
    how = mask_Bx1xRxT, keep_BxHxRxT, rate, scale
    return _attention_forward(q_BxHxRxC, k_BxHxTxC, v_BxHxTxC, *how)[0]


def _attention_forward(q_BxHxRxC, k_BxHxTxC, v_BxHxTxC, mask, keep, rate, scale):
    scores_BxHxRxT = scale * (q_BxHxRxC @ k_BxHxTxC.swapaxes(2, 3))
    scores_BxHxRxT = scores_BxHxRxT.astype(jnp.float32)
    least = jnp.finfo(jnp.float32).min
    weights_BxHxRxT = jax.nn.softmax(jnp.where(mask, scores_BxHxRxT, least))
    dropped_BxHxRxT = dropout(weights_BxHxRxT.astype(v_BxHxTxC.dtype), rate, keep)
    out_BxHxRxC = dropped_BxHxRxT @ v_BxHxTxC
    saved = q_BxHxRxC, k_BxHxTxC, v_BxHxTxC, mask, keep, weights_BxHxRxT, out_BxHxRxC
    return out_BxHxRxC, saved


def _attention_backward(rate, scale, saved, dout_BxHxRxC):
    q_BxHxRxC, k_BxHxTxC, v_BxHxTxC, mask, keep, weights_BxHxRxT, out_BxHxRxC = saved
    dtype = v_BxHxTxC.dtype
    dropped_BxHxRxT = dropout(weights_BxHxRxT.astype(dtype), rate, keep)
    dv_BxHxTxC = dropped_BxHxRxT.swapaxes(2, 3) @ dout_BxHxRxC
    dweights_BxHxRxT = dropout(dout_BxHxRxC @ v_BxHxTxC.swapaxes(2, 3), rate, keep)
    # Of a row's weights times their gradients the sum is that of out times its own.
    products_BxHxRxC = out_BxHxRxC.astype(jnp.float32) * dout_BxHxRxC
    sum_BxHxRx1 = products_BxHxRxC.sum(3, keepdims=True)
    dscores_BxHxRxT = scale * weights_BxHxRxT * (dweights_BxHxRxT - sum_BxHxRx1)
    dscores_BxHxRxT = jnp.where(mask, dscores_BxHxRxT, 0.0).astype(dtype)
    dq_BxHxRxC = dscores_BxHxRxT @ k_BxHxTxC
    dk_BxHxTxC = dscores_BxHxRxT.swapaxes(2, 3) @ q_BxHxRxC
    return dq_BxHxRxC, dk_BxHxTxC, dv_BxHxTxC, None, None


attention.defvjp(_attention_forward, _attention_backward)


def dropout(x: jax.Array, rate: float, keep: jax.Array | None) -> jax.Array:
    """x / (1 - rate) where `keep`, 0 elsewhere; x itself if `keep` is None.

    `keep` may also say itself what x is divided by, see `kept`.
    """
    if keep is None:
        return x
    if keep.dtype != bool:
        return x / keep.astype(x.dtype)
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


def drops(rate: float | jax.Array) -> bool:
    """Whether anything may be dropped out; what an array says is not known here."""
    return isinstance(rate, jax.Array) or rate > 0


def constant(rate: float | jax.Array) -> float:
    """The rate for `attention`, whose gradient takes only constants; else `keep` has
    it."""
    return 0.0 if isinstance(rate, jax.Array) else rate


def dropout_units(rate: float) -> np.uint32:
    """A rate in units of 2^-32, as the bits that are compared with it."""
    return np.uint32(round(rate * 2**32))


def kept(
    shape: tuple, rate: float | jax.Array, words_2: jax.Array, first_segment=0
) -> jax.Array:
    """Bools, each False with probability `rate`, exact to 2^-32.

    A rate that is no constant is an array, `dropout_units` of one: what comes out is
    then float32, what is kept is to be divided by, and infinity where x is dropped.

    The bits are a hash of the element's place in the whole batch, of which these begin
    at `first_segment`, under two random words (uint32). It fuses into what uses it;
    threefry bits of every element cost a sixth of an update on a CPU.
    """
    first, second = words_2
    size = math.prod(shape)
    first += jnp.asarray(first_segment, jnp.uint32) * jnp.uint32(size // shape[0])
    place = jax.lax.iota(jnp.uint32, size).reshape(shape)
    bits = _mix(_mix(place + first) ^ second)
    if not isinstance(rate, jax.Array):
        return bits >= dropout_units(rate)
    return jnp.where(bits >= rate, 1 - rate.astype(jnp.float32) * 2.0**-32, jnp.inf)


def _mix(bits):
    """C. Wellons' lowbias32: a bijection in which every bit depends on every other."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)

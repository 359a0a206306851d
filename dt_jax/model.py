# SPDX-License-Identifier: Apache-2.0
"""The Decision Transformer, equal to Hugging Face's `DecisionTransformerModel`.

The only file that imports Flax. In go normalised states, actions, returns-to-go,
timesteps and the mask of a `Batch`; out come the predicted actions. Elsewhere the model
is `apply` and a nested dict of parameters whose names are those of `hf_weights.py`.
"""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

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


class Prediction(NamedTuple):
    """What the heads say: BxKxA, and with `all_heads` also BxKxS and BxKx1."""

    action_preds: jax.Array
    state_preds: jax.Array | None
    return_preds: jax.Array | None


class DecisionTransformer(nn.Module):
    """Decision Transformer (Chen et al., 2021, arXiv:2106.01345) as HF writes it.

    The fields are those of `transformers.DecisionTransformerConfig`, with its defaults
    (a `config.json` may leave keys out); `dtype` is what the layers compute in, the
    parameters stay float32.
    """

    state_dim: int = 17
    act_dim: int = 4
    hidden_size: int = 128
    max_ep_len: int = 4096
    action_tanh: bool = True
    vocab_size: int = 1
    n_positions: int = 1024
    n_layer: int = 3
    n_head: int = 1
    n_inner: int | None = None
    activation_function: str = "relu"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        for key in ("hidden_size", "n_layer", "n_head", "max_ep_len", "n_inner"):
            size = getattr(self, key)
            if size is not None and size < 1:
                raise ValueError(f"model.{key}={size}: expected at least 1")
        for key in ("layer_norm_epsilon", "initializer_range"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(
                    f"model.{key}={getattr(self, key)}: expected 0 or more, finite"
                )
        for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(
                    f"model.{key}={getattr(self, key)}: expected 0 to 1, 1 excluded"
                )
        if self.hidden_size % self.n_head:
            raise ValueError(
                f"model.hidden_size={self.hidden_size} is not a multiple of "
                f"model.n_head={self.n_head}"
            )
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(
                f"model.activation_function={self.activation_function!r} is unknown; "
                f"expected one of {', '.join(ACTIVATIONS)}"
            )
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(
                f"model.dtype={self.dtype!r} is unknown; "
                "expected float32, bfloat16 or float16"
            )

    @nn.compact
    def __call__(
        self,
        states: jax.Array,
        actions: jax.Array,
        returns_to_go: jax.Array,
        timesteps: jax.Array,
        attention_mask: jax.Array,
        *,
        deterministic: bool = True,
        first_segment: int | jax.Array = 0,
        all_heads: bool = False,
    ) -> Prediction:
        """Predict the action at every state of a segment.

        Args:
          states: BxKxS float, normalised.
          actions: BxKxA float; the action of a step is seen only by later steps.
          returns_to_go: BxKx1 float, scaled.
          timesteps: BxK int, below `max_ep_len` (beyond it the embedding is NaN).
          attention_mask: BxK, 1 at valid steps; what stands elsewhere (finite) is
            ignored.
          deterministic: False drops out, by the rng stream 'dropout'.
          first_segment: where the segments stand in the whole batch, so that dropout is
            the same however the batch is divided among devices.
          all_heads: also predict states and returns, which the loss never asks for.
        """

        def keep(rate, shape):
            if deterministic or not rate:
                return None  # everything
            return kept(shape, rate, self.make_rng("dropout"), first_segment)

        def drop(rate, x):
            return dropout(x, rate, keep(rate, x.shape))

        # HF's tokens are R_1, s_1, a_1, R_2, ...; here they stand by kind, R_1 to R_K,
        # s_1 to s_K, a_1 to a_K: what is read of them lies together. Which tokens one
        # may look at is the mask's to say, so the numbers are HF's.
        kinds_Bx3xKxD = jnp.stack(
            (
                self._dense("embed_return", self.hidden_size)(returns_to_go),
                self._dense("embed_state", self.hidden_size)(states),
                self._dense("embed_action", self.hidden_size)(actions),
            ),
            axis=1,
        )
        times_BxKxD = self._table("embed_timestep", self.max_ep_len)(timesteps)
        kinds_Bx3xKxD = kinds_Bx3xKxD + times_BxKxD[:, None]
        batch_size, context_length = timesteps.shape
        x_BxTxD = kinds_Bx3xKxD.reshape(batch_size, 3 * context_length, -1)
        state_tokens = slice(context_length, 2 * context_length)
        action_tokens = slice(2 * context_length, None)
        # Here HF keeps torch's default epsilon, whatever layer_norm_epsilon says.
        x_BxTxD = self._layer_norm("embed_ln", epsilon=1e-5)(x_BxTxD)

        # HF passes position_ids of zeros: every token gets row 0. The word embeddings
        # are not used at all, but exist in every HF file.
        wpe_PxD = self._table("encoder.wpe", self.n_positions).embedding
        self._table("encoder.wte", self.vocab_size).embedding  # noqa: B018
        x_BxTxD = x_BxTxD + wpe_PxD[None, :1].astype(self.dtype)
        x_BxTxD = drop(self.embd_pdrop, x_BxTxD)

        place_T = jnp.arange(3 * context_length).reshape(-1, 3).T.reshape(-1)  # HF's
        causal_TxT = place_T[:, None] >= place_T[None]
        valid_BxT = jnp.tile(attention_mask > 0, (1, 3))
        mask_BxTxT = causal_TxT[None] & valid_BxT[:, None]
        for layer in range(self.n_layer - 1):
            x_BxTxD = self._block(layer, x_BxTxD, mask_BxTxT, slice(None), keep, drop)
        # What leaves the last block is read by the heads alone: without the other two,
        # its queries and MLP are needed at the state tokens only. Exact.
        read = slice(None) if all_heads else state_tokens
        x_BxRxD = self._block(self.n_layer - 1, x_BxTxD, mask_BxTxT, read, keep, drop)
        x_BxRxD = self._layer_norm("encoder.ln_f", self.layer_norm_epsilon)(x_BxRxD)

        x_BxKxD = x_BxRxD[:, state_tokens] if all_heads else x_BxRxD
        action_preds = self._dense("predict_action.0", self.act_dim)(x_BxKxD)
        action_preds = action_preds.astype(jnp.float32)
        if self.action_tanh:
            action_preds = jnp.tanh(action_preds)
        if not all_heads:
            return Prediction(action_preds, None, None)
        x_BxKxD = x_BxRxD[:, action_tokens]
        return Prediction(
            action_preds,
            self._dense("predict_state", self.state_dim)(x_BxKxD).astype(jnp.float32),
            self._dense("predict_return", 1)(x_BxKxD).astype(jnp.float32),
        )

    def _block(self, layer, x_BxTxD, mask_BxTxT, read, keep, drop):
        """One pre-norm GPT-2 block; returns the tokens `read`, BxRxD."""
        name = f"encoder.h.{layer}"
        residual_std = self.initializer_range / math.sqrt(2 * self.n_layer)

        h_BxTxD = self._layer_norm(f"{name}.ln_1", self.layer_norm_epsilon)(x_BxTxD)
        q_k_v_BxTx3D = self._dense(f"{name}.attn.c_attn", 3 * self.hidden_size)(h_BxTxD)
        q_BxHxTxC, k_BxHxTxC, v_BxHxTxC = (
            part.reshape(*part.shape[:2], self.n_head, -1).swapaxes(1, 2)
            for part in jnp.split(q_k_v_BxTx3D, 3, axis=-1)
        )
        scale = 1.0
        if self.scale_attn_weights:
            scale /= math.sqrt(self.hidden_size // self.n_head)
        if self.scale_attn_by_inverse_layer_idx:
            scale /= layer + 1
        q_BxHxRxC, mask_BxRxT = q_BxHxTxC[:, :, read], mask_BxTxT[:, read]
        h_BxHxRxC = attention(
            q_BxHxRxC,
            k_BxHxTxC,
            v_BxHxTxC,
            mask_BxRxT[:, None],
            keep(self.attn_pdrop, (*q_BxHxRxC.shape[:3], mask_BxRxT.shape[-1])),
            self.attn_pdrop,
            scale,
        )
        h_BxRxD = h_BxHxRxC.swapaxes(1, 2).reshape(*mask_BxRxT.shape[:2], -1)
        h_BxRxD = self._dense(f"{name}.attn.c_proj", self.hidden_size, residual_std)(
            h_BxRxD
        )
        x_BxRxD = x_BxTxD[:, read] + drop(self.resid_pdrop, h_BxRxD)

        h_BxRxD = self._layer_norm(f"{name}.ln_2", self.layer_norm_epsilon)(x_BxRxD)
        h_BxRxI = self._dense(f"{name}.mlp.c_fc", self.n_inner or 4 * self.hidden_size)(
            h_BxRxD
        )
        h_BxRxI = ACTIVATIONS[self.activation_function](h_BxRxI)
        h_BxRxD = self._dense(f"{name}.mlp.c_proj", self.hidden_size, residual_std)(
            h_BxRxI
        )
        return x_BxRxD + drop(self.resid_pdrop, h_BxRxD)

    def _dense(self, name, features, init_std=None):
        std = self.initializer_range if init_std is None else init_std
        return Dense(features, std, self.dtype, name=name)

    def _layer_norm(self, name, epsilon):
        return LayerNorm(epsilon, self.dtype, name=name)

    def _table(self, name, rows):
        init = nn.initializers.normal(self.initializer_range)
        return nn.Embed(
            rows, self.hidden_size, self.dtype, embedding_init=init, name=name
        )


class Dense(nn.Module):
    """x @ kernel + bias over the last axis, as one matrix product on a 2-D view."""

    features: int
    init_std: float
    dtype: str

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.normal(self.init_std)
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (leaf.astype(self.dtype) for leaf in (x, kernel, bias))
        y_NxO = x.reshape(-1, x.shape[-1]) @ kernel + bias[None]
        return y_NxO.reshape(*x.shape[:-1], self.features)


class LayerNorm(nn.Module):
    """Over the last axis, computed in float32, with torch's two-pass variance."""

    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x_NxD = x.reshape(-1, x.shape[-1])
        y_NxD = layer_norm(x_NxD, scale, bias, self.epsilon)
        return y_NxD.astype(self.dtype).reshape(x.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x_NxD, scale_D, bias_D, epsilon):
    """(x - mean) / std * scale + bias of each row, float32.

    Its gradient is written out below: for the one JAX derives, XLA passes over the
    tokens more often, and an update takes a twentieth longer on a CPU.
    """
    return _normalize_rows(x_NxD, epsilon)[0] * scale_D[None] + bias_D[None]


def _layer_norm_forward(x_NxD, scale_D, bias_D, epsilon):
    return layer_norm(x_NxD, scale_D, bias_D, epsilon), (x_NxD, scale_D)


def _layer_norm_backward(epsilon, saved, dy_NxD):
    x_NxD, scale_D = saved
    unit_NxD, inverse_std_Nx1 = _normalize_rows(x_NxD, epsilon)
    slope_NxD = dy_NxD * scale_D[None]
    dx_NxD = inverse_std_Nx1 * (
        slope_NxD
        - slope_NxD.mean(1, keepdims=True)
        - unit_NxD * (slope_NxD * unit_NxD).mean(1, keepdims=True)
    )
    return dx_NxD.astype(x_NxD.dtype), (dy_NxD * unit_NxD).sum(0), dy_NxD.sum(0)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _normalize_rows(x_NxD, epsilon):
    x_NxD = x_NxD.astype(jnp.float32)
    x_NxD = x_NxD - x_NxD.mean(1, keepdims=True)
    inverse_std_Nx1 = jax.lax.rsqrt(jnp.square(x_NxD).mean(1, keepdims=True) + epsilon)
    return x_NxD * inverse_std_Nx1, inverse_std_Nx1


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
    """x / (1 - rate) where `keep`, 0 elsewhere; x itself if `keep` is None."""
    if keep is None:
        return x
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


def kept(shape: tuple, rate: float, key: jax.Array, first_segment=0) -> jax.Array:
    """Bools, each False with probability `rate`, exact to 2^-32.

    The bits are a hash of the element's place in the whole batch, of which these begin
    at `first_segment`, under two words of the key. It fuses into what uses it; threefry
    bits of every element cost a sixth of an update on a CPU.
    """
    first, second = jax.random.bits(key, (2,))
    size = math.prod(shape)
    first += jnp.asarray(first_segment, jnp.uint32) * jnp.uint32(size // shape[0])
    place = jax.lax.iota(jnp.uint32, size).reshape(shape)
    bits = _mix(_mix(place + first) ^ second)
    return bits >= jnp.uint32(round(rate * 2**32))


def _mix(bits):
    """C. Wellons' lowbias32: a bijection in which every bit depends on every other."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def model_fields(model: DecisionTransformer) -> dict:
    """The fields that make an equal model, as JSON can hold them."""
    names = [field.name for field in dataclasses.fields(model)]
    return {n: getattr(model, n) for n in names if n not in ("parent", "name")}


def init_params(model: DecisionTransformer, key: jax.Array) -> dict:
    """Draw a full parameter tree, the heads the loss never reads included."""
    return model.init(
        key,
        states=jnp.zeros((1, 1, model.state_dim)),
        actions=jnp.zeros((1, 1, model.act_dim)),
        returns_to_go=jnp.zeros((1, 1, 1)),
        timesteps=jnp.zeros((1, 1), jnp.int32),
        attention_mask=jnp.ones((1, 1)),
        all_heads=True,
    )["params"]

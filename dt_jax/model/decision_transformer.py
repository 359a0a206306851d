# SPDX-License-Identifier: Apache-2.0
"""The Decision Transformer, equal to Hugging Face's `DecisionTransformerModel`.

In go normalised states, actions, returns-to-go,
timesteps and the mask of a `Batch`; out come the predicted actions. Elsewhere the model
is `apply` and a nested dict of parameters whose names are those of `hf_weights.py`.
"""

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dt_jax.model.layers import (
    ACTIVATIONS,
    Dense,
    ScaleBias,
    Table,
    attention,
    constant,
    dropout,
    drops,
    kept,
    layer_norm,
)
from dt_jax.system.text import check_choice

CONDITIONS = ("return", "nothing")
DTYPES = ("float32", "bfloat16", "float16")  # what layers can compute in


class Prediction(NamedTuple):
    """What the heads say: BxKxA, and where they are asked for BxKxS and BxKx1."""

    action_preds: jax.Array
    state_preds: jax.Array | None
    return_preds: jax.Array | None

    def __repr__(self) -> str:
        predicted = {name: x for name, x in self._asdict().items() if x is not None}
        shapes = (f"{k} {'x'.join(map(str, x.shape))}" for k, x in predicted.items())
        return f"Prediction({', '.join(shapes)})"


class DecisionTransformer(nn.Module):
    """Decision Transformer (Chen et al., 2021, arXiv:2106.01345) as HF writes it.

    The fields are those of `transformers.DecisionTransformerConfig`, with its defaults
    (a `config.json` may leave keys out); `dtype` is what the layers compute in, the
    parameters stay float32. `action_sizes` are the choices of each dimension of a
    discrete action, `act_dim` in all; actions are then one-hot vectors, and what is
    predicted are logits, without `action_tanh`. `condition_on='nothing'` lets no token
    look at a return, so that the model clones behaviour; its parameters are the same.

    `predict_return` puts the tokens of a step in the order state, return, action, as
    Reinformer does (Zhuang et al., 2024, arXiv:2405.08740): HF's return head then says
    at a state which return is still to be had, and the action is predicted at the
    return. The parameters are the same again.
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
    action_sizes: tuple[int, ...] = ()
    condition_on: str = "return"
    predict_return: bool = False

    def __post_init__(self):
        self.action_sizes = tuple(self.action_sizes)  # of JSON it is a list
        self.action_tanh = self.action_tanh and not self.action_sizes
        super().__post_init__()
        if self.action_sizes and sum(self.action_sizes) != self.act_dim:
            raise ValueError(
                f"action_sizes={self.action_sizes} are {sum(self.action_sizes)} "
                f"choices, but act_dim={self.act_dim}"
            )
        for key in ("hidden_size", "n_layer", "n_head", "max_ep_len", "n_inner"):
            size = getattr(self, key)
            if size is not None and size < 1:
                raise ValueError(f"{key}={size}: expected at least 1")
        for key in ("layer_norm_epsilon", "initializer_range"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(
                    f"{key}={getattr(self, key)}: expected 0 or more, finite"
                )
        for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            rate = getattr(self, key)  # traced, it has been checked before
            if not isinstance(rate, jax.Array) and not 0 <= rate < 1:
                raise ValueError(f"{key}={rate}: expected 0 to 1, 1 excluded")
        if self.hidden_size % self.n_head:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of "
                f"n_head={self.n_head}"
            )
        check_choice("activation_function", self.activation_function, ACTIVATIONS)
        check_choice("dtype", self.dtype, DTYPES)
        if not isinstance(self.condition_on, jax.Array):  # traced, it has been checked
            check_choice("condition_on", self.condition_on, CONDITIONS)
            if self.predict_return and self.condition_on == "nothing":
                raise ValueError(
                    "predict_return=True: found condition_on='nothing', which leaves "
                    "the returns out; expected 'return'"
                )

    def __repr__(self) -> str:
        names = ("state_dim", "act_dim", "hidden_size", "n_layer", "n_head")
        sizes = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"DecisionTransformer({sizes})"

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
          all_heads: also predict states and returns, which the loss asks for only with
            `predict_return`, and then for returns.
        """

        rates = self.embd_pdrop, self.attn_pdrop, self.resid_pdrop
        words_Wx2 = None
        if not deterministic and any(map(drops, rates)):
            # Those of all places of dropout at once: a place costs a GPU four kernels.
            places = 1 + 3 * self.n_layer
            words_Wx2 = jax.random.bits(self.make_rng("dropout"), (places, 2), "uint32")

        def keep(place, rate, shape):
            if words_Wx2 is None or not drops(rate):
                return None  # everything
            return kept(shape, rate, words_Wx2[place], first_segment)

        def drop(place, rate, x):
            return dropout(x, constant(rate), keep(place, rate, x.shape))

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
        kinds_Bx3xKxD = kinds_Bx3xKxD + times_BxKxD.astype(self.dtype)[:, None]
        batch_size, context_length = timesteps.shape
        x_BxTxD = kinds_Bx3xKxD.reshape(batch_size, 3 * context_length, -1)
        return_tokens = slice(context_length)
        state_tokens = slice(context_length, 2 * context_length)
        action_tokens = slice(2 * context_length, None)
        # Here HF keeps torch's default epsilon, whatever layer_norm_epsilon says.
        scale_D, bias_D = ScaleBias(name="embed_ln")(self.hidden_size)
        x_NxD = x_BxTxD.reshape(-1, self.hidden_size)
        x_NxD = layer_norm(x_NxD, scale_D, bias_D, 1e-5).astype(self.dtype)
        x_BxTxD = x_NxD.reshape(x_BxTxD.shape)

        # HF passes position_ids of zeros: every token gets row 0. The word embeddings
        # are not used at all, but exist in every HF file.
        wpe_PxD = self._table("encoder.wpe", self.n_positions).embedding
        self._table("encoder.wte", self.vocab_size).embedding  # noqa: B018
        x_BxTxD = x_BxTxD + wpe_PxD[None, :1].astype(self.dtype)
        x_BxTxD = drop(0, self.embd_pdrop, x_BxTxD)

        place_3xK = jnp.arange(3 * context_length).reshape(-1, 3).T  # HF's
        if self.predict_return:
            place_3xK = place_3xK[jnp.array([1, 0, 2])]  # a state before its return
        place_T = place_3xK.reshape(-1)
        causal_TxT = place_T[:, None] >= place_T[None]
        valid_BxT = jnp.tile(attention_mask > 0, (1, 3))
        sees_returns = self.condition_on  # traced, it is a bool
        if isinstance(sees_returns, str):
            sees_returns = sees_returns == "return"
        if sees_returns is not True:
            is_return_T = jnp.arange(3 * context_length) < context_length
            valid_BxT &= (sees_returns | ~is_return_T)[None]
        mask_BxTxT = causal_TxT[None] & valid_BxT[:, None]
        for layer in range(self.n_layer - 1):
            x_BxTxD = self._block(layer, x_BxTxD, mask_BxTxT, slice(None), keep, drop)
        # What leaves the last block is read by the heads alone: its queries and MLP are
        # needed at no other tokens. Exact.
        if all_heads:
            read = slice(None)
        elif self.predict_return:
            read = slice(2 * context_length)  # returns and states
        else:
            read = state_tokens
        x_BxRxD = self._block(self.n_layer - 1, x_BxTxD, mask_BxTxT, read, keep, drop)

        norm = self._norm("encoder.ln_f")

        def head(name, features, tokens):
            x_BxKxD = x_BxRxD if read is tokens else x_BxRxD[:, tokens]
            return self._dense(name, features)(x_BxKxD, norm).astype(jnp.float32)

        acting = return_tokens if self.predict_return else state_tokens
        action_preds = head("predict_action.0", self.act_dim, acting)
        if self.action_tanh:
            action_preds = jnp.tanh(action_preds)
        state_preds = return_preds = None
        if all_heads:
            state_preds = head("predict_state", self.state_dim, action_tokens)
        if all_heads or self.predict_return:
            returning = state_tokens if self.predict_return else action_tokens
            return_preds = head("predict_return", 1, returning)
        return Prediction(action_preds, state_preds, return_preds)

    def _block(self, layer, x_BxTxD, mask_BxTxT, read, keep, drop):
        """One pre-norm GPT-2 block; returns the tokens `read`, BxRxD."""
        name = f"encoder.h.{layer}"
        residual_std = self.initializer_range / math.sqrt(2 * self.n_layer)
        place = 1 + 3 * layer  # of dropout: embeddings, then three for each block

        q_k_v_BxTx3D = self._dense(f"{name}.attn.c_attn", 3 * self.hidden_size)(
            x_BxTxD, self._norm(f"{name}.ln_1")
        )
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
            keep(place, self.attn_pdrop, (*q_BxHxRxC.shape[:3], mask_BxRxT.shape[-1])),
            constant(self.attn_pdrop),
            scale,
        )
        h_BxRxD = h_BxHxRxC.swapaxes(1, 2).reshape(*mask_BxRxT.shape[:2], -1)
        h_BxRxD = self._dense(f"{name}.attn.c_proj", self.hidden_size, residual_std)(
            h_BxRxD
        )
        x_BxRxD = x_BxTxD[:, read] + drop(place + 1, self.resid_pdrop, h_BxRxD)

        h_BxRxI = self._dense(f"{name}.mlp.c_fc", self.n_inner or 4 * self.hidden_size)(
            x_BxRxD, self._norm(f"{name}.ln_2")
        )
        h_BxRxI = ACTIVATIONS[self.activation_function](h_BxRxI)
        h_BxRxD = self._dense(f"{name}.mlp.c_proj", self.hidden_size, residual_std)(
            h_BxRxI
        )
        return x_BxRxD + drop(place + 2, self.resid_pdrop, h_BxRxD)

    def _dense(self, name, features, init_std=None):
        std = self.initializer_range if init_std is None else init_std
        return Dense(features, std, self.dtype, name=name)

    def _norm(self, name):
        """What `Dense` takes of a layer norm before it."""
        return *ScaleBias(name=name)(self.hidden_size), self.layer_norm_epsilon

    def _table(self, name, rows):
        return Table(rows, self.hidden_size, self.initializer_range, name=name)


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

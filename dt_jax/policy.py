# SPDX-License-Identifier: Apache-2.0
"""Acting with a trained model, for E environments at once.

In go states and rewards as the environments give them, out come actions. The last K
steps lie on the device as a `Batch`, padded as in training: a decision sends one step
and runs one compiled function, however many steps there have been.
"""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from dt_jax.checkpoint import load_trained
from dt_jax.model import DecisionTransformer
from dt_jax.segments import ACTION_PADDING, Batch
from dt_jax.train_step import predict


class Policy:
    """Acts towards target returns in E environments, which are reset together.

    An environment that has ended may be given any finite input; its actions mean
    nothing, and those of the others do not change.

    Args:
      model, params: the trained Decision Transformer; nothing is dropped out.
      normalization: state_mean and state_std (S each), return_scale, context_length
        (K), max_ep_len and discount (1 when it is not there), as training had them.

    Raises:
      ValueError: the normalization does not fit the model.
    """

    def __init__(self, model: DecisionTransformer, params: dict, normalization: dict):
        self._return_scale = normalization["return_scale"]
        self._discount = normalization.get("discount", 1.0)
        self._context_length = normalization["context_length"]
        self._max_ep_len = normalization["max_ep_len"]
        if self._max_ep_len > model.max_ep_len:
            raise ValueError(
                f"normalization has max_ep_len={self._max_ep_len}, but the model's "
                f"table of timesteps has {model.max_ep_len} rows"
            )
        mean_S, std_S = (
            _finite(f"normalization.{key}", normalization[key], (model.state_dim,))
            for key in ("state_mean", "state_std")
        )
        if not (std_S > 0).all():
            raise ValueError(
                f"normalization.state_std[{std_S.argmin()}]={std_S.min()}: "
                "expected above 0"
            )
        self._model = model
        self._params = jax.device_put(params)
        self._statistics = jax.device_put((mean_S, std_S))
        self._context = None
        self._warned = False

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Policy":
        """Of a run's workdir (its newest good checkpoint) or a Hugging Face folder.

        Raises:
          FileNotFoundError: it is neither. ValueError: what is in it is damaged, or
            the folder does not say how the states were normalised.
        """
        fields, params, normalization, _ = load_trained(path)
        keys = (
            "state_mean", "state_std", "return_scale", "context_length", "max_ep_len"
        )  # fmt: skip
        missing = [key for key in keys if key not in (normalization or {})]
        if missing:
            raise ValueError(
                f"{path}: normalization.json lacks {', '.join(missing)}; "
                "main.py --mode=export writes it beside the weights"
            )
        return cls(DecisionTransformer(**fields), params, normalization)

    def reset(self, target_returns) -> None:
        """Begin E episodes.

        Args:
          target_returns: E float, the return asked of each, in units of the reward.

        Raises:
          ValueError: they are not E finite numbers.
        """
        self._to_go_E = _finite("eval.targets", target_returns, None, np.float64)
        self._time = 0
        places = (len(self._to_go_E), self._context_length)
        self._context = Batch(
            states=jnp.zeros((*places, self._model.state_dim)),
            actions=jnp.full((*places, self._model.act_dim), ACTION_PADDING, "float32"),
            rewards=None,  # the model does not read them
            returns_to_go=jnp.zeros((*places, 1)),
            timesteps=jnp.zeros(places, jnp.int32),
            attention_mask=jnp.zeros(places),
        )

    def act(self, states, rewards=None) -> np.ndarray:
        """The next action of each environment.

        Args:
          states: ExS float, as the environments give them.
          rewards: E float, what the actions before brought; ignored at the first call
            after `reset`.

        Returns:
          ExA float32, as the model was trained to give them; they are taken for what
          the environments did.

        Raises:
          ValueError: an input has another shape or is not finite, or there was no
            `reset`; the policy is as before the call.
        """
        if self._context is None:
            raise ValueError("act() before reset(target_returns)")
        count = len(self._to_go_E)
        states_ExS = _finite("states", states, (count, self._model.state_dim))
        if self._time:
            rewards_E = _finite("rewards", rewards, (count,), np.float64)
            self._to_go_E = (self._to_go_E - rewards_E) / self._discount
        last = self._max_ep_len - 1
        if self._time > last and not self._warned:
            logging.warning(
                f"timestep {self._time} lies beyond data.max_ep_len={self._max_ep_len}:"
                f" from here on the policy reads {last}, as training did"
            )
            self._warned = True
        scaled_E = (self._to_go_E / self._return_scale).astype(np.float32)
        step = Batch(
            states=states_ExS[:, None],
            # Not known yet; the state before it does not see it.
            actions=np.full((count, 1, self._model.act_dim), ACTION_PADDING, "float32"),
            rewards=None,
            returns_to_go=scaled_E[:, None, None],
            timesteps=np.full((count, 1), min(self._time, last), np.int32),
            attention_mask=np.ones((count, 1), np.float32),
        )
        self._context, actions_ExA = _decide(
            self._model, self._params, *self._statistics, self._context, step
        )
        self._time += 1
        return np.array(actions_ExA)


# The context is not donated: on a CPU, rolling it in place takes longer.
@partial(jax.jit, static_argnums=0)
def _decide(model, params, mean_S, std_S, context, step):
    """Roll the context by a step and fill in its action; both come back."""
    context = jax.tree.map(
        lambda past, now: jnp.concatenate((past[:, 1:], now), axis=1), context, step
    )
    actions_ExA = predict(model, params, context, mean_S, std_S)[:, -1]
    actions_ExKxA = context.actions.at[:, -1].set(actions_ExA)
    return context._replace(actions=actions_ExKxA), actions_ExA


def _finite(name, values, shape, dtype=np.float32):
    """The values as an array of this shape (None: 1-D, of any length but 0)."""
    try:
        array = np.array(values, dtype)
    except (TypeError, ValueError):
        fault = "not an array of numbers"
    else:
        if array.size and array.shape == (shape or (array.size,)):
            places = np.argwhere(~np.isfinite(array)).tolist()
            if not places:
                return array
            fault = f"{array[tuple(places[0])]} at {places[0]}"
        else:
            fault = f"shape {array.shape}"
    found = " ".join(repr(values).split())[:60]
    expected = f"finite numbers of shape {shape or '(E,)'}"
    raise ValueError(f"{name}={found}: {fault}, expected {expected}")

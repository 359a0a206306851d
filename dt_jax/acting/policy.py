# SPDX-License-Identifier: Apache-2.0
"""Acting with a trained model, for E environments at once.

In go states and rewards as the environments give them, out come actions. The last K
steps lie on the device as a `Batch`, padded as in training: a decision sends one step
and runs one compiled function, however many steps there have been.
"""

import os
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from dt_jax.data.segments import (
    ACTION_PADDING,
    Batch,
    action_scaling,
    unscale_actions,
)
from dt_jax.model import choices
from dt_jax.model.decision_transformer import DecisionTransformer
from dt_jax.training.checkpoint import load_trained
from dt_jax.training.train_step import predict

# Scaled returns to go end here: the squares of a layer norm must fit float32.
FARTHEST = 1e12


class Policy:
    """Acts towards target returns in one environment, or in E at once.

    After `reset` with one number everything is of one environment: a state S gives an
    action A. After `reset` with E numbers all has a leading axis E. An environment that
    has ended may be given any finite input; its actions mean nothing, and those of the
    others do not change. Some may begin anew while others go on: see `reset`.

    Attributes:
      state_dim (S), act_dim (A): the sizes of a state and of an action, of a discrete
        one its dimensions.
      action_sizes: the choices of each dimension of discrete actions, else ().

    Args:
      model, params: the trained Decision Transformer; nothing is dropped out.
      sample: discrete actions are drawn by their probabilities, not the most likely.
      temperature: which divides the logits before one is drawn.
      seed: of the draws; after a `reset` of all they begin anew.
      normalization: state_mean and state_std (S each), return_scale, context_length
        (K), max_ep_len, and where they are there discount (else 1), action_low and
        action_high (A each; else actions are as predicted) and mean_returns_to_go (T,
        what is subtracted at each timestep; else nothing), as training had them.

    Raises:
      ValueError: the normalization does not fit the model, there is nothing to draw, or
        the temperature is not above 0.
    """

    def __init__(
        self,
        model: DecisionTransformer,
        params: dict,
        normalization: dict,
        *,
        sample: bool = False,
        temperature: float = 1.0,
        seed: int = 0,
    ):
        if sample and not model.action_sizes:
            raise ValueError(
                "sample=True: found a model of continuous actions, expected one of "
                "discrete ones, which have probabilities"
            )
        if not 0 < temperature < np.inf:
            raise ValueError(f"temperature={temperature}: expected above 0")
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
        means = normalization.get("mean_returns_to_go", [0.0])
        self._means_T = _finite(
            "normalization.mean_returns_to_go", means, (len(means),), np.float64
        )
        scaling = None
        if "action_low" in normalization:
            scaling = action_scaling(
                *(
                    _finite(f"normalization.{k}", normalization[k], (model.act_dim,))
                    for k in ("action_low", "action_high")
                )
            )
        self._model = model
        self._params = jax.device_put(params)
        self._statistics = jax.device_put((mean_S, std_S, scaling))
        self.state_dim, self.action_sizes = model.state_dim, model.action_sizes
        self.act_dim = len(model.action_sizes) or model.act_dim
        self._draw = (jax.random.key(seed), temperature) if sample else None
        self._context = None
        self._warned = False

    @classmethod
    def load(cls, path: str | os.PathLike, **options) -> "Policy":
        """Of a run's workdir (its newest good checkpoint) or a Hugging Face folder;
        `options`: sample, temperature, seed.

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
        return cls(DecisionTransformer(**fields), params, normalization, **options)

    def __repr__(self) -> str:
        return f"Policy(state_dim={self.state_dim}, act_dim={self.act_dim})"

    def reset(self, target_returns, mask=None) -> None:
        """Begin episodes.

        Args:
          target_returns: the return asked for, in units of the reward: one number for
            one environment, E numbers for E of them. With a discount of 0 a return to
            go is the reward of its own step, so this is asked for at each step.
          mask: E bools, the environments in which an episode begins while the others go
            on; `target_returns` are then E numbers (the rest is not read) or one for
            all. To be called before the first observation of the episode is acted upon.

        Raises:
          ValueError: they are not finite numbers, or the mask does not fit.
        """
        if mask is None:
            targets = _finite("target_returns", target_returns, None, np.float64)
            self._single = targets.ndim == 0
            self._to_go_E = np.atleast_1d(targets)
            self._time_E = np.zeros(len(self._to_go_E), np.int64)
            self._decisions = 0
            self._context = self._empty_context()
            return
        if self._context is None:
            raise ValueError("reset(..., mask) before reset(target_returns)")
        count = len(self._to_go_E)
        begins_E = np.asarray(mask)
        if begins_E.dtype != bool or begins_E.shape != (count,):
            raise ValueError(
                f"mask: found {begins_E.dtype} of shape {begins_E.shape}, expected "
                f"bools of shape ({count},)"
            )
        targets = np.asarray(target_returns, np.float64)
        if targets.shape in ((), (count,)):  # else it is refused in the next line
            targets = np.where(begins_E, targets, 0.0)
        targets_E = _finite("target_returns", targets, (count,), np.float64)
        self._to_go_E = np.where(begins_E, targets_E, self._to_go_E)
        self._time_E = np.where(begins_E, 0, self._time_E)
        self._context = jax.tree.map(
            lambda old, new: jnp.where(
                begins_E.reshape(-1, *[1] * (old.ndim - 1)), new, old
            ),
            self._context,
            self._empty_context(),
        )

    def act(self, states, rewards=None) -> np.ndarray:
        """The next action of each environment.

        Args:
          states: ExS float, as the environments give them; S of one environment.
          rewards: E float, or one, what the actions before brought; has no effect where
            an episode has just begun, and may be left out when all have.

        Returns:
          ExA float32, or A, as the model was trained to give them; they are taken for
          what the environments did. Of discrete actions ExA int32, or A; E, or one
          number, where they have one dimension.

        Raises:
          ValueError: an input has another shape or is not finite, or there was no
            `reset`; the policy is as before the call.
        """
        if self._context is None:
            raise ValueError("act() before reset(target_returns)")
        step = self._observe(states, rewards)
        draw = self._draw and (self._decisions, *self._draw)
        self._context, actions_ExA = _decide(
            self._model, self._params, *self._statistics, self._context, step, draw
        )
        return self._acted(np.array(actions_ExA))

    def _observe(self, states, rewards) -> Batch:
        """A step of E x 1, its action not known yet; the returns to go are counted."""
        count = len(self._to_go_E)
        lead = () if self._single else (count,)
        states_ExS = _finite("states", states, (*lead, self.state_dim))
        goes_on_E = self._time_E > 0
        if goes_on_E.any():
            rewards_E = _finite("rewards", rewards, lead, np.float64).reshape(count)
            if self._discount:  # else no return to go tells of the next
                to_go_E = (self._to_go_E - rewards_E) / self._discount
                # What has not come grows step by step, without an end.
                farthest = FARTHEST * self._return_scale
                to_go_E = to_go_E.clip(-farthest, farthest)
                self._to_go_E = np.where(goes_on_E, to_go_E, self._to_go_E)
        last = self._max_ep_len - 1
        if self._time_E.max() > last and not self._warned:
            logging.warning(
                f"timestep {self._time_E.max()} lies beyond max_ep_len="
                f"{self._max_ep_len}: from here on the policy reads {last}, as training"
                " did"
            )
            self._warned = True
        means_E = self._means_T[np.minimum(self._time_E, len(self._means_T) - 1)]
        relative_E = self._to_go_E - means_E
        scaled_E = (relative_E / self._return_scale).astype(np.float32)
        return Batch(
            states=states_ExS.reshape(count, 1, self.state_dim),
            # Not known yet; the state before it does not see it.
            actions=np.full((count, 1, self.act_dim), ACTION_PADDING, "float32"),
            rewards=None,
            returns_to_go=scaled_E[:, None, None],
            timesteps=np.minimum(self._time_E, last).astype(np.int32)[:, None],
            attention_mask=np.ones((count, 1), np.float32),
        )

    def _acted(self, actions):
        """The actions ExA as `act` gives them; time goes on by a step."""
        self._time_E = self._time_E + 1
        self._decisions += 1
        if len(self.action_sizes) == 1:
            actions = actions[:, 0]
        return actions[0] if self._single else actions

    def _empty_context(self) -> Batch:
        places = (len(self._to_go_E), self._context_length)
        return Batch(
            states=jnp.zeros((*places, self.state_dim), "float32"),
            actions=jnp.full((*places, self.act_dim), ACTION_PADDING, "float32"),
            rewards=None,  # the model does not read them
            returns_to_go=jnp.zeros((*places, 1), "float32"),
            timesteps=jnp.zeros(places, "int32"),
            attention_mask=jnp.zeros(places, "float32"),
        )


class Policies:
    """P policies on the same data that act as one: each for its E of P*E rows."""

    def __init__(self, policies: Sequence[Policy]):
        self._policies = policies
        conditions = [policy._model.condition_on for policy in policies]
        self._sees_returns_P = np.array([each == "return" for each in conditions])
        params = [policy._params for policy in policies]
        self._params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        self._contexts = None

    def reset(self, target_returns_PE: np.ndarray) -> None:
        """Begin episodes, see `Policy.reset`."""
        for policy, targets_E in self._parts(target_returns_PE):
            policy.reset(targets_E)
        contexts = [policy._context for policy in self._policies]
        self._contexts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *contexts)

    def act(self, states_PExS: np.ndarray, rewards_PE: np.ndarray) -> np.ndarray:
        """The next actions, see `Policy.act`."""
        parts = zip(self._parts(states_PExS), self._parts(rewards_PE), strict=True)
        steps = [policy._observe(states, r) for (policy, states), (_, r) in parts]
        step = jax.tree.map(lambda *leaves: np.stack(leaves), *steps)
        first = self._policies[0]
        draw = first._draw and (first._decisions, *first._draw)
        self._contexts, actions_PxExA = _decide_all(
            first._model,
            self._sees_returns_P,
            self._params,
            *first._statistics,
            self._contexts,
            step,
            draw,
        )
        actions = zip(self._policies, np.array(actions_PxExA), strict=True)
        return np.concatenate([policy._acted(one) for policy, one in actions])

    def _parts(self, rows_PE):
        return zip(self._policies, np.split(rows_PE, len(self._policies)), strict=True)


def _decide_each(model, params, mean_S, std_S, scaling, context, step, draw):
    """Roll the context by a step and fill in its action; both come back.

    With `predict_return` the model first says which return can be had: the smaller of
    that and what was asked for takes the place of the return to go, and stays there.

    `draw`: how many decisions there have been, the key, the temperature; None: the most
    likely choice of discrete actions.
    """
    context = jax.tree.map(
        lambda past, now: jnp.concatenate((past[:, 1:], now), axis=1), context, step
    )
    statistics = mean_S, std_S, scaling
    if model.predict_return:
        had_ExKx1 = predict(model, params, context, *statistics).return_preds
        asked_Ex1 = jnp.minimum(context.returns_to_go[:, -1], had_ExKx1[:, -1])
        returns_ExKx1 = context.returns_to_go.at[:, -1].set(asked_Ex1)
        context = context._replace(returns_to_go=returns_ExKx1)
    actions_ExA = predict(model, params, context, *statistics).action_preds[:, -1]
    if draw is not None:
        decisions, key, temperature = draw
        key = jax.random.fold_in(key, decisions)
        actions_ExA = choices.draw(actions_ExA, model.action_sizes, key, temperature)
    elif model.action_sizes:
        actions_ExA = choices.most_likely(actions_ExA, model.action_sizes)
    else:
        actions_ExA = unscale_actions(actions_ExA, scaling)
    actions_ExKxA = context.actions.at[:, -1].set(actions_ExA)
    return context._replace(actions=actions_ExKxA), actions_ExA


# The context is not donated: on a CPU, rolling it in place takes longer.
_decide = jax.jit(_decide_each, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def _decide_all(
    model, sees_returns_P, params_P, mean_S, std_S, scaling, contexts_P, step_P, draw
):
    """The same for P policies that differ in their weights, and whether they look at
    returns."""

    def decide(sees_returns, *arguments):
        return _decide_each(model.clone(condition_on=sees_returns), *arguments)

    axes = 0, 0, None, None, None, 0, 0, None
    return jax.vmap(decide, in_axes=axes)(
        sees_returns_P, params_P, mean_S, std_S, scaling, contexts_P, step_P, draw
    )


def _finite(name, values, shape, dtype=np.float32):
    """The values as an array of this shape; None: one number, or a row of numbers."""
    try:
        array = np.array(values, dtype)
    except (TypeError, ValueError):
        fault = "not an array of numbers"
    else:
        fits = array.size and array.ndim < 2 if shape is None else array.shape == shape
        places = np.argwhere(~np.isfinite(array)).tolist()
        if fits and not places:
            return array
        fault = f"shape {array.shape}"
        if fits:
            fault = f"{array[tuple(places[0])]} at {places[0]}"
    found = " ".join(repr(values).split())[:60]
    shape = "() or (E,)" if shape is None else shape
    raise ValueError(
        f"{name}={found}: {fault}, expected finite numbers of shape {shape}"
    )

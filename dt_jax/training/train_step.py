# SPDX-License-Identifier: Apache-2.0
"""One update as a pure function: a `TrainState` and a `Batch` in, the next state and
the loss out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dt_jax.data.segments import Batch, normalize, scale_actions
from dt_jax.model.choices import cross_entropy, most_likely, one_hot
from dt_jax.model.decision_transformer import DecisionTransformer, Prediction
from dt_jax.training.optimizer import global_norm

EXPECTILE = 0.99  # Reinformer's (Zhuang et al., 2024, arXiv:2405.08740)


class TrainState(NamedTuple):
    """All that training changes: the number of updates made, and two trees."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"TrainState(step={self.step}, {count:,} parameters)"


class Errors(NamedTuple):
    """What the loss is made of, 0 at padded steps.

    actions: of continuous actions, scaled, the squared errors BxKxA; of discrete ones
      the cross-entropies BxKxM.
    right: of discrete actions BxKxM float32, 1 where the most likely choice is right.
    returns: with `predict_return` the `expectile_errors` BxKx1.
    """

    actions: jax.Array
    right: jax.Array | None
    returns: jax.Array | None

    def total(self) -> jax.Array:
        """Their sum, in which a return counts as much as all dimensions of an action.

        Divided by steps and dimensions it is the loss: the mean error of actions plus
        that of returns.
        """
        actions = jnp.sum(self.actions)
        if self.returns is None:
            return actions
        return actions + self.actions.shape[-1] * jnp.sum(self.returns)


class Metrics(NamedTuple):
    """Of one update: the loss over the global batch, the norm before clipping, and of
    discrete actions the share that was predicted right."""

    loss: jax.Array
    grad_norm: jax.Array
    accuracy: jax.Array | None = None


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: DecisionTransformer,
    optimizer: optax.GradientTransformation,
    state_mean: jax.Array,
    state_std: jax.Array,
    key: jax.Array,
    action_scaling: tuple | None = None,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update on one batch.

    The loss is the mean error of actions (see `errors_of`) over valid steps and action
    dimensions, plus the mean error of returns where the model predicts them. Under
    `axis_name` the batch is this device's share: sums and counts are summed over the
    devices and then divided, so that the update is that of the whole batch however
    unevenly the valid steps fall. Where the loss or the gradient is not finite, the
    update is skipped: the parameters stay as they are and the optimiser is told by
    `finite` (see `make_optimizer`); the step counts on.

    Args:
      state_mean, state_std: S, of the states as stored.
      action_scaling: of the actions as stored, see `scale_actions`.
      key: of the run; dropout is a function of it, the step and the segment's place in
        the whole batch.
    """
    device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    how = {
        "action_scaling": action_scaling,
        "deterministic": False,
        "first_segment": device * len(batch.timesteps),
        "rngs": {"dropout": jax.random.fold_in(key, state.step)},
    }

    def sum_of_errors(params):
        errors = errors_of(model, params, batch, state_mean, state_std, **how)
        right = errors.right
        return errors.total(), None if right is None else jnp.sum(right)

    (error, right), grads = jax.value_and_grad(sum_of_errors, has_aux=True)(
        state.params
    )
    count = batch.attention_mask.sum() * batch.actions.shape[-1]
    if axis_name is not None:
        sums = error, right, count, grads
        error, right, count, grads = jax.lax.psum(sums, axis_name)
    grads = jax.tree.map(lambda grad: grad / count, grads)
    metrics = Metrics(
        error / count, global_norm(grads), None if right is None else right / count
    )
    finite = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm)
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        grads, state.opt_state, state.params, finite=finite
    )
    params = jax.tree.map(
        lambda old, change: jnp.where(finite, old + change, old), state.params, updates
    )
    return TrainState(state.step + 1, params, opt_state), metrics


def errors_of(
    model: DecisionTransformer,
    params: dict,
    batch: Batch,
    state_mean,
    state_std,
    action_scaling=None,
    **how,
) -> Errors:
    """What the loss of a batch is made of; `how` is for `apply`."""
    statistics = state_mean, state_std, action_scaling
    predicted = predict(model, params, batch, *statistics, **how)
    actions_BxKxA, valid_BxKx1 = predicted.action_preds, batch.attention_mask[..., None]
    right_BxKxM = returns_BxKx1 = None
    if sizes := model.action_sizes:
        errors = cross_entropy(actions_BxKxA, batch.actions, sizes)
        right_BxKxM = most_likely(actions_BxKxA, sizes) == batch.actions
        right_BxKxM = right_BxKxM * valid_BxKx1
    else:
        errors = jnp.square(
            actions_BxKxA - scale_actions(batch.actions, action_scaling)
        )
    if model.predict_return:
        missed_BxKx1 = batch.returns_to_go - predicted.return_preds
        returns_BxKx1 = expectile_errors(missed_BxKx1) * valid_BxKx1
    return Errors(errors * valid_BxKx1, right_BxKxM, returns_BxKx1)


def expectile_errors(missed: jax.Array) -> jax.Array:
    """Squared errors, times EXPECTILE where too little was predicted, elsewhere times
    1 - EXPECTILE.

    Expectile regression (Newey and Powell, 1987): at 0.99 what is predicted is nearly
    the highest return that follows such a state; at 0.5 it would be the mean.

    Args:
      missed: the return less what was predicted.
    """
    return jnp.where(missed > 0, EXPECTILE, 1 - EXPECTILE) * jnp.square(missed)


def predict(
    model: DecisionTransformer,
    params: dict,
    batch: Batch,
    state_mean,
    state_std,
    action_scaling=None,
    **how,
) -> Prediction:
    """The scaled actions, or the logits of discrete ones, and what else the model
    predicts, for a batch with states and actions as stored, in training and acting."""
    if model.action_sizes:
        actions = one_hot(batch.actions, model.action_sizes)
    else:
        actions = scale_actions(batch.actions, action_scaling)
    return model.apply(
        {"params": params},
        states=normalize(batch.states, state_mean, state_std),
        actions=actions,
        returns_to_go=batch.returns_to_go,
        timesteps=batch.timesteps,
        attention_mask=batch.attention_mask,
        **how,
    )


def init_state(params: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def find_bad_segments(params: dict, batch: Batch, *, step: int, **how) -> np.ndarray:
    """B bools: does the segment alone give a loss or gradient that is not finite?

    `how`: the model, the states' mean and std and the key, as `train_step` takes them.
    """
    optimizer = optax.identity()
    state = init_state(params, optimizer)._replace(step=jnp.int32(step))

    def is_bad(segment):
        alone = jax.tree.map(lambda x: x[None], segment)
        _, metrics = train_step(state, alone, optimizer=optimizer, **how)
        return ~jnp.isfinite(metrics.loss + metrics.grad_norm)

    return np.asarray(jax.jit(lambda batch: jax.lax.map(is_bad, batch))(batch))

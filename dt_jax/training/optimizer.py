# SPDX-License-Identifier: Apache-2.0
"""AdamW, warmup and clipping as HF's `Trainer` sets them up, from optax.

Knows the parameters by name only: which are decayed, which are not, and which get no
gradient at all. The three groups must cover every leaf.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from dt_jax.system.text import check_choice

# The loss does not read these, so torch skips them: no update and no decay.
UNTRAINED = ("predict_state", "encoder.wte")
RETURN_HEAD = "predict_return"  # nor this one, unless the model predicts returns
DECAYED = ("kernel", "embedding")
NOT_DECAYED = ("bias", "scale")
SCHEDULES = ("linear", "cosine", "constant_with_warmup", "constant")


def make_optimizer(
    *,
    total_steps: int,
    learning_rate: float,
    weight_decay: float,
    adam_beta1: float,
    adam_beta2: float,
    adam_epsilon: float,
    max_grad_norm: float,
    warmup_ratio: float,
    lr_scheduler_type: str,
    predict_return: bool = False,
) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW on the schedule; the names are HF's.

    With `predict_return` the head of that name is trained, too.

    `update(..., finite=False)` leaves the moments as they were and moves only the
    schedule, so that the rate of a step is the same whatever was skipped before it;
    what it returns as updates is then not to be applied.

    Raises:
      ValueError: a value is out of range, or (when used) a parameter is in no group.
    """
    for key, value in (
        ("learning_rate", learning_rate),
        ("weight_decay", weight_decay),
        ("adam_epsilon", adam_epsilon),
    ):
        if not 0 <= value < math.inf:
            raise ValueError(f"{key}={value}: expected 0 or more, finite")
    for key, value in (("adam_beta1", adam_beta1), ("adam_beta2", adam_beta2)):
        if not 0 <= value < 1:
            raise ValueError(f"{key}={value}: expected 0 to 1, 1 excluded")
    if not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm={max_grad_norm}: expected above 0")
    schedule = make_schedule(
        total_steps=total_steps,
        learning_rate=learning_rate,
        warmup_ratio=warmup_ratio,
        lr_scheduler_type=lr_scheduler_type,
    )
    return clipped_adamw(
        schedule,
        weight_decay=weight_decay,
        adam_beta1=adam_beta1,
        adam_beta2=adam_beta2,
        adam_epsilon=adam_epsilon,
        max_grad_norm=max_grad_norm,
        predict_return=predict_return,
    )


def clipped_adamw(
    schedule: optax.Schedule,
    *,
    weight_decay: float | jax.Array,
    adam_beta1: float | jax.Array,
    adam_beta2: float | jax.Array,
    adam_epsilon: float | jax.Array,
    max_grad_norm: float | jax.Array,
    predict_return: bool,
) -> optax.GradientTransformation:
    """What `make_optimizer` makes, of numbers that are not checked: they may be traced
    ones, of the members of a population."""
    untrained = UNTRAINED if predict_return else (*UNTRAINED, RETURN_HEAD)

    def in_groups(*groups):
        """Params to a tree of booleans: is the leaf in one of the groups?"""
        return partial(
            jax.tree.map_with_path, lambda path, _: _group(path, untrained) in groups
        )

    def zero_where_untrained(updates, _):
        return jax.tree.map(
            lambda change, still: jnp.zeros_like(change) if still else change,
            updates,
            in_groups("untrained")(updates),
        )

    adamw = optax.chain(
        _adam(adam_beta1, adam_beta2, adam_epsilon),
        optax.add_decayed_weights(weight_decay, in_groups("decayed")),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.chain(
        clip_by_global_norm(max_grad_norm),
        optax.masked(adamw, in_groups("decayed", "not decayed")),
        # As constants, so that the untrained leaves are not added to and copied.
        optax.stateless(zero_where_untrained),
    )


def make_schedule(
    *,
    total_steps: int,
    learning_rate: float,
    warmup_ratio: float,
    lr_scheduler_type: str,
) -> optax.Schedule:
    """The learning rate of update t, from 0: HF's schedule of that name.

    Linear from 0 over ceil(warmup_ratio * total_steps) updates, then linearly or by a
    half cosine to 0, or constant; 'constant' has no warmup.
    """
    if total_steps < 1:
        raise ValueError(f"found {total_steps} updates to make, expected at least 1")
    if not 0 <= warmup_ratio <= 1:
        raise ValueError(f"warmup_ratio={warmup_ratio}: expected 0 to 1")
    warmup_steps = math.ceil(total_steps * warmup_ratio)
    decay_steps = max(1, total_steps - warmup_steps)
    check_choice("lr_scheduler_type", lr_scheduler_type, SCHEDULES)
    if lr_scheduler_type == "constant":
        return optax.constant_schedule(learning_rate)
    if lr_scheduler_type == "linear":
        after = optax.linear_schedule(learning_rate, 0.0, decay_steps)
    elif lr_scheduler_type == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, decay_steps)
    else:
        after = optax.constant_schedule(learning_rate)
    if not warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def global_norm(tree) -> jax.Array:
    """optax's `tree.norm`, of all leaves in one vector.

    A sum of a sum for each leaf is 65 kernels on a GPU, this is two.
    """
    return optax.tree.norm(ravel_pytree(tree)[0])


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """optax's, but that it calls our `global_norm`, and scales by one number."""

    def update(grads, state, params=None):
        norm = global_norm(grads)
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        # Read out of an array: XLA on a GPU then updates leaves of equal shape in one
        # kernel, which it does where they share an operand that is no single number.
        factor = jax.lax.optimization_barrier(jnp.full(2, factor))[0]
        return jax.tree.map(lambda grad: grad * factor, grads), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _adam(b1, b2, eps):
    """optax's, but that the moments rest where `finite` is False.

    They are chosen before they are used: chosen among what `scale_by_adam` returns,
    XLA would compute them twice, and an update take 3 % longer.
    """
    adam = optax.scale_by_adam(b1, b2, eps)

    def update(grads, state, params=None, *, finite=True, **_):
        _, moved = adam.update(grads, state, params)
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, state)
        mean = optax.tree.bias_correction(state.mu, b1, state.count)
        square = optax.tree.bias_correction(state.nu, b2, state.count)
        return jax.tree.map(lambda m, s: m / (jnp.sqrt(s) + eps), mean, square), state

    return optax.GradientTransformationExtraArgs(adam.init, update)


def _group(path, untrained):
    *modules, leaf = (str(key.key) for key in path)
    module = ".".join(modules)
    if module in untrained:
        return "untrained"
    if leaf in DECAYED:
        return "decayed"
    if leaf in NOT_DECAYED:
        return "not decayed"
    raise ValueError(
        f"parameter {'.'.join((*modules, leaf))} is in no optimiser group; expected a "
        f"leaf named {', '.join(DECAYED + NOT_DECAYED)}"
    )

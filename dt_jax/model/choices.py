# SPDX-License-Identifier: Apache-2.0
"""Discrete actions: whole numbers in, one-hot vectors into the model, logits out of it.

An action is M whole numbers, of `action_sizes` choices each. To the model it is a
vector of A numbers, a block for each dimension, as Hugging Face's has it.
"""

import jax
import jax.numpy as jnp
import numpy as np

IMPOSSIBLE = -1e30  # the logit of a choice that a dimension does not have


def one_hot(actions, action_sizes: tuple[int, ...]) -> jax.Array:
    """Whole numbers [..., M] as float32 [..., A]; what is no choice (padding) is 0."""
    shape = (1,) * (actions.ndim - 1) + (-1,)
    dimension_A = np.repeat(np.arange(len(action_sizes)), action_sizes)
    choice_A = np.concatenate([np.arange(size) for size in action_sizes])
    chosen = actions[..., dimension_A] == choice_A.reshape(shape).astype(actions.dtype)
    return chosen.astype(jnp.float32)


def cross_entropy(
    logits: jax.Array, actions: jax.Array, action_sizes: tuple[int, ...]
) -> jax.Array:
    """Float32 [..., M]: minus the logarithm of the probability of what was chosen.

    Args:
      logits: [..., A]. actions: [..., M] whole numbers; padding counts as the first.
    """
    logs = jax.nn.log_softmax(_by_dimension(logits, action_sizes))
    chosen = jnp.maximum(actions, 0).astype(jnp.int32)[..., None]
    # A sum over the choices: the gradient of an index would be a scatter.
    is_chosen = chosen == jnp.arange(logs.shape[-1]).reshape(
        (1,) * actions.ndim + (-1,)
    )
    return -jnp.where(is_chosen, logs, 0.0).sum(axis=-1)


def most_likely(logits: jax.Array, action_sizes: tuple[int, ...]) -> jax.Array:
    """Int32 [..., M]: the choice of the largest logit, the first of equal ones."""
    return jnp.argmax(_by_dimension(logits, action_sizes), axis=-1).astype(jnp.int32)


def draw(
    logits: jax.Array, action_sizes: tuple[int, ...], key: jax.Array, temperature: float
) -> jax.Array:
    """Int32 [..., M], drawn by the key; the logits are divided by the temperature."""
    scaled = _by_dimension(logits, action_sizes) / temperature
    return jax.random.categorical(key, scaled).astype(jnp.int32)


def _by_dimension(logits, sizes):
    """[..., M, C]: C is the most choices, and those that there are not IMPOSSIBLE."""
    if len(set(sizes)) == 1:
        return logits.reshape(*logits.shape[:-1], len(sizes), sizes[0])
    most, bounds = max(sizes), np.cumsum(sizes)[:-1].tolist()
    blocks = [
        jnp.pad(
            block,
            [(0, 0)] * (logits.ndim - 1) + [(0, most - block.shape[-1])],
            constant_values=IMPOSSIBLE,
        )
        for block in jnp.split(logits, bounds, axis=-1)
    ]
    return jnp.stack(blocks, axis=-2)

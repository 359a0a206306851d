# SPDX-License-Identifier: Apache-2.0
"""Discrete actions on paper: one-hot vectors, cross-entropies, choices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dt_jax.model.choices import cross_entropy, draw, most_likely, one_hot

SIZES = (2, 3)
ACTIONS_2x2 = np.float32([[1, 0], [0, 2]])
LOGITS_2x5 = jnp.log(jnp.float32([[1, 3, 1, 2, 1], [5, 5, 2, 1, 1]]))


def test_one_hot():
    np.testing.assert_array_equal(
        one_hot(ACTIONS_2x2, SIZES), [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
    )


def test_padding_is_no_choice():
    assert not one_hot(np.full((1, 4, 2), -10.0), SIZES).any()


@pytest.mark.parametrize("sizes", [SIZES, (3, 2)])
def test_cross_entropies(sizes):
    logits = LOGITS_2x5 if sizes == SIZES else LOGITS_2x5[:, jnp.array([2, 3, 4, 0, 1])]
    actions = ACTIONS_2x2 if sizes == SIZES else ACTIONS_2x2[:, ::-1]
    expected = [[np.log(4 / 3), np.log(4)], [np.log(2), np.log(4)]]
    expected = expected if sizes == SIZES else np.array(expected)[:, ::-1]
    # A logarithm of a sum, in float32.
    found = cross_entropy(logits, actions, sizes)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_gradient_is_that_of_probabilities():
    def loss(logits):
        return cross_entropy(logits, ACTIONS_2x2, SIZES).sum()

    expected = [[1 / 4, 3 / 4 - 1, -3 / 4, 2 / 4, 1 / 4], [-0.5, 0.5, 0.5, 0.25, -0.75]]
    np.testing.assert_allclose(jax.grad(loss)(LOGITS_2x5), expected, rtol=1e-5)


def test_the_most_likely_of_each_dimension():
    np.testing.assert_array_equal(most_likely(LOGITS_2x5, SIZES), [[1, 1], [0, 0]])


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.75), (0.5, 0.9)])
def test_draws_follow_the_probabilities(temperature, share):
    logits = jnp.broadcast_to(LOGITS_2x5[0], (4000, 5))
    drawn_Nx2 = np.asarray(draw(logits, SIZES, jax.random.key(0), temperature))
    # 4,000 draws: a standard error of at most 0.008; the same seed draws the same.
    assert abs(drawn_Nx2[:, 0].mean() - share) < 0.025
    assert set(drawn_Nx2[:, 1]) == {0, 1, 2}

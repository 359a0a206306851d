# SPDX-License-Identifier: Apache-2.0
"""dt-jax: the Decision Transformer, trained in JAX.

Read in this order: trajectories, readers, segments, feed, model, optimizer, train_step,
train. Nothing is imported here, so that the data's half works without starting JAX.
"""

__version__ = "0.1.0"

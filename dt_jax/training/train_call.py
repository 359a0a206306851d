# SPDX-License-Identifier: Apache-2.0
"""Many updates in one call over all devices, of one run or of the members of many.

In come a state and what `fetch` makes batches of, out come the next state and the
losses. `jax.pmap` stands here and nowhere else.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dt_jax.model.decision_transformer import DecisionTransformer
from dt_jax.training.population import DEVICES, Population
from dt_jax.training.train_step import Metrics, TrainState, train_step


def make_train_call(
    model: DecisionTransformer,
    optimizer: optax.GradientTransformation,
    *,
    state_mean,
    state_std,
    seed: int,
    fetch: Callable,
    action_scaling: tuple | None = None,
    population: Population | None = None,
) -> Callable:
    """Compile U updates over the G local devices (and those of all other processes).

    Returns:
      call(state, store, items) -> (state, Metrics of U): the state is one plain tree,
      replicated and donated; `items` has leading axes [G, U]; `fetch(store, item)`
      makes the device's `Batch` of one update. A step is the same whatever U is. Of a
      `population` the state is what `place` gives, and the metrics are UxP.
    """
    same = {
        "state_mean": state_mean,
        "state_std": state_std,
        "action_scaling": action_scaling,
    }

    def call(state, store, items):
        def update(state, item):
            if population is None:
                state, metrics = train_step(
                    state,
                    fetch(store, item),
                    model=model,
                    optimizer=optimizer,
                    key=jax.random.key(seed),
                    axis_name=DEVICES,
                    **same,
                )
            else:
                state, metrics = population.update(
                    state, item, partial(fetch, store), **same
                )
            # One row, not one of each.
            return state, jnp.stack(jax.tree.leaves(metrics))

        # XLA runs matrix products inside a loop of one differently (slower on CPU).
        updates_per_call = jax.tree.leaves(items)[0].shape[0]
        state, metrics_UxF = jax.lax.scan(
            update, state, items, unroll=updates_per_call == 1
        )
        if population is None:
            return state, Metrics(*metrics_UxF.T)
        metrics_PxFxU = population.collect(metrics_UxF.T)
        return state, Metrics(*metrics_PxFxU.T.swapaxes(0, 1))

    own = None if population is None else 0  # each device has members of its own
    axes = {"in_axes": (own, None, 0), "out_axes": (own, None)}
    return _on_devices(call, **axes, donate_argnums=0)


def _on_devices(function, **how) -> Callable:
    return jax.pmap(function, axis_name=DEVICES, **how)


def place(state: TrainState, population: Population | None = None) -> TrainState:
    """Lay the state over the local devices as the train call returns it.

    Otherwise the call would be compiled twice, for the first state and for its own. Of
    a population leaves are [P, ...] of NumPy, and become [G, Q, ...].
    """
    split, everywhere = over_devices()
    if population is None:
        return jax.device_put(state, everywhere)
    return jax.device_put(jax.tree.map(population.of_places, state), split)


def make_gather(population: Population) -> Callable[[TrainState], TrainState]:
    """Of what the train call returns, [G, Q, ...], every member's [P, ...] on every
    device; all processes have to call it."""
    return _on_devices(population.collect, out_axes=None)


def over_devices() -> tuple[NamedSharding, NamedSharding]:
    """Over the local devices: divided along the first axis, and whole on each."""
    mesh = Mesh(np.array(jax.local_devices()), (DEVICES,))
    return NamedSharding(mesh, PartitionSpec(DEVICES)), NamedSharding(
        mesh, PartitionSpec()
    )

# SPDX-License-Identifier: Apache-2.0
"""FinRL's market as a world of its own: tables in, environments and episodes out.

Once this package is imported, Gymnasium knows its two environments by their ids.
"""

import gymnasium

for _id, _entry_point in (
    ("dt_jax/StockTrading-v0", "dt_jax.trading.environment:TradingEnv"),
    ("dt_jax/SimulatedTrading-v0", "dt_jax.trading.simulation:simulated_env"),
):
    if _id not in gymnasium.registry:
        gymnasium.register(_id, _entry_point)

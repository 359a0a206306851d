# SPDX-License-Identifier: Apache-2.0
"""The base recipe for a GPU or TPU, as fast as we know how.

python main.py --config configs/fast.py --config.data.path=data/dataset
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    # Layers compute in bfloat16; weights, their sums and the loss stay float32.
    config.model.dtype = "bfloat16"
    # Half the memory for the store, and half the bytes an update reads.
    config.data.store_dtype = "bfloat16"
    # A call is then a few tens of milliseconds: the host has time to look.
    config.train.updates_per_call = 40
    return config

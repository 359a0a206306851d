# SPDX-License-Identifier: Apache-2.0
"""The base recipe with bfloat16, meant for a GPU or TPU.

    python main.py --config configs/fast.py --config.data.path=data/dataset

Measured on an H200 at 3941/394, the data on the device, in calls of 40 updates as is
the default there: 1,057 updates a second, and 963 to 981 with float32. In calls of 10
float32 makes 890 (docs/performance.md).

What each change gives and costs on two CPU cores (`python -m benchmarks.settings`):
updates a second at 3941/394, medians of five rounds that vary by a fifth and more, and
the final loss on another dataset, the mean of three seeds with the lowest and the
highest. All but the first have the store on the device.

    setting                     updates/s    final loss
    configs/base.py                 13.8    0.20985 [0.20645, 0.21203]
    data.placement=device           15.1    0.20985 [0.20645, 0.21203]
    data.store_dtype=bfloat16       11.9    0.20985 [0.20646, 0.21202]
    model.dtype=bfloat16            11.4    0.20984 [0.20644, 0.21202]
    both, in calls of 40             9.6    0.20984 [0.20644, 0.21202]

The loss does not tell bfloat16 from float32: what it changes is less than a hundredth
of what the seed does. On a CPU it is slower, so take configs/base.py there.
"""

from ml_collections import ConfigDict

from dt_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    # Layers compute in bfloat16; weights, their sums and the loss stay float32.
    config.model.dtype = "bfloat16"
    # Of the states in the store: half the memory, half the bytes an update reads.
    config.data.store_dtype = "bfloat16"
    return config

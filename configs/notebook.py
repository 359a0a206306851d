# SPDX-License-Identifier: Apache-2.0
"""The notebook itself: its dataset, logged as often as Hugging Face's Trainer does.

python main.py --config configs/notebook.py --config.data.path=data/dataset
"""

from ml_collections import ConfigDict

from dt_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.path = "data/dataset"
    config.train.logging_steps = 500
    return config

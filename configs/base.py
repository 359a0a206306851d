# SPDX-License-Identifier: Apache-2.0
"""The base recipe; `dt_jax/config.py` has its keys, each with a comment.

    python main.py --config configs/base.py

Copy this file to make a config of your own: configs/notebook.py shows how.
"""

from ml_collections import ConfigDict

from dt_jax.config import default_config


def get_config() -> ConfigDict:
    return default_config()

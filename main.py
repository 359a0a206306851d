# SPDX-License-Identifier: Apache-2.0
"""Train a Decision Transformer; --help lists the modes and all keys.

python main.py --config configs/base.py [--workdir DIR]
    [--mode train|evaluate|inspect|export|collect|report] [--config.KEY=VALUE ...]
"""

from dt_jax.__main__ import main

if __name__ == "__main__":
    main()

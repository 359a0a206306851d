# SPDX-License-Identifier: Apache-2.0
"""dt-jax: the Decision Transformer, trained in JAX.

What a user calls is offered here and imported when first asked for, so that importing
this package starts neither JAX nor datasets. `__init__.pyi` lists the names.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

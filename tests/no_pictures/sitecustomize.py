# SPDX-License-Identifier: Apache-2.0
"""A Python that finds this first draws no pictures, as `conftest.without_pictures`."""

import importlib.abc
import importlib.util
import sys

MODULE = "dt_jax.reporting.run_page"


class Finder(importlib.abc.MetaPathFinder):
    """Changes the one module when it is imported."""

    def find_spec(self, name, path, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module.run_pictures = lambda run: {}

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())

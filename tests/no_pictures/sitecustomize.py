# SPDX-License-Identifier: Apache-2.0
"""A Python that finds this first draws no pictures, as `conftest.without_pictures`."""

import importlib.abc
import importlib.util
import sys

DRAWING = {
    "dt_jax.reporting.run_page": "run_pictures",
    "dt_jax.reporting.population": "_pictures",
}


class Finder(importlib.abc.MetaPathFinder):
    """Changes these modules when they are imported."""

    def find_spec(self, name, path, target=None):
        if name not in DRAWING:
            return None
        drawing = DRAWING.pop(name)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            setattr(module, drawing, lambda *_: {})

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())

"""The published algorithms, one small file a family, each with its rows of the solver table."""

import importlib
import pkgutil

TABLE = [
    row
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name)
    for row in getattr(importlib.import_module(f"{__name__}.{module.name}"), "ROWS", ())
]

"""What is compared: one file a method, registered by its name. Begin with `method.py`; `find` returns a method.

A new method is a new file in this folder: it calls `register`, and every study can then name it.
"""

from __future__ import annotations

import importlib
import pkgutil

from cause_lite.methods.method import METHODS, Method, Training, Views, register
from cause_lite.runtime.files import UserError

__all__ = ["METHODS", "Method", "Training", "Views", "find", "register"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def find(name: str) -> Method:
    """Return the method of a name; raise UserError naming those that there are."""
    if name not in METHODS:
        raise UserError(f"no method named {name!r}; must be one of {', '.join(sorted(METHODS))}")
    return METHODS[name]

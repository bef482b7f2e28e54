"""A package's modules under a second name, as the same objects."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType


def alias_modules(name: str, package: ModuleType) -> None:
    """Let ``import <name>.<module>`` give the module of the package: a second copy would have classes of its own."""
    for found in pkgutil.iter_modules(package.__path__):
        sys.modules[f"{name}.{found.name}"] = importlib.import_module(f"{package.__name__}.{found.name}")

"""A package's modules under a second name, as the same objects."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType


def alias_modules(name: str, package: ModuleType) -> None:
    """Let ``import <name>.<module>`` give the module of the package: a second copy would have classes of its own."""
    inner = f"{package.__name__}."
    for found in pkgutil.walk_packages(package.__path__, inner):
        sys.modules[f"{name}.{found.name.removeprefix(inner)}"] = importlib.import_module(found.name)

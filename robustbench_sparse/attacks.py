"""The package ``attacks`` under this package's name: ``from robustbench_sparse.attacks import PGD``, the same class.

Its modules, too: ``robustbench_sparse.attacks.base`` is ``attacks.base``.
"""

from __future__ import annotations

from typing import Any

import attacks
from attacks import *  # noqa: F403
from robustbench_sparse.foundation.aliases import alias_modules

__all__ = attacks.__all__

alias_modules(__name__, attacks)


def __getattr__(name: str) -> Any:
    return getattr(attacks, name)

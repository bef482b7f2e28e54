"""The package ``defenses`` under this package's name: ``from robustbench_sparse.defenses import CLIP``, the same class.

Its modules, too: ``robustbench_sparse.defenses.base`` is ``defenses.base``.
"""

from __future__ import annotations

from typing import Any

import defenses
from defenses import *  # noqa: F403
from robustbench_sparse.foundation.aliases import alias_modules

__all__ = defenses.__all__

alias_modules(__name__, defenses)


def __getattr__(name: str) -> Any:
    return getattr(defenses, name)

"""The test at work, as the pytest plug-in knows it; a stand-in for it where there is none."""

from __future__ import annotations

import fnmatch
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_robustbench_sparse import AtWork

PLUGIN = "pytest_robustbench_sparse"


def at_work() -> AtWork | None:
    """What the plug-in knows of the test; None outside pytest. The plug-in is loaded by pytest alone."""
    return getattr(sys.modules.get(PLUGIN), "current", None)


def row_of(name: str | None) -> str | None:
    """The row's name: as given, or else the test's."""
    test = at_work()
    return name if name is not None or test is None else test.name


def is_renewed(name: str) -> bool:
    """Whether ``--rbs-update`` names a row; ``*`` and ``?`` stand for other characters."""
    test = at_work()
    return test is not None and any(fnmatch.fnmatchcase(name, asked) for asked in test.update)


def tell(**facts: Any) -> None:
    """Hand what was found to the plug-in, for its summaries."""
    test = at_work()
    if test is not None:
        test.found.append(facts)

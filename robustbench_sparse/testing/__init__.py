"""For the tests of other projects: is a network as robust, and as sparse, as it was?

``assert_robust``, ``assert_sparse`` and ``assert_no_regression`` raise ``AssertionError`` where it is not, and
``NotComparable`` where nothing can be said. They work in any test; the pytest plug-in ``pytest_robustbench_sparse``,
which comes with the package, adds fixtures of the same names, ``--rbs-update`` and summaries. See ``docs/ci.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustbench_sparse.testing.asserting import assert_no_regression, assert_robust, assert_sparse
    from robustbench_sparse.testing.references import NotComparable

__all__ = ["NotComparable", "assert_no_regression", "assert_robust", "assert_sparse"]


def __getattr__(name: str) -> Any:
    """Imported on first use: collecting tests must not wait for torch."""
    if name == "NotComparable":
        from robustbench_sparse.testing.references import NotComparable

        return NotComparable
    if name in __all__:
        from robustbench_sparse.foundation.tuning import tune_process

        tune_process()  # before torch is imported
        from robustbench_sparse.testing import asserting

        return getattr(asserting, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

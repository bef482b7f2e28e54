"""How accurate, how robust and how sparse is an image classifier, and can the number be believed?

The top floor: config, data, models, the training loop, the judge, leaderboards and the command line.
``run_benchmark``, ``evaluate``, ``load_model``, ``list_models`` and ``benchmark`` are imported on first use, so that
the command line starts quickly.
``robustbench_sparse.attacks`` and ``robustbench_sparse.defenses`` are the packages ``attacks`` and ``defenses``.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from robustbench_sparse.foundation.shadows import refuse_shadows
from robustbench_sparse.foundation.tuning import tune_process

if TYPE_CHECKING:
    from robustbench_sparse.benchmark import run_benchmark
    from robustbench_sparse.evaluation import evaluate
    from robustbench_sparse.zoo import list_models, load_model

__all__ = ["__version__", "evaluate", "list_models", "load_model", "run_benchmark"]
refuse_shadows()
__version__ = metadata.version("robustbench_sparse")


def __getattr__(name: str) -> Any:
    if name in __all__:
        tune_process()  # before torch is imported
    if name == "run_benchmark":
        from robustbench_sparse.benchmark import run_benchmark

        return run_benchmark
    if name == "evaluate":
        from robustbench_sparse.evaluation import evaluate

        return evaluate
    if name == "benchmark":  # the module, which can be called
        tune_process()
        return import_module("robustbench_sparse.benchmark")
    if name in ("list_models", "load_model"):
        from robustbench_sparse import zoo

        return getattr(zoo, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

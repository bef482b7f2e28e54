"""Networks from elsewhere by one word, such as ``timm:NAME``, and files of ONNX and of torch.export.

The table of contents. Runs, the zoo and factories are found by ``runs.targets``, which asks here first. Nothing is ever
downloaded, and no file runs code but where the user says so.
"""

from __future__ import annotations

from pathlib import Path

from robustbench_sparse.sources.base import Request, Source, Sourced
from robustbench_sparse.sources.from_export import Exported
from robustbench_sparse.sources.from_onnx import Onnx
from robustbench_sparse.sources.from_robustbench import RobustBench
from robustbench_sparse.sources.from_timm import Timm
from robustbench_sparse.sources.from_torchvision import Torchvision
from robustbench_sparse.sources.from_transformers import Transformers

__all__ = ["FILES", "SOURCES", "Request", "Source", "Sourced", "find"]

SOURCES: dict[str, Source] = {
    source.key: source for source in (Torchvision(), Timm(), Transformers(), RobustBench())
}
FILES: dict[str, Source] = {source.key: source for source in (Onnx(), Exported())}


def find(target: str, weights: Path | None = None, trusted: bool = False) -> Sourced | None:
    """The network that a word names; None where it is no source's: a run, a shrunk file, the zoo, a factory.

    Args:
        target: ``KEY:NAME``, or the path of a file with an ending of ``FILES``.
        weights: file of weights that the user named.
        trusted: the user trusts the file to run code.

    Raises:
        UserError: see ``Source.load``.
    """
    key, colon, name = target.partition(":")
    if colon and key in SOURCES:
        return SOURCES[key].load(Request(name=name, weights=weights, trusted=trusted))
    source = FILES.get(Path(target).suffix.lower())
    if source is None:
        return None
    return source.load(Request(name=target, weights=weights, trusted=trusted))

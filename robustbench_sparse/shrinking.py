"""From a network to the file of its shrunk self: remove, prove, write, measure."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from attacks.base import is_stochastic
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import check_free, write_json
from robustbench_sparse.runs.shrunk_file import load_shrunk, save_shrunk
from robustbench_sparse.runs.targets import Target, data_of, images_of, resolve_target
from robustbench_sparse.sparsity.counting import count_sparsity
from robustbench_sparse.sparsity.shrink import onnx_file
from robustbench_sparse.sparsity.shrink.measure import latencies
from robustbench_sparse.sparsity.shrink.proof import differences
from robustbench_sparse.sparsity.shrink.surgery import Shrunk, shrink_network, torch_pruning

PROOF_IMAGES = 512


def shrink(
    target: str | Path,
    out: Path,
    *,
    weights: str | Path | None = None,
    dataset: str | None = None,
    data_root: str | Path | None = None,
    changes: Sequence[str] = (),
    onnx: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Shrink a network, prove on test images that it is the same function, write it and its report.

    Args:
        target, weights: see ``targets.resolve_target``.
        out: file of the shrunk network, ``.safetensors``; the report goes beside it as ``.json``.
        dataset, data_root, changes: see ``targets.data_of``.
        onnx: also export to this file.
        force: write over files that are there.

    Returns:
        The report, plain values.

    Raises:
        UserError: bad arguments, or a shrunk network that computes something else. Nothing has been written then.
    """
    report_path = out.with_suffix(".json")
    _check_paths(out, report_path, onnx, force)
    torch_pruning()
    if onnx is not None:
        onnx_file.check_installed()
    found = resolve_target(target, weights, data_root)
    data = data_of(found, dataset, data_root, changes)
    if data is None:
        raise UserError("--dataset: expected the data set whose test images prove that nothing changes")
    images = images_of(data)
    like = next(found.model.parameters(), torch.empty(0))
    x = (data.test_x[:PROOF_IMAGES].float() / 255).to(like.dtype)
    small = shrink_network(found.model, x)
    proof = proven(found.model, small, x)
    notes = [] if small.removed else ["no dead channels were found: the network is as it was"]
    notes += small.notes
    exported: dict[str, Any] = {}
    graph = b""
    if onnx is not None:
        graph = onnx_file.exported(small.model, x)
        exported = {
            "file": str(onnx),
            "bytes": len(graph),
            "difference": onnx_file.verified(graph, small.model, x),
        }
        if is_stochastic(small.model):
            notes.append("the ONNX file holds the network with its noise off")
    record = {**found.record, "images": images}
    with (
        tempfile.TemporaryDirectory() as scratch
    ):  # a file that cannot be read back takes no other one's place
        trial = Path(scratch) / out.name
        save_shrunk(trial, small.model, record)
        again = load_shrunk(trial, None if "run" in record else copy.deepcopy(found.model))
        _same_weights(small.model, again, out)
    save_shrunk(out, small.model, record)
    if onnx is not None:
        onnx_file.write(onnx, graph)
    report = {
        "target": str(target),
        "file": str(out),
        "removed": {name: list(counts) for name, counts in small.removed.items()},
        "proof": proof,
        "before": _costs(found.model, images, _bytes_of(found)),
        "after": _costs(again, images, out.stat().st_size),
        "latency": latencies(found.model, again, x),
        "onnx": exported,
        "notes": notes,
    }
    write_json(report_path, report)
    return report


def proven(before: nn.Module, small: Shrunk, x: Tensor) -> dict[str, Any]:
    """What was compared, and how far apart the logits are.

    Raises:
        UserError: further than rounding explains.
    """
    worst, allowed = differences(before, small.model, x)
    if not worst <= allowed:
        raise UserError(
            f"refused: the shrunk network's logits are off by {worst:.1e} on {len(x)} test images, {allowed:.1e} is "
            "allowed; nothing was written"
        )
    return {"images": len(x), "difference": worst, "allowed": allowed, "noise": is_stochastic(before)}


def _check_paths(out: Path, report: Path, onnx: Path | None, force: bool) -> None:
    if out.suffix != ".safetensors":
        raise UserError(f"--output: expected a name that ends in .safetensors, got {out}")
    if onnx is not None and onnx.suffix != ".onnx":
        raise UserError(f"--onnx: expected a name that ends in .onnx, got {onnx}")
    check_free([path for path in (out, report, onnx) if path is not None], force)


def _same_weights(first: nn.Module, second: nn.Module, path: Path) -> None:
    a, b = first.state_dict(), second.state_dict()
    if a.keys() != b.keys() or not all(torch.equal(a[k].cpu(), b[k]) for k in a):
        raise UserError(f"{path}: reading the file back gave other weights; nothing was written")


def _bytes_of(found: Target) -> int:
    """Size of the file of weights; where there is none, of the one that would be written."""
    if found.weights is not None:
        return found.weights.stat().st_size
    return len(save({k: v.detach().cpu().contiguous() for k, v in found.model.state_dict().items()}))


def _costs(model: nn.Module, images: Mapping[str, int], size: int) -> dict[str, Any]:
    counts = count_sparsity(model, images["channels"], images["size"])
    names = ("parameters", "nonzero_parameters", "macs", "sparse_macs")
    return {**{name: counts[name] for name in names}, "bytes": size}

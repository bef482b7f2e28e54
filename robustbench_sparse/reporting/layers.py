"""The tables of the commands ``sparsity`` and ``shrink``: for the terminal, CSV and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.texts import printable, to_csv
from robustbench_sparse.reporting.render import from_rows, to_markdown, to_text
from robustbench_sparse.runs.targets import Target, data_of, images_of, resolve_target
from robustbench_sparse.sparsity.claims import against_asked
from robustbench_sparse.sparsity.counting import count_layers, count_sparsity, count_zeros

FORMATS = ("table", "csv", "markdown")
# Title, the key of what there is, the key of how much of it is zero; "" for a plain column.
_COUNTS = (
    ("channels", "channels", "zero_channels"),
    ("kernels", "kernels", "zero_kernels"),
    ("rows", "rows", "zero_rows"),
)
_TOTALS = ("weight", "linear", "channel", "kernel", "row")


def count(
    target: str | Path,
    *,
    weights: str | Path | None = None,
    dataset: str | None = None,
    data_root: str | Path | None = None,
    changes: Sequence[str] = (),
) -> dict[str, Any]:
    """Count the zeros of a network in the file that its weights come from.

    Args:
        target, weights: see ``targets.resolve_target``.
        dataset, data_root, changes: see ``targets.data_of``. Without a data set nothing can be said of
            multiplications.

    Returns:
        ``sparsity.count_sparsity``'s, with ``asked``, see ``claims.against_asked``.
    """
    found = resolve_target(target, weights, data_root)
    images = _images(found, dataset, data_root, changes)
    if images is None:
        layers = count_layers(found.model)
        counts: dict[str, Any] = {**count_zeros(found.model, layers), "layers": layers}
    else:
        try:
            counts = count_sparsity(found.model, images["channels"], images["size"])
        except RuntimeError as e:
            raise UserError(
                f"{target}: does not take images of {images}: {' '.join(str(e).split())}"
            ) from None
    return {**counts, "asked": against_asked(found.asked, counts["layers"])}


def _images(
    found: Target, dataset: str | None, data_root: str | Path | None, changes: Sequence[str]
) -> Mapping[str, int] | None:
    if found.images and dataset is None:
        return found.images
    data = data_of(found, dataset, data_root, changes)
    return None if data is None else images_of(data)


def layer_frame(counts: Mapping[str, Any]) -> pd.DataFrame:
    """One row per layer and a last one, ``total``; plain numbers, percentages in 0..100."""
    rows = [_row(layer) for layer in counts["layers"]]
    total: dict[str, Any] = {"name": "total", "kind": "", "shape": ""}
    for key in rows[0] if rows else ():
        if key not in total:
            values = [row[key] for row in rows if row[key] is not None]
            total[key] = sum(values) if values else None
    if rows:
        total["zero_percent"] = counts["weight_sparsity"]
    table: pd.DataFrame = pd.DataFrame([*rows, total])
    return table


def _row(layer: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": layer["name"] or "(network)",
        "kind": layer["kind"],
        "shape": "x".join(map(str, layer["shape"])),
        "weights": layer["weights"],
        "zero_weights": layer["zero_weights"],
        "zero_percent": 100 * layer["zero_weights"] / layer["weights"] if layer["weights"] else 0.0,
    }
    for title, whole, zero in _COUNTS:
        row |= {title: layer[whole], f"zero_{title}": layer[zero]}
    return {
        **row,
        "l1_norm": layer["l1_norm"],
        "macs": layer.get("macs"),
        "sparse_macs": layer.get("sparse_macs"),
    }


def show_counts(counts: Mapping[str, Any], form: str) -> str:
    """The layers, the totals and what was asked for, in one of ``FORMATS``."""
    frame = layer_frame(counts)
    if form == "csv":
        return to_csv(frame)
    texts, wholes = ["layer", "kind", "shape"], [title for title, _, _ in _COUNTS]
    heads = [*texts, "weights", "zero %", *wholes, "dense MACs", "sparse MACs"]
    rows = [
        [
            *(str(r[key]) for key in ("name", "kind", "shape")),
            _whole(r["weights"]),
            f"{r['zero_percent']:.2f}",
            *(f"{_whole(r[f'zero_{t}'])}/{_whole(r[t])}" if r[t] else "-" for t in wholes),
            _whole(r["macs"]),
            _whole(r["sparse_macs"]),
        ]
        for r in (frame.to_dict("records") if counts["layers"] else ())
    ]
    lines = [_grid(heads, rows, texts, form), ""]
    if form == "table":
        lines.insert(0, "Zero channels, kernels and rows of all; multiply-accumulates of one image.\n")
    totals = {k: counts[f"{k}_sparsity"] for k in _TOTALS if counts[f"{k}_sparsity"] is not None}
    names = {"linear": "weights of linear layers"}
    zero = ", ".join(f"{names.get(kind, f'{kind}s')} {share:.2f} %" for kind, share in totals.items())
    nonzero = _whole(counts["nonzero_parameters"])
    lines += [f"Zero {zero}.", f"Parameters {_whole(counts['parameters'])}, non-zero {nonzero}."]
    if "macs" not in counts:
        lines.append("Multiply-accumulates depend on the images: --dataset names them.")
    if counts["asked"]:
        heads = ["method", "of", "asked %", "counted %", "binding"]
        asked = []
        for a in counts["asked"]:
            shares = [f"{a['percent']:g}", f"{a['achieved']:.2f}"]
            asked.append([a["defense"], f"{a['kind']}s", *shares, "yes" if a["binding"] else "goal"])
        lines += ["", _grid(heads, asked, heads[:2], form)]
    return "\n".join(lines) + "\n"


def show_report(report: Mapping[str, Any], form: str) -> str:
    """What shrinking brought, in one of ``FORMATS``; the report is that of ``shrink.shrinking.shrink``."""
    before, after = report["before"], report["after"]
    names = {
        "parameters": "parameters",
        "macs": "dense MACs",
        "sparse_macs": "sparse MACs",
        "bytes": "bytes of the file",
    }
    rows: list[list[str]] = [
        [title, _whole(before[key]), _whole(after[key]), _ratio(before[key], after[key])]
        for key, title in names.items()
    ]
    for one in report["latency"]:
        threads = f", {one['threads']} threads" if one["threads"] else ""
        title = f"ms at batch {one['batch']} ({one['device']}{threads})"
        first, second = one["before_ms"], one["after_ms"]
        rows.append([title, f"{first:.3f}", f"{second:.3f}", _ratio(first, second)])
    heads = ["", "before", "after", "ratio"]
    if form == "csv":
        table = pd.DataFrame(rows, columns=["quantity", *heads[1:]])
        return to_csv(table)
    outputs = [[name, str(a), str(b)] for name, (a, b) in report["removed"].items()]
    proof, noise = report["proof"], ", noise off and equal noise on" if report["proof"]["noise"] else ""
    lines = [_grid(heads, rows, [""], form), ""]
    if outputs:
        lines += [_grid(["layer", "outputs before", "after"], outputs, ["layer"], form), ""]
    lines.append(
        f"Largest difference of the logits on {proof['images']} test images{noise}: {proof['difference']:.1e} "
        f"({proof['allowed']:.1e} allowed)."
    )
    if report["onnx"]:
        lines.append(
            f"ONNX: {_whole(report['onnx']['bytes'])} bytes; onnxruntime's logits differ by "
            f"{report['onnx']['difference']:.1e} at most."
        )
    lines += [f"Note: {printable(note)}." for note in report["notes"]]
    return "\n".join(lines) + "\n"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: Sequence[str], form: str) -> str:
    columns = from_rows(heads, rows, texts)
    return to_markdown(columns) if form == "markdown" else to_text(columns)


def _whole(value: Any) -> str:
    return "-" if value is None or pd.isna(value) else f"{int(value):,}".replace(",", " ")


def _ratio(before: float, after: float) -> str:
    return f"{before / after:.2f}" if after else "-"

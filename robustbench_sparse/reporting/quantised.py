"""What quantising brought and what it cost, as a text: sizes, times, and rates with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from robustbench_sparse.foundation.texts import printable
from robustbench_sparse.reporting.render import from_rows, to_markdown, to_text

_WAYS = ("float", "int8", "carried_over", "straight_through")


def rate_frame(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row for clean images, for each attack and for the worst of them, in percent; nan where there is no verdict.

    Args:
        report: that of ``quantising.quantise``.

    Returns:
        ``attack``; ``float``: the float network; ``int8``: the one in int8, against both of what follows; and of an
        attack ``carried_over``: on images that were made for the float network, and ``straight_through``: on images
        made for the one in int8 by the float network's gradients.
    """
    rows = []
    for label in ("clean", *report["attacks"], "worst"):
        both = report["attacks"].get(label) or report[label]
        cells = {way: (both.get(way) or {}).get("percent", float("nan")) for way in _WAYS}
        rows.append({"attack": label, **cells})
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def show_quantised(report: Mapping[str, Any], form: str) -> str:
    """The report as ``table`` or ``markdown``, or its rates as ``csv``."""
    if form == "csv":
        return rate_frame(report).to_csv(index=False)
    sizes = _grid(["", "float", "int8", "ratio"], _size_rows(report), [""], form)
    threads = report["latency"][0]["threads"]
    heads = ["batch", "torch, float: ms", "onnxruntime, float", "onnxruntime, int8"]
    names = ("torch_ms", "float_ms", "int8_ms")
    times = [[str(one["batch"]), *(f"{one[name]:.3f}" for name in names)] for one in report["latency"]]
    rates = _grid(["attack", *(way.replace("_", " ") for way in _WAYS)], _rate_rows(report), ["attack"], form)
    lines = [sizes, "", _grid(heads, times, [], form), "", rates, ""]
    lines.append(
        f"Times on {threads} threads. Percent right on {report['images']} images, 95 % Wilson intervals."
    )
    for label in ("clean", "worst"):
        if "difference" in report[label]:
            low, high = report[label]["difference_interval"]
            gap = f"{report[label]['difference']:+.2f} points, paired 95 % interval {low:+.2f} to {high:+.2f}"
            lines.append(f"int8 against float, {label}: {gap}.")
    lines.append(f"Both networks say the same of {report['agreement']:.2f} % of the clean images.")
    lines += [f"Note: {printable(note)}." for note in report["notes"]]
    return "\n".join(lines) + "\n"


def _size_rows(report: Mapping[str, Any]) -> list[list[str]]:
    size = report["size"]
    before, after = size["float_onnx"], size["int8_onnx"]
    file = size["weights_file"] or before["bytes"]
    tensors = sum(after[kind] for kind in ("int8", "int32", "float"))
    pairs = {
        "parameters": (size["parameters"], size["parameters_quantised"]),
        "bytes of the file": (file, after["bytes"]),
        "bytes of its numbers": (size["float_tensors"], tensors),
        "bytes of the file, packed": (size["float_packed"], after["packed"]),
    }
    return [[name, _whole(a), _whole(b), f"{a / b:.2f}"] for name, (a, b) in pairs.items()]


def _rate_rows(report: Mapping[str, Any]) -> list[list[str]]:
    def cell(rate: Mapping[str, float] | None) -> str:
        return "-" if rate is None else f"{rate['percent']:.1f} [{rate['low']:.1f}, {rate['high']:.1f}]"

    rows = []
    for label in ("clean", *report["attacks"], "worst"):
        both = report["attacks"].get(label) or report[label]
        rows.append([label, *(cell(both.get(way)) for way in _WAYS)])
    return rows


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: Sequence[str], form: str) -> str:
    columns = from_rows(heads, rows, texts)
    return to_markdown(columns) if form == "markdown" else to_text(columns)


def _whole(value: float) -> str:
    return f"{int(value):,}".replace(",", " ")

"""Why a row is believable or not: what every check did, found and means, as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.runs.certificate_record import failures, read_certificate

SYMBOLS = {"passed": "ok", "failed": "FAILED", "reported": "--", "skipped": "skipped"}


WIDTH = 100


def explain(run: Path, manifest: Mapping[str, Any], *, failed_only: bool = False) -> str:
    """What every check did, found and means, as text.

    Raises:
        UserError: where there is no certificate.
    """
    c = read_certificate(run, manifest)
    if not c.checks:
        hint = (
            "run the benchmark with `--certificate quick` or `evaluation: {certificate: quick}` in its file"
        )
        raise UserError(f"{run}: {c.note or 'no certificate'}; {hint}")
    counts = {s: sum(check["status"] == s for check in c.checks) for s in SYMBOLS}
    counts["failed"] = len(failures(c.checks))
    lines = [
        f"{run.name}: {c.verdict}",
        f"certificate {c.level}, {c.n} test images, {c.seconds:.0f} s: {counts['passed']} checks passed, "
        f"{counts['failed']} failed, {counts['reported']} reported, {counts['skipped']} did not apply",
    ]
    broken = sum(r < 0.5 for r in c.found.values())
    lines += [
        f"{broken} of these images are broken by the checks' own adversarials, which `worst` counts",
        "",
    ]
    for check in c.checks:
        if failed_only and not failures([check]):
            continue
        lines.append(f"{check['id']:<4}{SYMBOLS.get(check['status'], check['status']):<8}{check['title']}")
        parts = [
            ("done", check["done"]),
            ("found", measured_text(check["measured"])),
            ("note", check["why"]),
            ("rule", check["rule"] + (" (a failure refutes the row)" if check["refutes"] else "")),
            ("means", check["meaning"] if check["status"] != "skipped" else ""),
            ("next", check["advice"] if failures([check]) else ""),
            ("source", check["source"]),
        ]
        if check["status"] in ("passed", "reported"):
            parts = [("if not" if name == "means" else name, text) for name, text in parts]
        for name, text in parts:
            if text:
                lines += textwrap.wrap(
                    text, WIDTH, initial_indent=f"    {name:<8}", subsequent_indent=" " * 12
                )
        lines.append("")
    return "\n".join(lines)


def measured_text(measured: Mapping[str, Any]) -> str:
    """Figures as ``name value, name value``; shares in percent."""
    return ", ".join(f"{_name(k)} {_value(k, v)}" for k, v in measured.items())


def _name(key: str) -> str:
    for ending in ("_acc", "_share"):
        key = key.removesuffix(ending)
    return key.replace("_", " ")


def _value(key: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + " ".join(_value(key, v) for v in value) + "]" if value else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        share = key in ("acc", "tau") or key.endswith(("_acc", "_share")) or key.startswith("acc_")
        return f"{100 * value:.1f} %" if share else f"{value:.4g}"
    return "-" if value is None else str(value)

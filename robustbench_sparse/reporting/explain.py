"""Why a row is believable or not: what every check did, found and means, as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.runs.certificate_record import read_certificate
from robustbench_sparse.runs.challenges import has_challenges
from robustbench_sparse.runs.evidence import BELIEVABLE, CORRECTED, LEFT_OUT, TOLERANCE, Evidence, failures
from robustbench_sparse.runs.outcomes import Verdicts, verdicts

SYMBOLS = {
    "passed": "ok",
    "failed": "FAILED",
    "reported": "--",
    "skipped": "skipped",
    "left_out": "no time",
    "error": "ERROR",
}
BROKEN_OFF = "the check itself broke off: no evidence for the network, and none against it"


WIDTH = 100


def explain(run: Path, manifest: Mapping[str, Any], *, failed_only: bool = False) -> str:
    """What every check did, found and means, as text.

    Raises:
        UserError: where there is no certificate.
    """
    c = read_certificate(run, manifest)
    found = verdicts(run, manifest) if has_challenges(run) else None
    challenged = [] if found is None else challenged_text(found)
    if not c.checks and found is not None:
        return "\n".join([f"{run.name}: {found.verdict}; no certificate", *challenged, ""])
    if not c.checks:
        hint = (
            "run the benchmark with `--certificate quick` or `evaluation: {certificate: quick}` in its file"
        )
        raise UserError(f"{run}: {c.note or 'no certificate'}; {hint}")
    counts = {s: sum(check["status"] == s for check in c.checks) for s in SYMBOLS}
    counts["failed"] = len(failures(c.checks)) - counts["error"]
    broke_off = f", {counts['error']} broke off" if counts["error"] else ""
    lines = [
        f"{run.name}: {c.verdict if found is None else found.verdict}",
        f"certificate {c.level}, {c.n} test images, {c.seconds:.0f} s: {counts['passed']} checks passed, "
        f"{counts['failed']} failed, {counts['reported']} reported, {counts['skipped']} did not apply"
        f"{broke_off}",
    ]
    if c.left_out:
        lines += textwrap.wrap(f"{c.left_out}; what they would have said is not known", WIDTH)
    broken = sum(r < 0.5 for r in c.found.values())
    lines += [
        f"{broken} of these images are broken by the checks' own adversarials, which `worst` counts",
        *(textwrap.fill(text, WIDTH) for text in evidence_text(c.evidence, c.n)),
        *challenged,
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
            ("means", _meaning(check)),
            ("next", check["advice"] if failures([check]) and check["status"] != "error" else ""),
            ("source", check["source"]),
        ]
        if check["status"] in ("passed", "reported"):
            parts = [("if not" if name == "means" else name, text) for name, text in parts]
        for name, text in parts:
            if text:
                lines += textwrap.wrap(
                    text, WIDTH, initial_indent=f"    {name:<8}", subsequent_indent=" " * 12
                )
        traceback = str(check.get("traceback", "")).splitlines()
        lines += [f"    {'raised' if i == 0 else '':<8}{one_line(text)}" for i, text in enumerate(traceback)]
        lines.append("")
    return "\n".join(lines)


def challenged_text(found: Verdicts) -> list[str]:
    """Who lowered the number with adversarials of their own, line by line."""
    lines = [c.said() for c in found.challenges]
    if found.challenged and found.certificate.verdict == BELIEVABLE:
        lines.append(f"They lower the number by more than chance, and it counts them: {found.verdict}.")
    return [part for text in lines for part in textwrap.wrap(text, WIDTH)]


def evidence_text(e: Evidence, n: int) -> list[str]:
    """What failed checks come to, in sentences: whether the number was lowered, what that answers, what it does not."""
    out = []
    if e.lowered and e.reported is not None and e.worst is not None:
        out.append(
            f"The checks' adversarials lower the number from {100 * e.reported:.1f} to {100 * e.worst:.1f} % on these "
            f"{n} images. `worst` is the rate on them alone, as the other test images were not attacked like that."
        )
    if e.answered:
        why = "the number explains what they found"
        if e.nothing_left:
            why = f"by no more than chance are over {100 * TOLERANCE:g} % of the images left to break"
        out.append(f"Failed, and answered, since {why}: {', '.join(e.answered)}.")
    if e.doubts:
        named = ", ".join(f"{c['id']} ({c['title']})" for c in e.doubts)
        out.append(f"Still in doubt: {named}.")
    elif e.verdict == CORRECTED and not e.nothing_left:
        out.append(
            "Still in doubt: whether a stronger attack would find more than the one that lowered the number."
        )
    return out


def _meaning(check: Mapping[str, Any]) -> str:
    if check["status"] == "error":
        return BROKEN_OFF
    return str(check["meaning"]) if check["status"] not in ("skipped", LEFT_OUT) else ""


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

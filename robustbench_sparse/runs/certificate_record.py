"""Reading a certificate back: for the leaderboard, and for people who ask why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.runs import names
from robustbench_sparse.runs.seals import Seals

BELIEVABLE, DOUBTFUL, REFUTED, NOT_CHECKED = "believable", "doubtful", "refuted", "not checked"
# From the best to the worst; a row without a verdict is no better than a doubtful one.
VERDICTS = (BELIEVABLE, NOT_CHECKED, DOUBTFUL, REFUTED)
FORMAT = 1
# Of each check's record.
TEXTS = ("id", "title", "source", "rule", "meaning", "advice", "status", "done", "why")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a run's folder says of its certificate.

    Attributes:
        verdict: one of ``VERDICTS``.
        flags: ids of the checks that failed.
        found: adversarials of the checks: image's index -> the smallest share of draws right; inside the ball.
        n: number of images the checks looked at.
        checks: the records of all checks, in order.
        note: why there is no verdict, or an empty string.
    """

    verdict: str = NOT_CHECKED
    flags: tuple[str, ...] = ()
    found: Mapping[int, float]
    n: int = 0
    checks: tuple[Mapping[str, Any], ...] = ()
    level: str = "off"
    seconds: float = 0.0
    note: str = ""


def verdict_of(checks: Sequence[Mapping[str, Any]]) -> str:
    """The verdict that findings come to: one refuting failure refutes, any other failure leaves a doubt."""
    failed = failures(checks)
    if any(c["refutes"] for c in failed):
        return REFUTED
    return DOUBTFUL if failed else BELIEVABLE


def failures(checks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Checks that failed; one whose status is no status has not passed."""
    return [c for c in checks if c["status"] not in ("passed", "reported", "skipped")]


def read_certificate(run: Path, manifest: Mapping[str, Any]) -> Certificate:
    """A run's certificate, or one without a verdict: where there is none, or it was made for other outcomes.

    Args:
        run: the run's folder.
        manifest: the benchmark's, see ``outcomes.read_manifest``.

    Raises:
        UserError: a damaged file.
    """
    level = manifest.get("certificate", "off")
    if level == "off":
        return Certificate(found={})
    path, seals = run / names.CERTIFICATE, Seals(run)
    if not seals.has(*names.CERTIFIED):
        return Certificate(found={}, level=level, note="incomplete: certificate")
    seals.check(*names.CERTIFIED)
    about = read_json(path)
    try:
        key, checks = about["key"], about["checks"]
        stale = (
            about["format"] != FORMAT
            or key["level"] != level
            or key["threat"] != dict(manifest["threat"])
            or key["attacks"] != dict(manifest.get("settings", {}))
        )
        if seals.has(names.account(names.CLEAN)):
            stale = stale or read_json(run / names.account(names.CLEAN))["key"]["identity"] != key["identity"]
        if stale:
            return Certificate(
                found={}, level=level, note="incomplete: certificate (made for other outcomes)"
            )
        table = pd.read_csv(run / names.FOUND)
        found = {int(i): float(r) for i, r in zip(table["index"], table["right"], strict=True)}
        if not all(0 <= r <= 1 for r in found.values()):
            raise ValueError("found.csv: expected shares in [0, 1]")
        _check_records(checks)
        return Certificate(
            verdict=verdict_of(checks),
            flags=tuple(str(c["id"]) for c in failures(checks)),
            found=found,
            n=int(about["n"]),
            checks=tuple(checks),
            level=level,
            seconds=float(about["seconds"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as e:
        raise UserError(f"{path}: damaged: {type(e).__name__}: {one_line(e)}") from None


def _check_records(checks: Any) -> None:
    """ValueError unless every check is recorded as ``certify`` writes it."""
    kinds = {**dict.fromkeys(TEXTS, str), "measured": dict, "refutes": bool}
    for check in checks if isinstance(checks, list) else [checks]:
        if not isinstance(check, dict) or any(
            not isinstance(check.get(k), kind) for k, kind in kinds.items()
        ):
            raise ValueError(f"checks: expected records of checks, got {str(check)[:80]}")


def worst_verdict(verdicts: list[str]) -> str:
    """The least trustworthy of several rows' verdicts."""
    return max(verdicts, key=VERDICTS.index) if verdicts else NOT_CHECKED

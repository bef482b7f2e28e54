"""Reading a certificate back: for the leaderboard, and for people who ask why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustbench_sparse.config.protocol import own_digest
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.runs import names
from robustbench_sparse.runs.evidence import NOT_CHECKED, NOTHING, Evidence, failures, weigh
from robustbench_sparse.runs.seals import Seals

FORMAT = 1
IMAGE_SEED = 20_004  # a constant: all rows of a benchmark are examined on the same images
# Of each check's record.
TEXTS = ("id", "title", "source", "rule", "meaning", "advice", "status", "done", "why")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a run's folder says of its certificate.

    Attributes:
        verdict: one of ``evidence.VERDICTS``.
        flags: ids of the checks that failed.
        found: adversarials of the checks: image's index -> the smallest share of draws right; inside the ball.
        n: number of images the checks looked at.
        images: their positions in the data set, where the file says so; see ``examined``.
        checks: the records of all checks, in order.
        evidence: the findings, weighed.
        version: of the set of checks, see ``config.protocol``.
        budget_s: the budget of time that made it leave checks out; None where it left none out.
        own: a hash of the user's own checks that were made beside; empty where there were none.
        note: why there is no verdict, or an empty string.
    """

    verdict: str = NOT_CHECKED
    flags: tuple[str, ...] = ()
    found: Mapping[int, float]
    n: int = 0
    images: tuple[int, ...] = ()
    checks: tuple[Mapping[str, Any], ...] = ()
    evidence: Evidence = NOTHING
    level: str = "off"
    version: int = 1
    seconds: float = 0.0
    budget_s: int | None = None
    own: str = ""
    note: str = ""

    @property
    def left_out(self) -> str:
        """What a budget of time left out, as text; empty where it is nothing."""
        names = self.evidence.left_out
        if not names:
            return ""
        return f"{len(names)} of {len(self.checks)} checks left out, {self.budget_s} s: {' '.join(names)}"

    def examined(self, index: Sequence[int]) -> list[int]:
        """Which of the test images the checks looked at, as places in their order.

        Args:
            index: the test images' positions in the data set.
        """
        if not self.images:  # of an earlier version
            return chosen_places(len(index), self.n)
        mine = set(self.images)
        return [place for place, i in enumerate(index) if i in mine]


def chosen_places(images: int, count: int) -> list[int]:
    """Places within the test part of the images that are examined: a fixed random choice, ascending."""
    order = np.random.RandomState(IMAGE_SEED).permutation(images)[:count]
    return [int(place) for place in np.sort(order)]


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
        n = int(about["n"])
        evidence = weigh(checks, n)
        return Certificate(
            verdict=evidence.verdict,
            flags=tuple(str(c["id"]) for c in failures(checks)),
            found=found,
            n=n,
            images=tuple(int(i) for i in about.get("images", ())),
            checks=tuple(checks),
            evidence=evidence,
            level=level,
            version=int(about.get("version", 1)),
            seconds=float(about["seconds"]),
            budget_s=int(about["spending"]["budget_s"]) if evidence.left_out else None,
            own=own_digest(key["checks"]) if key.get("checks") else "",
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

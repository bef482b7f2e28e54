"""What stands behind a row's verdict, and what would mend it: for the badge of the leaderboard, and the run's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.pages.boards import Entry
from robustbench_sparse.reporting.explain import BROKEN_OFF, SYMBOLS, evidence_text, measured_text
from robustbench_sparse.runs.certificate_record import Certificate, read_certificate
from robustbench_sparse.runs.evidence import LEFT_OUT, failures

# Check's id -> its title, meaning and advice: what a table alone says of its flags.
Known = Mapping[str, tuple[str, str, str]]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One check as it is shown. ``repair`` is empty where there is nothing to mend."""

    id: str
    title: str
    status: str
    failed: bool
    done: str = ""
    found: str = ""
    note: str = ""
    rule: str = ""
    means: str = ""
    repair: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Why a row has its verdict.

    Attributes:
        verdict: as in the table.
        about: sentences: what was done, and what the findings come to.
        items: all checks, in order; of a table alone those that failed.
    """

    verdict: str
    about: Sequence[str]
    items: Sequence[Item]

    @property
    def failed(self) -> list[Item]:
        """The checks that did not pass."""
        return [item for item in self.items if item.failed]


def proof_of(entry: Entry, known: Known) -> Proof | None:
    """A row's evidence; None where the task has no checks.

    Args:
        entry: the row.
        known: what each check asks, for rows whose certificate is not here.
    """
    verdict = str(entry.row.get("verdict", ""))
    if not verdict:
        return None
    certificate = _certificate(entry)
    if certificate is not None and certificate.checks:
        return Proof(
            verdict=verdict, about=_about(certificate), items=[_item(check) for check in certificate.checks]
        )
    flags = str(entry.row.get("flags", "")).split()
    items = [_flag(flag, known) for flag in flags]
    if items:
        about = [
            "The row's certificate is not part of this report: which checks failed is known, what they found is not."
        ]
    elif verdict == "not checked":
        about = [
            "Nothing examined this row: run its benchmark with --certificate quick, or evaluate with it."
        ]
    else:
        about = ["No check failed. The certificate itself is not part of this report."]
    return Proof(verdict=verdict, about=about, items=items)


def _certificate(entry: Entry) -> Certificate | None:
    if entry.folder is None or not entry.manifest:
        return None
    try:
        return read_certificate(entry.folder, entry.manifest)
    except UserError as e:
        return Certificate(found={}, note=one_line(e))


def _about(c: Certificate) -> list[str]:
    counts = {status: sum(check["status"] == status for check in c.checks) for status in SYMBOLS}
    broken = sum(share < 0.5 for share in c.found.values())
    return [
        f"Certificate {c.level}, {c.n} test images, {c.seconds:.0f} s: {counts['passed']} checks passed, "
        f"{len(failures(c.checks))} did not, {counts['reported']} only reported, {counts['skipped']} did not apply.",
        *([f"{c.left_out}; what they would have said is not known."] if c.left_out else []),
        f"{broken} of these images are broken by the checks' own adversarials, which the worst case counts.",
        *evidence_text(c.evidence, c.n),
    ]


def _item(check: Mapping[str, Any]) -> Item:
    failed, status = bool(failures([check])), str(check["status"])
    made = status not in ("skipped", LEFT_OUT)
    return Item(
        id=check["id"],
        title=check["title"],
        status={
            "passed": "passed",
            "reported": "reported",
            "skipped": "did not apply",
            LEFT_OUT: "no time",
            "error": "broke off",
        }.get(status, "failed"),
        failed=failed,
        done=check["done"],
        found=measured_text(check["measured"]),
        note=check["why"],
        rule=check["rule"] + (" (a failure refutes the row)" if check["refutes"] else ""),
        means=(BROKEN_OFF if status == "error" else check["meaning"]) if made else "",
        repair=check["advice"] if failed and status != "error" else "",
        source=check["source"],
    )


def _flag(flag: str, known: Known) -> Item:
    title, means, repair = known.get(flag, ("", "", ""))
    return Item(
        id=flag,
        title=title or "a check of another version",
        status="failed",
        failed=True,
        means=means,
        repair=repair,
    )

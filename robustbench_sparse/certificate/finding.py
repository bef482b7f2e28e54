"""What a check is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from robustbench_sparse.foundation.errors import UserError

if TYPE_CHECKING:
    from robustbench_sparse.certificate.subject import Subject

# reported: a figure without a rule of its own; skipped: the check does not apply here, and `why` says so.
Status = Literal["passed", "failed", "reported", "skipped"]
Value = float | int | str | bool | None | list[int] | list[float] | list[str]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found on one network.

    Attributes:
        status: the rule's outcome.
        done: what was done, with its numbers, in one sentence.
        measured: the figures the rule looks at, by name; shares in [0, 1] are named ``..._acc`` or ``..._share``.
        why: for a skipped check the reason; else empty or a remark.
    """

    status: Status
    done: str = ""
    measured: Mapping[str, Value] = field(default_factory=dict)
    why: str = ""

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "measured": dict(self.measured)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Finding:
        """Back from plain values."""
        try:
            return cls(**record)
        except TypeError:
            raise UserError(f"a finding is damaged: {record!r}") from None


def skipped(why: str) -> Finding:
    """A check that does not apply here."""
    return Finding(status="skipped", why=why)


def ruled(passes: bool, done: str, measured: Mapping[str, Value], why: str = "") -> Finding:
    """A check whose rule was applied."""
    return Finding(status="passed" if passes else "failed", done=done, measured=measured, why=why)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check of the certificate.

    Attributes:
        id: its name in the leaderboard's ``flags``.
        title: what is asked, in a few words.
        source: where the check and its threshold come from.
        rule: when it passes.
        meaning: what a failure means.
        advice: what to do next.
        run: does it.
        refutes: a failure shows the row's number to be wrong, where others only give reason to doubt it.
    """

    id: str
    title: str
    source: str
    rule: str
    meaning: str
    advice: str
    run: Callable[[Subject], Finding]
    refutes: bool = False

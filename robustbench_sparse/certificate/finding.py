"""What a check is, and what it finds."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from robustbench_sparse.foundation.errors import UserError, one_line

if TYPE_CHECKING:
    from robustbench_sparse.certificate.subject import Subject

# reported: a figure without a rule of its own; skipped: the check does not apply here, and `why` says so; left_out: it
# was not made, as the budget of seconds did not reach so far; error: the check itself broke off, which says nothing for
# the network and nothing against it.
Status = Literal["passed", "failed", "reported", "skipped", "left_out", "error"]
DEEPEST = 12  # calls of a traceback that are kept, the innermost ones
TORCH_CALLS = "torch/nn/modules/module.py"  # stands between any two modules and says nothing
Value = float | int | str | bool | None | list[int] | list[float] | list[str]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found on one network.

    Attributes:
        status: the rule's outcome.
        done: what was done, with its numbers, in one sentence.
        measured: the figures the rule looks at, by name; shares in [0, 1] are named ``..._acc`` or ``..._share``.
        why: for a skipped check the reason; else empty or a remark.
        traceback: where a check broke off, as text; else empty.
    """

    status: Status
    done: str = ""
    measured: Mapping[str, Value] = field(default_factory=dict)
    why: str = ""
    traceback: str = ""

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


def left_out(seconds: float) -> Finding:
    """A check that was not made for want of time; ``seconds`` is what it would have taken."""
    return Finding(status="left_out", why=f"no time left: about {seconds:.1f} s")


def broken_off(e: BaseException) -> Finding:
    """A check that could not be made to its end because something was raised; its traceback without folders."""
    frames = [f for f in traceback.extract_tb(e.__traceback__) if not f.filename.endswith(TORCH_CALLS)]
    lines = [
        f"{_place(f.filename)}:{f.lineno} in {f.name}: {f.line or ''}".rstrip(": ") for f in frames[-DEEPEST:]
    ]
    what = f"{type(e).__name__}: {one_line(e)[:300]}"
    return Finding(status="error", done=f"the check broke off: {what}", traceback="\n".join([*lines, what]))


def _place(path: str) -> str:
    """A file's path from its package on: where a machine keeps its packages is no one's business."""
    parts = PurePath(path).parts
    for known in ("site-packages", "dist-packages"):
        if known in parts:
            return "/".join(parts[len(parts) - parts[::-1].index(known) :])
    for known in ("robustbench_sparse", "attacks", "defenses"):
        if known in parts:
            return "/".join(parts[len(parts) - 1 - parts[::-1].index(known) :])
    return parts[-1] if parts else ""


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

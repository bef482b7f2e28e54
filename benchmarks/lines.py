"""A line of the result: what was measured on both sides, what was asked for, whether it was reached."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.timing import Spread


@dataclass(frozen=True)
class Target:
    """What a number has to be: the ratio, our own number, or a number that the line carries beside them."""

    op: Literal[">=", "<=", "<"]
    value: float
    unit: str = "x"

    def met(self, got: float) -> bool:
        """Whether a number is as wanted."""
        if self.op == "<":
            return got < self.value
        return got >= self.value if self.op == ">=" else got <= self.value

    def __str__(self) -> str:
        return f"{self.op} {self.value:g} {self.unit}"


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        what: what both sides did.
        unit: of the two measurements, as ``images/s``.
        ours, theirs: the measurements; None where there is none.
        peer: who the other side is; empty for a line without one.
        ratio: how many times faster ours is, or, where the line says so, how many times dearer.
        target: what was asked for, or None.
        got: the number held against the target.
        agreement: how far the two sides' verdicts agree.
        note: what a reader has to know.
        failed: why there is no measurement, else empty.
        row: key of the row the line belongs to.
    """

    what: str
    unit: str = ""
    ours: Spread | None = None
    peer: str = ""
    theirs: Spread | None = None
    ratio: float | None = None
    target: Target | None = None
    got: float | None = None
    agreement: str = ""
    note: str = ""
    failed: str = ""
    row: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None without a target or a number."""
        return None if self.target is None or self.got is None else self.target.met(self.got)

    def within(self, row: str) -> Line:
        """The same line, under its row's key."""
        return replace(self, row=row)


def absent(what: str, name: str) -> Line:
    """A line for a peer that cannot be measured."""
    return Line(what, peer=name, note=f"{name} is not installed: pip install -e '.[bench]'")


def faster(
    what: str,
    unit: str,
    ours: Spread,
    peer: str,
    theirs: Spread,
    *,
    at_least: float | None = None,
    agreement: str = "",
    note: str = "",
) -> Line:
    """How many times faster ours is: rates where the unit is one per second, else times."""
    rates = unit.endswith("/s")
    ratio = ours.median / theirs.median if rates else theirs.median / ours.median
    target = None if at_least is None else Target(">=", at_least)
    return Line(what, unit, ours, peer, theirs, ratio, target, ratio, agreement, note)


def dearer(
    what: str, unit: str, ours: Spread, peer: str, theirs: Spread, *, at_most: float | None, note: str = ""
) -> Line:
    """How many times the peer's time ours takes."""
    ratio = ours.median / theirs.median
    target = None if at_most is None else Target("<=", at_most)
    return Line(what, unit, ours, peer, theirs, ratio, target, ratio, "", note)


def number(value: float) -> str:
    """Three significant digits, and no exponent."""
    size = abs(value)
    for limit, digits in ((1e-12, 0), (0.001, 6), (0.01, 5), (0.1, 4), (1, 3), (10, 2), (100, 1)):
        if size < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"

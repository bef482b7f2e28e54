"""Images of another size: resolution stability, Roith's thesis, section 1.4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from torch import Tensor

from attacks.base import SampleRandom, check
from robustbench_sparse.foundation.interpolation import Interpolation, interpolated
from robustbench_sparse.shifts.base import Shift

LARGEST = 4096


@dataclass(frozen=True, kw_only=True)
class Resolution(Shift):
    """The same image with another number of pixels; the network has to take it as it is.

    Args:
        size: pixels of a side, 1 to 4096.
        interpolation: ``bilinear``, or ``trigonometric``, whose overshoots beyond [0, 1] are clamped.
    """

    key: ClassVar[str] = "resolution"

    size: int
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        check(1 <= self.size <= LARGEST, "size", f"an integer from 1 to {LARGEST}", self.size)
        known = get_args(Interpolation)
        check(self.interpolation in known, "interpolation", " or ".join(known), self.interpolation)

    def apply(self, x: Tensor, random: SampleRandom) -> Tensor:
        """(1, C, H, W) -> (1, C, size, size); nothing is drawn."""
        return interpolated(x, self.size, self.interpolation)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """``size`` twice."""
        return self.size, self.size

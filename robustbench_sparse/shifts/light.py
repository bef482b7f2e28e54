"""Contrast and brightness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attacks.base import SampleRandom
from robustbench_sparse.shifts.base import Corruption


@dataclass(frozen=True, kw_only=True)
class Contrast(Corruption):
    """c (x - m) + m, m the mean of each channel, c = 0.75, 0.5, 0.4, 0.3, 0.15: the published setting at any size.

    Args:
        severity: 1 to 5.
    """

    key: ClassVar[str] = "contrast"

    def apply(self, x: Tensor, random: SampleRandom) -> Tensor:
        """(1, C, H, W) -> (1, C, H, W)."""
        mean = x.mean((2, 3), keepdim=True)
        return self.chosen((0.75, 0.5, 0.4, 0.3, 0.15)) * (x - mean) + mean


@dataclass(frozen=True, kw_only=True)
class Brightness(Corruption):
    """x + c, clamped to [0, 1], c = 0.05, 0.1, 0.15, 0.2, 0.3.

    The published set adds c to the value V of HSV: the same on grey images; coloured ones keep their saturation there,
    and become paler here.

    Args:
        severity: 1 to 5.
    """

    key: ClassVar[str] = "brightness"

    def apply(self, x: Tensor, random: SampleRandom) -> Tensor:
        """(1, C, H, W) -> (1, C, H, W)."""
        return x + self.chosen((0.05, 0.1, 0.15, 0.2, 0.3))

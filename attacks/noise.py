"""Gaussian noise, the weakest baseline: no adversary at all (the column "noise" of CLIP's table, Bungert et al.
2021, https://arxiv.org/abs/2103.12531).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from attacks.base import Attack, SampleRandom, Threat, check


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Attack):
    """WEAK baseline: x + N(0, sigma^2), clipped to [0, 1]; knows neither network nor label, stays in no ball.

    Args:
        target: ``none``; noise has no aim.
        reference: what decides whether an image is broken; see :class:`attacks.base.Attack`.
        sigma: standard deviation in pixel units, > 0.
    """

    weak: ClassVar[bool] = True
    bounded: ClassVar[bool] = False
    sigma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.target == "none", "target", "none, as noise has no aim", self.target)
        check(self.sigma > 0 and math.isfinite(self.sigma), "sigma", "a finite number > 0", self.sigma)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Noisy images (B, C, H, W)."""
        return (x + self.sigma * random.normal(x)).clamp(0, 1)

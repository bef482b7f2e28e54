"""Noise: Gaussian, shot and impulse, with the settings of CIFAR-10-C (Hendrycks & Dietterich 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.base import SampleRandom
from robustbench_sparse.shifts.base import Corruption


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Corruption):
    """x + N(0, sigma^2) at every value, sigma = 0.04, 0.06, 0.08, 0.09, 0.10: the published setting at any size.

    Args:
        severity: 1 to 5.
    """

    key: ClassVar[str] = "gaussian_noise"

    def apply(self, x: Tensor, random: SampleRandom) -> Tensor:
        """(1, C, H, W) -> (1, C, H, W)."""
        return x + self.chosen((0.04, 0.06, 0.08, 0.09, 0.10)) * random.normal(x)


@dataclass(frozen=True, kw_only=True)
class ShotNoise(Corruption):
    """Poisson(c x) / c at every value, c = 500, 250, 100, 75, 50 photons: the published setting at any size.

    Args:
        severity: 1 to 5.
    """

    key: ClassVar[str] = "shot_noise"

    def apply(self, x: Tensor, random: SampleRandom) -> Tensor:
        """(1, C, H, W) -> (1, C, H, W)."""
        photons = self.chosen((500.0, 250.0, 100.0, 75.0, 50.0))
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        # On the CPU, as every draw: the same numbers on every device.
        return (torch.poisson(x.cpu() * photons, generator=generator) / photons).to(x)


@dataclass(frozen=True, kw_only=True)
class ImpulseNoise(Corruption):
    """A share p = 1, 2, 3, 5, 7 % of all values becomes 0 or 1, as often each: the published setting at any size.

    Args:
        severity: 1 to 5.
    """

    key: ClassVar[str] = "impulse_noise"

    def apply(self, x: Tensor, random: SampleRandom) -> Tensor:
        """(1, C, H, W) -> (1, C, H, W)."""
        share = self.chosen((0.01, 0.02, 0.03, 0.05, 0.07))
        draw = random.uniform(x)
        x = torch.where(draw < share / 2, torch.zeros_like(x), x)
        return torch.where(draw >= 1 - share / 2, torch.ones_like(x), x)

"""Blur: by a Gaussian, and as out of focus."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, from_numpy

from attacks.base import SampleRandom
from robustbench_sparse.shifts.base import Corruption, scale

FINE = 16  # points along a pixel's side at which a disk is looked at


@dataclass(frozen=True, kw_only=True)
class GaussianBlur(Corruption):
    """Convolution with a Gaussian, cut off at 4 sigma; pixels at the border go on outside.

    sigma = 0.4, 0.6, 0.7, 0.8, 1 pixels of an image of 32 x 32, as published; on N x N pixels N / 32 times that.

    Args:
        severity: 1 to 5.
    """

    key: ClassVar[str] = "gaussian_blur"

    def apply(self, x: Tensor, random: SampleRandom) -> Tensor:
        """(1, C, H, W) -> (1, C, H, W)."""
        from scipy import ndimage  # slow to import

        sigma = self.chosen((0.4, 0.6, 0.7, 0.8, 1.0)) * scale(x)
        out = ndimage.gaussian_filter(x.cpu().numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4)
        return from_numpy(out).to(x)


@dataclass(frozen=True, kw_only=True)
class DefocusBlur(Corruption):
    """Convolution with a disk of radius 0.8, 1, 1.3, 1.6, 2 pixels of an image of 32 x 32; N / 32 times that on N x N.

    Not the published settings: these smooth disks of radius 0.3 to 1.5, of which those below 1 are a single pixel, by a
    Gaussian cut off after one pixel. Here a pixel counts by the share of it that lies in the disk.

    Args:
        severity: 1 to 5.
    """

    key: ClassVar[str] = "defocus_blur"

    def apply(self, x: Tensor, random: SampleRandom) -> Tensor:
        """(1, C, H, W) -> (1, C, H, W)."""
        from scipy import ndimage  # slow to import

        kernel = disk(self.chosen((0.8, 1.0, 1.3, 1.6, 2.0)) * scale(x))
        out = ndimage.convolve(x.cpu().numpy(), kernel[None, None], mode="nearest")
        return from_numpy(out).to(x)


def disk(radius: float) -> npt.NDArray[np.float64]:
    """A disk of that many pixels around the middle of a square of pixels, of sum 1; odd side."""
    half = math.ceil(radius)
    place = (np.arange((2 * half + 1) * FINE) + 0.5) / FINE - half - 0.5
    inside = place[:, None] ** 2 + place**2 <= radius**2
    share = inside.reshape(2 * half + 1, FINE, 2 * half + 1, FINE).mean((1, 3))
    kernel: npt.NDArray[np.float64] = share / share.sum()
    return kernel

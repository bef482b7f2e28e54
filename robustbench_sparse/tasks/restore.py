"""Restoration: the input is a degraded image, the target the clean one; BREG-I 4.6 and Bungert et al. 2021, 4.1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.base import NoiseSource, check
from attacks.losses import squared_error
from robustbench_sparse.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Restore(Task):
    """Give the clean image back: blurred first, where a blur is set, then with Gaussian noise added.

    A blur is the convolution with a Gaussian on a ``blur_size`` x ``blur_size`` grid, of sum 1, with zeros around the
    image. Noise may leave [0, 1], as measured values do; ``clip`` cuts it off. The images of the validation and test
    parts are degraded once and for all, the same in every run and seed.

    Args:
        noise: standard deviation of the noise, in units of the pixel range, >= 0.
        blur_size: side of the blur's kernel in pixels, an odd integer >= 1; 1 does not blur.
        blur_sigma: standard deviation of the blur in pixels, > 0.
        clip: clamp inputs to [0, 1].
        training_noise: ``fresh`` draws it anew whenever an image is trained on, ``once`` keeps one draw per image and
            run, as the authors of Bungert et al. 2021 did.
    """

    key: ClassVar[str] = "restore"
    measured: ClassVar[str] = "mse"
    percent: ClassVar[bool] = False
    larger_is_better: ClassVar[bool] = False

    noise: float = 0.0
    blur_size: int = 1
    blur_sigma: float = 1.0
    clip: bool = False
    training_noise: Literal["fresh", "once"] = "fresh"

    def __post_init__(self) -> None:
        check(0 <= self.noise < math.inf, "noise", "a finite number >= 0", self.noise)
        check(
            self.blur_size >= 1 and self.blur_size % 2 == 1,
            "blur_size",
            "an odd integer >= 1",
            self.blur_size,
        )
        check(0 < self.blur_sigma < math.inf, "blur_sigma", "a finite number > 0", self.blur_sigma)

    @property
    def redraws(self) -> bool:
        """Whether a training image's noise is drawn anew whenever it is trained on."""
        return self.training_noise == "fresh"

    def classes(self, count: int) -> int | None:
        """None: the network gives images."""
        return None

    def pair(self, x: Tensor, y: Tensor, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """Degraded images and clean ones, both (B, C, H, W)."""
        return self.degraded(x, noise), x

    def degraded(self, x: Tensor, noise: NoiseSource) -> Tensor:
        """Blur, then noise; (B, C, H, W) -> (B, C, H, W)."""
        out = blurred(x, self.blur_size, self.blur_sigma) if self.blur_size > 1 else x
        if self.noise > 0:
            out = torch.add(out, noise.normal(out), alpha=self.noise)
        return out.clamp(0, 1) if self.clip else out

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error over all pixels of all images."""
        return F.mse_loss(outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error of each image, (B,)."""
        return squared_error(outputs, targets)


def blurred(x: Tensor, size: int, sigma: float) -> Tensor:
    """Images (B, C, H, W) blurred by a Gaussian on a ``size`` x ``size`` grid, of sum 1, zeros around the image.

    The kernel is a product: one pass down, one across.
    """
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    line = torch.exp(-(place**2) / (2 * sigma**2))
    line = (line / line.sum()).to(x)
    channels, half = x.shape[1], size // 2
    down = line.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    across = line.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    x = F.conv2d(x, down, padding=(half, 0), groups=channels)
    return F.conv2d(x, across, padding=(0, half), groups=channels)

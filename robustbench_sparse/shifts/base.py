"""What every shift stands on: images in, images out, each by itself and by its own random stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from attacks.base import SampleRandom, check

PUBLISHED_SIZE = 32  # side of the images that the published settings are for
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Shift(ABC):
    """Another look of the same images, without an adversary. A subclass writes ``apply``.

    A shift knows neither network nor label. What it makes of an image depends on the image and its stream alone: not on
    the batch, to the last bit.
    """

    key: ClassVar[str]

    def __call__(self, x: Tensor, random: SampleRandom) -> Tensor:
        """Shift a batch.

        Args:
            x: images in [0, 1], (B, C, H, W), float32 or float64.
            random: the images' random streams.

        Returns:
            Images in [0, 1], (B, C, H, W), or (B, C, S, S) where the shift has a size of its own.

        Raises:
            ValueError: for anything else than such images, another number of streams, or a shift that gives something
                else.
        """
        fine = x.ndim == 4 and x.dtype in (torch.float32, torch.float64)
        check(fine, "x", "float32 or float64 images (B, C, H, W)", (x.dtype, tuple(x.shape)))
        check(len(random) == len(x), "random", f"{len(x)} random streams", len(random))
        if len(x) == 0:
            return x.new_zeros(0, x.shape[1], *self.shape(*x.shape[2:]))
        low, high = x.min().item(), x.max().item()
        check(low >= 0 and high <= 1, "x", "values in [0, 1]", (low, high))
        # One by one: sums of a whole batch may round differently than those of its parts.
        x = x.contiguous()
        out = [self.apply(x[i : i + 1], random.subset(torch.tensor([i]))) for i in range(len(x))]
        expected = (1, x.shape[1], *self.shape(*x.shape[2:]))
        for image in out:
            check(image.shape == expected, "apply", f"an image of shape {expected}", tuple(image.shape))
        return torch.cat(out).to(x).clamp(0, 1)

    @abstractmethod
    def apply(self, x: Tensor, random: SampleRandom) -> Tensor:
        """One image (1, C, H, W) in [0, 1], shifted; values outside are clamped. ``random`` holds one stream."""

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a shifted image."""
        return height, width


@dataclass(frozen=True, kw_only=True)
class Corruption(Shift):
    """Base of the shifts that have a severity, 1 to 5, as Hendrycks & Dietterich 2019 (arXiv:1903.12261) have.

    Their settings for CIFAR-10 (CIFAR-10-C) are meant for images of 32 x 32 pixels; lengths are scaled here for images
    of other sizes. They also round the result down to 256 grey levels; here it is not rounded.
    """

    severity: int = 3

    def __post_init__(self) -> None:
        check(1 <= self.severity <= 5, "severity", "1, 2, 3, 4 or 5", self.severity)

    def chosen(self, values: tuple[T, T, T, T, T]) -> T:
        """What the severity picks out of five settings."""
        return values[self.severity - 1]


def scale(x: Tensor) -> float:
    """By what a length in pixels of a published setting is multiplied for images (..., H, W)."""
    return min(x.shape[-2:]) / PUBLISHED_SIZE

"""Plain convolutional network for images of any size, with zeros around them or periodic: what ``fno`` is held against.

Roith's thesis, section 1.4: feature extractor, adaptive pooling, classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from attacks.base import check
from robustbench_sparse.foundation.interpolation import Interpolation, interpolated
from robustbench_sparse.models.base import ModelSpec, he_init
from robustbench_sparse.models.mlp import ACTIVATIONS, Activation

Padding = Literal["zeros", "circular"]


class Resize(nn.Module):
    """I of the thesis: images of any size, interpolated to ``size`` x ``size``."""

    def __init__(self, size: int, how: Interpolation) -> None:
        super().__init__()
        self.size, self.how = size, how

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, size, size)."""
        return interpolated(x, self.size, self.how)


@dataclass(frozen=True, kw_only=True)
class CNN(ModelSpec):
    """Convolutions with an activation each, average over pool x pool parts, linear; takes images of any size.

    Nothing in it makes an image smaller before the average, so that its features stand on the image's own grid. Its
    kernels have so many pixels, whatever the resolution: on a finer image they see a smaller part of it. ``resize`` is
    the simple way out: every image is interpolated to the size that the network was trained on.

    Args:
        widths: channels of the convolutions.
        kernel_size: side of the kernels in pixels, odd.
        padding: what lies around an image: ``zeros``, or the image again (``circular``), as in C(theta) of the thesis.
        activation: after every convolution.
        pool: side of the map that features are averaged to.
        resize: interpolate images of other sizes first: ``bilinear``, ``trigonometric``, or ``none``.
    """

    key: ClassVar[str] = "cnn"
    thins: ClassVar[tuple[str, ...]] = ("widths",)

    widths: tuple[int, ...] = (16, 16)
    kernel_size: int = 5
    padding: Padding = "zeros"
    activation: Activation = "relu"
    pool: int = 4
    resize: Interpolation | Literal["none"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_features(self.widths, self.activation, self.pool)
        size = self.kernel_size
        check(size >= 1 and size % 2 == 1, "kernel_size", "an odd number >= 1", size)
        known = get_args(Padding)
        check(self.padding in known, "padding", " or ".join(known), self.padding)
        ways = ("none", *get_args(Interpolation))
        check(self.resize in ways, "resize", f"one of {', '.join(ways)}", self.resize)

    def network(self, channels: int, size: int, classes: int) -> nn.Module:
        """Make the network, (B, C, H, W) -> (B, K). He initialisation (``fan_in``) of the convolutions.

        Raises:
            ValueError: for kernels larger than the images.
        """
        check(self.kernel_size <= size, "kernel_size", f"at most the images' {size} pixels", self.kernel_size)
        layers: list[nn.Module] = [] if self.resize == "none" else [Resize(size, self.resize)]
        before = channels
        for width in self.widths:
            layers += [
                nn.Conv2d(
                    before, width, self.kernel_size, padding=self.kernel_size // 2, padding_mode=self.padding
                ),
                ACTIVATIONS[self.activation](),
            ]
            before = width
        network = nn.Sequential(*layers, *classifier(before, self.pool, classes))
        he_init(network, "fan_in")
        return network


def check_features(widths: Sequence[int], activation: str, pool: int) -> None:
    """Raise ValueError for settings that no such network can have; ``fno`` shares them."""
    check(len(widths) > 0 and all(w >= 1 for w in widths), "widths", "at least one width, all >= 1", widths)
    check(activation in ACTIVATIONS, "activation", f"one of {', '.join(ACTIVATIONS)}", activation)
    check(pool >= 1, "pool", "an integer >= 1", pool)


def classifier(width: int, pool: int, classes: int) -> list[nn.Module]:
    """Features (B, width, H, W) of any size -> logits (B, classes)."""
    return [nn.AdaptiveAvgPool2d(pool), nn.Flatten(), nn.Linear(width * pool * pool, classes)]

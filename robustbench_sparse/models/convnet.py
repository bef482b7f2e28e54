"""The Fashion-MNIST network of Bungert et al., "A Bregman learning framework", arXiv:2105.04319, 4.4."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from attacks.base import LATER
from robustbench_sparse.models.base import ModelSpec, check_widths, he_init


@dataclass(frozen=True, kw_only=True)
class ConvNet(ModelSpec):
    """5x5 conv 64 - pool - 5x5 conv 64 - pool - 1024 - 128 - K with ReLU, no batch-norm.

    The paper writes "fc 1024 -> fc 128". The 1024 are the features the pooled map has, not a layer: without
    padding, 28 x 28 becomes 24, 12, 8 and 4, and 64 * 4 * 4 = 1024; the authors' public code has the linear
    layers 1024 x 128 and 128 x 10. Images of another size give another number of features; below 20 x 20 the
    convolutions are padded by 2.

    Args:
        widths: channels of the two convolutions, neurons of the hidden layer.
    """

    key: ClassVar[str] = "convnet"
    thins: ClassVar[tuple[str, ...]] = ("widths",)

    widths: tuple[int, ...] = field(default=(64, 64, 128), metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_widths(self.widths, 3)

    def network(self, channels: int, size: int, classes: int) -> nn.Module:
        """Make the network, (B, C, H, W) -> (B, K). He initialisation (``fan_in``) of the convolutions."""
        padding = 2 * (size < 20)
        side = ((size - 4 + 2 * padding) // 2 - 4 + 2 * padding) // 2
        first, second, hidden = self.widths
        network = nn.Sequential(
            nn.Conv2d(channels, first, 5, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),  # (B, second * side * side): 1024 on 28 x 28
            nn.Linear(second * side * side, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )
        he_init(network, "fan_in")
        return network

"""VGG-16 with batch-norm for small images (Simonyan and Zisserman 2014, arXiv:1409.1556, table 1 D)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from attacks.base import check
from robustbench_sparse.models.base import ModelSpec, he_init

# Convolutions of each stage, and their channels in multiples of the first stage's.
STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


class VGG16Module(nn.Module):
    """Stages of 3x3 conv - bn - ReLU, each followed by a 2x2 max-pool, average over the map, linear."""

    def __init__(self, channels: int, size: int, classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for convolutions, factor in STAGES:
            for _ in range(convolutions):
                after = width * factor
                layers += [
                    nn.Conv2d(before, after, 3, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                ]
                before = after
            if size > 1:  # a map of one pixel cannot be pooled any further
                layers.append(nn.MaxPool2d(2))
                size //= 2
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        logits: Tensor = self.linear(self.features(x).mean((2, 3)))
        return logits


@dataclass(frozen=True, kw_only=True)
class VGG16(ModelSpec):
    """13 convolutions and one linear layer in place of the three of the original.

    Pools are left out once the map is a single pixel; a map larger than that in the end is averaged.

    Args:
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
    """

    key: ClassVar[str] = "vgg16"
    thins: ClassVar[tuple[str, ...]] = ("width",)

    width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.width >= 1, "width", "an integer >= 1", self.width)

    def network(self, channels: int, size: int, classes: int) -> nn.Module:
        """Make the network, (B, C, H, W) -> (B, K). He initialisation (``fan_out``) of the convolutions."""
        network = VGG16Module(channels, size, classes, self.width)
        he_init(network, "fan_out")
        return network

"""LeNet-5 with ReLU and max-pooling, the network of Dinh's table 4.1 (LeCun et al. 1998, section II-B)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from robustbench_sparse.models.base import ModelSpec, he_init


@dataclass(frozen=True, kw_only=True)
class LeNet(ModelSpec):
    """Convolutions 5x5 with 6 and 16 channels, each with ReLU and 2x2 max-pool, then 120-84-K; no batch-norm.

    LeCun's network sees images of 32 x 32: smaller ones get a border of 2, so that both 28 x 28 and 32 x 32
    end in the classical 16 x 5 x 5 = 400 features. Images below 20 x 20 get the border before the second
    convolution, too. On grey images the convolutions have 1 + 6 = 7 input channels.
    """

    key: ClassVar[str] = "lenet"

    def network(self, channels: int, size: int, classes: int) -> nn.Module:
        """Make the network, (B, C, H, W) -> (B, K). He initialisation (``fan_in``) of the convolutions."""
        first, second = 2 * (size < 32), 2 * (size < 20)
        side = ((size - 4 + 2 * first) // 2 - 4 + 2 * second) // 2
        network = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=first),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5, padding=second),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),  # (B, 16 * side * side)
            nn.Linear(16 * side * side, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, classes),
        )
        he_init(network, "fan_in")
        return network

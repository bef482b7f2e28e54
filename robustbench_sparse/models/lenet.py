"""LeNet-5 with ReLU and max-pooling, the network of Dinh's table 4.1 (LeCun et al. 1998, section II-B)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from attacks.base import LATER
from robustbench_sparse.models.base import ModelSpec, check_widths, he_init


@dataclass(frozen=True, kw_only=True)
class LeNet(ModelSpec):
    """Convolutions 5x5 with 6 and 16 channels, each with ReLU and 2x2 max-pool, then 120-84-K; no batch-norm.

    LeCun's network sees images of 32 x 32: smaller ones get a border of 2, so that both 28 x 28 and 32 x 32
    end in the classical 16 x 5 x 5 = 400 features. Images below 20 x 20 get the border before the second
    convolution, too. On grey images the convolutions have 1 + 6 = 7 input channels.

    Args:
        widths: channels of the two convolutions, neurons of the two hidden layers.
    """

    key: ClassVar[str] = "lenet"
    thins: ClassVar[tuple[str, ...]] = ("widths",)

    widths: tuple[int, ...] = field(default=(6, 16, 120, 84), metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_widths(self.widths, 4)

    def network(self, channels: int, size: int, classes: int) -> nn.Module:
        """Make the network, (B, C, H, W) -> (B, K). He initialisation (``fan_in``) of the convolutions."""
        first, second = 2 * (size < 32), 2 * (size < 20)
        side = ((size - 4 + 2 * first) // 2 - 4 + 2 * second) // 2
        a, b, c, d = self.widths
        network = nn.Sequential(
            nn.Conv2d(channels, a, 5, padding=first),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(a, b, 5, padding=second),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),  # (B, b * side * side)
            nn.Linear(b * side * side, c),
            nn.ReLU(),
            nn.Linear(c, d),
            nn.ReLU(),
            nn.Linear(d, classes),
        )
        he_init(network, "fan_in")
        return network

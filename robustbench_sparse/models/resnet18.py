"""ResNet-18 for small images: 3x3 stem with stride 1, no max-pool (He et al. 2015, arXiv:1512.03385)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from attacks.base import check
from robustbench_sparse.models.base import ModelSpec, he_init


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + x); where the shape changes, bn(conv1x1(x)) stands for x."""

    is_residual_block = True  # EnResNet adds its noise to the output of such modules

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module | None = None
        if stride != 1 or before != after:
            projection = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(after))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, H / stride, W / stride), rounded up."""
        skip = x if self.shortcut is None else self.shortcut(x)
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        total: Tensor = self.relu2(out + skip)
        return total


class ResNet18Module(nn.Module):
    """Stem, four stages of two blocks, average over the map, linear."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        layers: list[nn.Module] = []
        before = width
        for stage in range(4):
            after = width * 2**stage
            layers += [BasicBlock(before, after, 2 if stage > 0 else 1), BasicBlock(after, after, 1)]
            before = after
        self.blocks = nn.Sequential(*layers)
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        out = self.blocks(self.relu(self.bn(self.conv(x))))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


@dataclass(frozen=True, kw_only=True)
class ResNet18(ModelSpec):
    """ResNet-18 for small images.

    Args:
        width: channels of the first stage; every further stage doubles them.
    """

    key: ClassVar[str] = "resnet18"
    thins: ClassVar[tuple[str, ...]] = ("width",)

    width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.width >= 1, "width", "an integer >= 1", self.width)

    def network(self, channels: int, size: int, classes: int) -> nn.Module:
        """Make the network, (B, C, H, W) -> (B, K). He initialisation (``fan_out``) of the convolutions."""
        network = ResNet18Module(channels, classes, self.width)
        he_init(network, "fan_out")
        return network

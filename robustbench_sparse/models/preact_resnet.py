"""Pre-activation ResNet for small images, the member of EnResNet.

He et al. 2016, "Identity mappings in deep residual networks", arXiv:1603.05027; the CIFAR form with
projection shortcuts that Wang et al., arXiv:1811.10745, build their ensembles from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from attacks.base import check
from robustbench_sparse.models.base import ModelSpec, he_init


class PreActBlock(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))).

    Where the shape changes, the shortcut is a 1x1 convolution of relu(bn(x)).
    """

    is_residual_block = True  # EnResNet adds its noise to the output of such modules

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        same = stride == 1 and before == after
        self.shortcut = None if same else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, H / stride, W / stride), rounded up."""
        out = self.relu1(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(self.relu2(self.bn2(self.conv1(out))))
        total: Tensor = out + skip
        return total


class PreActResNetModule(nn.Module):
    """Stem, stages of blocks, batch-norm, ReLU, average over the map, linear."""

    def __init__(self, channels: int, classes: int, blocks: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(PreActBlock(before, width, stride))
                before = width
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(before)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        out = self.relu(self.bn(self.blocks(self.conv(x))))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


@dataclass(frozen=True, kw_only=True)
class PreActResNet(ModelSpec):
    """Pre-activation ResNet; the first block of every stage but the first halves the image.

    Args:
        depth: layers with weights on the long path, 2 * stages * n + 2 for n >= 1 blocks in every stage;
            with three stages 6n + 2, so 8, 14, 20, 26, ...; at most 5000.
        widths: channels of the stages.
    """

    key: ClassVar[str] = "preact_resnet"
    thins: ClassVar[tuple[str, ...]] = ("widths",)

    depth: int = 20
    widths: tuple[int, ...] = (16, 32, 64)

    def __post_init__(self) -> None:
        super().__post_init__()
        fine = len(self.widths) > 0 and all(width >= 1 for width in self.widths)
        check(fine, "widths", "at least one width, all >= 1", self.widths)
        step = 2 * len(self.widths)
        fine = self.depth >= step + 2 and (self.depth - 2) % step == 0
        check(fine, "depth", f"{step}n + 2 with n >= 1 for {len(self.widths)} stages", self.depth)
        check(self.depth <= 5000, "depth", "at most 5000 layers", self.depth)

    def network(self, channels: int, size: int, classes: int) -> nn.Module:
        """Make the network, (B, C, H, W) -> (B, K). He initialisation (``fan_out``) of the convolutions."""
        blocks = (self.depth - 2) // (2 * len(self.widths))
        network = PreActResNetModule(channels, classes, blocks, self.widths)
        he_init(network, "fan_out")
        return network

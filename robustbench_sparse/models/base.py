"""What every network stands on: settings, the checks when it is built, normalisation inside the network."""

from __future__ import annotations

import math
from abc import ABC
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks.base import check

SMALLEST = 8  # side of the smallest images that every network takes


class Normalise(nn.Module):
    """(x - mean) / std per channel, so that attacks and defenses see images in [0, 1] only.

    Args:
        mean: one value per channel.
        std: one value per channel, > 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images (B, C, H, W)."""
        return (x - self.mean) / self.std


@dataclass(frozen=True, kw_only=True)
class ModelSpec(ABC):
    """Settings of a network; ``build`` makes the network. A subclass writes ``network``.

    Args:
        mean: subtracted from the image inside the network, one value or one per channel; None for nothing.
        std: divides the image inside the network, one value or one per channel, > 0; None for nothing.
    """

    key: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ("classify",)  # what such networks can be trained for
    thins: ClassVar[tuple[str, ...]] = ()  # settings that are widths; see ``thinner``

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            fine = values is None or (len(values) > 0 and all(math.isfinite(v) for v in values))
            check(fine, name, "finite numbers, one or one per channel", values)
        check(self.std is None or min(self.std) > 0, "std", "numbers > 0", self.std)

    def build(self, channels: int, size: int, classes: int | None) -> nn.Module:
        """Make a network with fresh weights from torch's default generator (the caller seeds it).

        Args:
            channels: channels of an image, >= 1.
            size: height and width of an image in pixels, >= 8.
            classes: number of classes K, >= 2; None for a network that restores images.

        Returns:
            A network in training mode that maps images in [0, 1], (B, C, H, W), to logits (B, K), or to images
            (B, C, H, W) in [0, 1] where there are no classes. Inside ``torch.device("meta")`` its weights are on
            "meta".

        Raises:
            ValueError: when the settings do not fit such images.
        """
        check(channels >= 1, "channels", "an integer >= 1", channels)
        check(size >= SMALLEST, "size", f"images of at least {SMALLEST} x {SMALLEST} pixels", size)
        wanted = "restore" if classes is None else "classify"
        check(wanted in self.tasks, "task", f"{' or '.join(self.tasks)} for the network {self.key}", wanted)
        check(classes is None or classes >= 2, "classes", "at least 2 classes", classes)
        mean, std = self._per_channel("mean", channels), self._per_channel("std", channels)
        if classes is None:
            network = self.restorer(channels, size)
        else:
            network = self.network(channels, size, classes)
        if mean is None and std is None:
            return network
        normalise = Normalise(mean or (0.0,), std or (1.0,))
        return nn.Sequential(OrderedDict(normalise=normalise, network=network))

    def network(self, channels: int, size: int, classes: int) -> nn.Module:
        """Make the network that classifies, without normalisation. The arguments are checked."""
        raise NotImplementedError(f"{type(self).__name__} does not classify")

    def restorer(self, channels: int, size: int) -> nn.Module:
        """Make the network that restores images, without normalisation. The arguments are checked."""
        raise NotImplementedError(f"{type(self).__name__} does not restore")

    def _per_channel(self, name: Literal["mean", "std"], channels: int) -> tuple[float, ...] | None:
        values: tuple[float, ...] | None = getattr(self, name)
        if values is not None:
            expected = f"1 or {channels} values for images of {channels} channels"
            check(len(values) in (1, channels), name, expected, values)
        return values


def check_widths(widths: Sequence[int], count: int) -> None:
    """Raise ValueError unless there are so many widths, all >= 1."""
    fine = len(widths) == count and all(width >= 1 for width in widths)
    check(fine, "widths", f"{count} widths, all >= 1", widths)


def he_init(model: nn.Module, mode: Literal["fan_in", "fan_out"]) -> None:
    """Draw convolution weights from N(0, 2 / fan) and set their biases to 0 (He et al. 2015, section 2.2).

    ``fan_in`` keeps the size of the signal in networks without batch-norm; ``fan_out`` is what ResNets and
    the published EnResNet use. Linear layers keep torch's default.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)

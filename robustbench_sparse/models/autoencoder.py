"""Fully connected autoencoder, wide throughout: what a sparse training narrows; arXiv:2105.04319, section 4.6."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from attacks.base import check
from robustbench_sparse.models.base import ModelSpec
from robustbench_sparse.models.mlp import ACTIVATIONS, Activation


@dataclass(frozen=True, kw_only=True)
class Autoencoder(ModelSpec):
    """Linear layers from the image back to an image, an activation between them; torch's default initialisation.

    Args:
        hidden: number of hidden layers, >= 1; the paper's network has 5.
        width: neurons of each hidden layer; null for as many as the image has pixels, the paper's.
        activation: after every hidden layer.
        last_activation: after the last layer; ``none`` gives a linear output.
    """

    key: ClassVar[str] = "autoencoder"
    tasks: ClassVar[tuple[str, ...]] = ("restore",)

    hidden: int = 5
    width: int | None = None
    activation: Activation = "relu"
    last_activation: Activation | Literal["none"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.hidden >= 1, "hidden", "an integer >= 1", self.hidden)
        check(self.width is None or self.width >= 1, "width", "an integer >= 1 or null", self.width)
        known = ", ".join(ACTIVATIONS)
        check(self.activation in ACTIVATIONS, "activation", f"one of {known}", self.activation)
        last = self.last_activation
        check(last == "none" or last in ACTIVATIONS, "last_activation", f"one of none, {known}", last)

    def restorer(self, channels: int, size: int) -> nn.Module:
        """Make the network, (B, C, H, W) -> (B, C, H, W): ``layer1``, ... and behind each its activation."""
        pixels = channels * size * size
        widths = [pixels, *[self.width or pixels] * self.hidden, pixels]
        parts: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for number, (before, after) in enumerate(itertools.pairwise(widths), 1):
            parts[f"layer{number}"] = nn.Linear(before, after)
            kind = self.activation if number <= self.hidden else self.last_activation
            if kind != "none":
                parts[f"activation{number}"] = ACTIVATIONS[kind]()
        parts["image"] = nn.Unflatten(1, (channels, size, size))
        return nn.Sequential(parts)

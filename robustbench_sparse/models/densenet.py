"""One dense block, a convolution and a linear layer: the search space of Bungert et al. 2021, arXiv:2106.02479, 4.2.

Dense blocks are those of Huang et al. 2018, https://arxiv.org/abs/1608.06993.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks.base import check
from robustbench_sparse.models.base import ModelSpec, he_init
from robustbench_sparse.models.mlp import ACTIVATIONS, Activation


class DenseLayer(nn.Module):
    """x -> (x, sigma(K * x + b)): a layer's k maps behind all maps that were there before.

    Channel i of the weight's second dimension is read from map i of the block, whatever layer made it: K^{l,i,j} of the
    paper is ``conv.weight[j, i]``.
    """

    def __init__(self, before: int, growth: int, activation: Activation, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, growth, 3, padding=1)
        self.bn = nn.BatchNorm2d(growth) if batch_norm else None
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, before + growth, H, W)."""
        out = self.conv(x)
        out = out if self.bn is None else self.bn(out)
        return torch.cat((x, self.activation(out)), 1)


class DenseNetModule(nn.Sequential):
    """``stem``, ``block``, ``transition``, ``activation``, ``pool``, ``flatten``, ``linear``, ``last_activation``."""


@dataclass(frozen=True, kw_only=True)
class DenseNet(ModelSpec):
    """3x3 convolution to k maps, a dense block, a 3x3 convolution, average pooling, linear; He initialisation.

    What the paper leaves open is as in the authors' public code: 3x3 kernels with a border of zeros, a first
    convolution without bias and activation, biases in the block, no batch-norm, a single map between the block and the
    linear layer, nothing pooled.

    Args:
        layers: L, of the dense block, >= 1.
        growth: k, maps that each of them adds, >= 1; the first convolution makes as many.
        transition: maps of the convolution behind the block, >= 1.
        pool: side of the squares that these maps are averaged over, >= 1; 1 for no pooling, 2 as Huang et al. have it.
        batch_norm: batch-norm between each convolution of the block and its activation.
        activation: after every convolution but the first.
        last_activation: after the linear layer; ``none`` gives plain logits. The authors' code has ``relu`` here:
            logits below 0 have no gradient then, neither in training nor for an attack.
    """

    key: ClassVar[str] = "densenet"
    thins: ClassVar[tuple[str, ...]] = ("growth",)

    layers: int = 5
    growth: int = 12
    transition: int = 1
    pool: int = 1
    batch_norm: bool = False
    activation: Activation = "relu"
    last_activation: Activation | Literal["none"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "growth", "transition", "pool"):
            check(getattr(self, name) >= 1, name, "an integer >= 1", getattr(self, name))
        known = ", ".join(ACTIVATIONS)
        check(self.activation in ACTIVATIONS, "activation", f"one of {known}", self.activation)
        last = self.last_activation
        check(last == "none" or last in ACTIVATIONS, "last_activation", f"one of none, {known}", last)

    def network(self, channels: int, size: int, classes: int) -> nn.Module:
        """Make the network, (B, C, H, W) -> (B, K).

        Raises:
            ValueError: when nothing is left after pooling.
        """
        check(self.pool <= size, "pool", f"at most the images' {size} pixels", self.pool)
        k = self.growth
        block = [DenseLayer(k * n, k, self.activation, self.batch_norm) for n in range(1, self.layers + 1)]
        parts: dict[str, nn.Module] = {
            "stem": nn.Conv2d(channels, k, 3, padding=1, bias=False),
            "block": nn.Sequential(*block),
            "transition": nn.Conv2d(k * (self.layers + 1), self.transition, 3, padding=1),
            "activation": ACTIVATIONS[self.activation](),
        }
        if self.pool > 1:
            parts["pool"] = nn.AvgPool2d(self.pool)
        parts["flatten"] = nn.Flatten()
        parts["linear"] = nn.Linear(self.transition * (size // self.pool) ** 2, classes)
        if self.last_activation != "none":
            parts["last_activation"] = ACTIVATIONS[self.last_activation]()
        network = DenseNetModule(OrderedDict(parts))
        he_init(network, "fan_in")
        return network


@torch.no_grad()
def skip_strengths(network: nn.Module) -> Tensor:
    """How strongly each layer of a dense block reads what each earlier one made, section 4.2.

    Args:
        network: a ``densenet``, or what holds one, such as a network with its normalisation; of several the first.

    Returns:
        tau^{l,r} = sum over i, j of |K^{l,i,j}|_F, float64 (L + 1, L + 1): row l - 1 for layer l of the block and the
        last row for the transition behind it; column 0 for the maps of the stem, column r for those that layer r made.
        0 where r >= l: such a layer comes later. Widths are read off the weights, so that a network whose dead channels
        were removed has its own.

    Raises:
        ValueError: there is no dense block.
    """
    found = next((m for m in network.modules() if isinstance(m, DenseNetModule)), None)
    check(found is not None, "network", "one with a dense block, as densenet has", type(network).__name__)
    assert found is not None
    # All convolutions in their order: stem, block, transition.
    stem, *readers = (m for m in found.modules() if isinstance(m, nn.Conv2d))
    made = [len(stem.weight), *(len(conv.weight) for conv in readers[:-1])]
    rows: list[Tensor] = []
    for conv in readers:
        norms = torch.linalg.vector_norm(conv.weight.double(), dim=(2, 3)).sum(0)
        parts = [part.sum() for part in norms.split(made[: len(rows) + 1])]
        rows.append(torch.stack([*parts, *[norms.new_zeros(())] * (len(made) - len(parts))]))
    return torch.stack(rows)

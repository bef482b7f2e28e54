"""MeanSparse: activations near their channel's mean are replaced by it, after training.

Amini et al. 2024, https://arxiv.org/abs/2406.05927.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from attacks.base import check
from defenses.base import Defense, Make, Step, frozen_statistics
from defenses.robust.broken import ACTIVATIONS
from defenses.robust.inserting import inserted, show


class MeanSparsified(nn.Module):
    """x where it is further than alpha * sigma_c from mu_c, else mu_c; (B, C, ...) -> the same.

    Until mu and sigma are measured it is the identity. At |x - mu_c| = alpha * sigma_c it jumps; inside, its gradient
    is 0.

    Args:
        alpha: half the width of what is replaced, in standard deviations.

    Attributes:
        mean: mu, per channel, (C,); empty until it is measured.
        std: sigma, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        for name in ("mean", "std"):
            self.register_buffer(name, torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        """Replace what is near the mean."""
        return _sparsified(x, self.mean, self.std, self.alpha)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # How many channels there are is known once images have been seen: the file's number is taken over.
        for name in ("mean", "std"):
            stored = state.get(prefix + name)
            if stored is not None and stored.ndim == 1:
                setattr(self, name, torch.empty_like(stored, device=self.mean.device))
        super()._load_from_state_dict(state, prefix, *args)


# One step to a tracer, which cannot follow what depends on shapes: the network around stays foldable.
@fx.wrap
def _sparsified(x: Tensor, mean: Tensor, std: Tensor, alpha: float) -> Tensor:
    if mean.numel() == 0:
        return x
    shape = (1, -1, *[1] * (x.ndim - 2))
    mu, sigma = mean.view(shape).to(x.dtype), std.view(shape).to(x.dtype)
    return torch.where((x - mu).abs() <= alpha * sigma, mu, x)


class Before(nn.Module):
    """An activation behind what sparsifies its input; any (B, C, ...)."""

    def __init__(self, sparse: MeanSparsified, activation: nn.Module) -> None:
        super().__init__()
        self.sparse, self.activation = sparse, activation

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        out: Tensor = self.activation(self.sparse(x))
        return out


@dataclass(frozen=True, kw_only=True)
class MeanSparse(Defense):
    """Small deviations from a channel's mean are blocked before every activation of the trained network.

    The network trains as it would without; what is deployed, validated and judged after each epoch has
    mu_c if |a - mu_c| <= alpha * sigma_c, else a, in place of each activation's input a, with mean mu_c and standard
    deviation sigma_c of channel c over training images and positions, measured on the network without any such step.
    For networks trained on attacked images; its authors find little in others. It hides gradients: attack it with
    ``smoothed``, too.

    Args:
        alpha: >= 0; 0 leaves the network as it is. The paper takes it as large as clean accuracy allows, about 0.2.
        images: training images that mu and sigma are measured on; drawn at a stage's start.
    """

    alpha: float = 0.0
    images: int = 1000
    tasks: ClassVar[tuple[str, ...]] = ("classify",)

    def __post_init__(self) -> None:
        check(0 <= self.alpha < float("inf"), "alpha", "a finite number >= 0", self.alpha)
        check(self.images >= 2, "images", "an integer >= 2", self.images)

    def check(self, model: nn.Module) -> None:
        """There have to be activation modules to stand before."""
        if self.alpha > 0 and not any(isinstance(m, ACTIVATIONS) for m in model.modules()):
            raise ValueError(
                "alpha: expected a network with activation modules such as nn.ReLU, before which it stands, got "
                f"{type(model).__name__} without any"
            )

    def wrap(self, make: Make) -> Make:
        """A factory of the network with places for mu and sigma, empty as long as it trains."""
        if self.alpha == 0:
            return make
        return lambda: inserted(make(), ACTIVATIONS, lambda part: Before(MeanSparsified(self.alpha), part))

    def begin(self, s: Step) -> None:
        """Draw the images; whether every activation has channels of its own is seen now."""
        if self.alpha == 0:
            return
        self.memory["images"] = s.images("train", self.images, s.generator)
        with frozen_statistics(s.model):
            _moments(s.model, self.memory["images"][:2])

    def deploy(self, model: nn.Module) -> nn.Module:
        """A copy with mu and sigma measured."""
        if self.alpha == 0:
            return model
        deployed = copy.deepcopy(model)
        with frozen_statistics(deployed):
            moments = _moments(deployed, self.memory["images"])
        for layer, (mean, std) in moments.items():
            layer.mean, layer.std = mean, std
        return deployed


@torch.no_grad()
def _moments(model: nn.Module, images: Tensor) -> dict[MeanSparsified, tuple[Tensor, Tensor]]:
    """Mean and standard deviation (C,) of what each of the steps gets.

    Args:
        model: in eval mode; its steps are not measured yet.
        images: (N, C, H, W).

    Raises:
        ValueError: an activation that is used at several places of different width.
    """
    sums: dict[MeanSparsified, Tensor] = {}  # count, sum and sum of squares, (3, C) in float64

    def look(layer: nn.Module, given: Tensor) -> None:
        assert isinstance(layer, MeanSparsified)
        rows = given.double().transpose(0, 1).flatten(1)
        now = torch.stack([torch.full_like(rows[:, 0], rows.shape[1]), rows.sum(1), rows.square().sum(1)])
        before = sums.get(layer, torch.zeros_like(now))
        same = before.shape == now.shape
        check(same, "alpha", "activations used at one place each, or of one width", rows.shape[0])
        sums[layer] = before + now

    show(model, MeanSparsified, look, images)
    out = {}
    for layer, (count, total, squares) in sums.items():
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        out[layer] = mean.float(), std.float()
    return out

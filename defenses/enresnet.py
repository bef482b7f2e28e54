"""EnResNet: noise after every residual block, several networks averaged; Dinh 4.2.1.

Wang et al. 2018, https://arxiv.org/abs/1811.10745.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks.base import RandomModule, check
from defenses.base import Defense, Make, Step
from defenses.draws import BatchRandom

Scale = Literal["sample", "batch"]


class Noise(RandomModule):
    """x + a * std(x) * N(0, I), in training and at test.

    Args:
        a: strength of the noise relative to the standard deviation.
        scale: std over each image's values (``sample``) or over the whole batch tensor (``batch``).
    """

    def __init__(self, a: float, scale: Scale) -> None:
        super().__init__()
        self.a, self.scale = a, scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        over = tuple(range(1, x.ndim)) if self.scale == "sample" else tuple(range(x.ndim))
        variance = x.var(dim=over, keepdim=True)  # (B, 1, ...) or (1, 1, ...)
        # The root's slope at 0 is infinite: a constant x, as a dead block yields, gets no noise and no NaN.
        std = torch.where(variance > 0, variance, 1).sqrt() * (variance > 0)
        return x + self.a * std * self.draw(x)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the noise source behind: none must share or fork a training stream."""
        return {key: value for key, value in self.__dict__.items() if key != "noise_source"}


class NoisyBlock(nn.Module):
    """A residual block followed by noise."""

    def __init__(self, block: nn.Module, noise: Noise) -> None:
        super().__init__()
        self.block, self.noise = block, noise

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the block maps to, noise added."""
        out: Tensor = self.noise(self.block(x))
        return out


class Ensemble(nn.Module):
    """Mean of the logits of several networks; (B, C, H, W) -> (B, K).

    ``stochastic`` tells whether two passes on the same image may differ.
    """

    def __init__(self, members: list[nn.Module], stochastic: bool) -> None:
        super().__init__()
        self.members, self.stochastic = nn.ModuleList(members), stochastic

    def forward(self, x: Tensor) -> Tensor:
        """Mean logits (B, K)."""
        return torch.stack([member(x) for member in self.members]).mean(0)


@dataclass(frozen=True, kw_only=True)
class EnResNet(Defense):
    """Ensemble of jointly trained residual networks with noise injected after every residual block.

    En_n ResNet (Dinh 4.2.1): out + a * std(out) * N(0, I) after each residual block, logits averaged over n
    networks. The noise stays on at test. Models mark their residual blocks by ``is_residual_block = True``.
    One member without noise is the plain network.

    Args:
        members: the paper's n, >= 1.
        noise: the paper's a, >= 0; 0 adds none.
        scale: ``sample`` takes the std of each image's own values; ``batch`` that of the whole batch tensor,
            as published, which makes a prediction depend on the other images of the batch.
    """

    members: int = 2
    noise: float = 0.1
    scale: Scale = "sample"

    def __post_init__(self) -> None:
        check(self.members >= 1, "members", "an integer >= 1", self.members)
        check(self.noise >= 0, "noise", "a number >= 0", self.noise)
        check(self.scale in ("sample", "batch"), "scale", "'sample' or 'batch'", self.scale)

    def check(self, model: nn.Module) -> None:
        """Noise needs residual blocks to follow."""
        if self.noise > 0 and not any(getattr(m, "is_residual_block", False) for m in model.modules()):
            raise ValueError(
                "noise: expected a network with residual blocks (is_residual_block = True), as the noise "
                f"follows each of them, got {type(model).__name__} without any"
            )

    def wrap(self, make: Make) -> Make:
        """A factory of the ensemble: ``make`` is called once per member."""

        def ensemble() -> nn.Module:
            networks = [make() for _ in range(self.members)]
            if self.noise > 0:
                networks = [self._noisy(network) for network in networks]
            return Ensemble(networks, stochastic=self.noise > 0)

        return ensemble

    def begin(self, s: Step) -> None:
        """In training the noise comes from this defense's own stream."""
        for m in s.model.modules():
            if isinstance(m, Noise):
                m.noise_source = BatchRandom(s.generator)

    def deploy(self, model: nn.Module) -> nn.Module:
        """A copy whose noise source is free to be bound by whoever judges it."""
        return copy.deepcopy(model) if self.noise > 0 else model

    def _noisy(self, module: nn.Module) -> nn.Module:
        """Put noise behind every residual block of a network, in place; a block itself comes back wrapped."""
        for name, child in list(module.named_children()):
            setattr(module, name, self._noisy(child))
        if getattr(module, "is_residual_block", False):
            return NoisyBlock(module, Noise(self.noise, self.scale))
        return module

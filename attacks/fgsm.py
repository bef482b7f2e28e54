"""FGSM, the fast gradient sign method (Goodfellow, Shlens, Szegedy 2015, https://arxiv.org/abs/1412.6572)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from attacks.base import Attack, SampleRandom, Threat, check, input_gradient
from attacks.iterate import steepest
from attacks.losses import LOSSES, LossName, loss_towards


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One gradient step of length eps: x' = clip01(x + eps * sign(grad L(x, y))).

    With an l2 threat the step is eps * grad / ||grad||_2 (the fast gradient method).

    Args:
        target: see :class:`attacks.base.Attack`.
        reference: see :class:`attacks.base.Attack`.
        loss: ``ce`` (cross-entropy, the paper's), ``margin``, ``dlr`` or ``pma``.
        eot: gradients averaged when the network is random; 1 pass otherwise.
    """

    loss: LossName = "ce"
    eot: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.loss in LOSSES, "loss", " or ".join(LOSSES), self.loss)
        check(self.eot >= 1, "eot", "an integer >= 1", self.eot)

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError when the threat leaves a step without a length."""
        check(
            math.isfinite(threat.eps), "eps", "a finite radius: it is the length of FGSM's step", threat.eps
        )

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return a candidate (B, C, H, W) per image."""
        goal, towards = self.aim(model, x, y, random, self.eot)
        grad, _, _ = input_gradient(model, x, goal, loss_towards(self.loss, towards), random, self.eot)
        return threat.project(x + threat.eps * steepest(grad, threat.norm), x)

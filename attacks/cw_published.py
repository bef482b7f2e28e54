"""The C&W protocol behind the tables of Dinh's thesis (ch. 4), after the public code of Wang et al. 2018
(EnResNet, https://arxiv.org/abs/1811.10745).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.base import Attack, SampleRandom, Target, Threat, check, input_gradient, per_image
from attacks.iterate import Adam


@dataclass(frozen=True, kw_only=True)
class CWPublished(Attack):
    """WEAK, only to repeat published tables: few small Adam steps on ||d||_2^2 + c * max(Z_y - Z_t, 0).

    Never report it alone; ``cw`` is the attack of the same name at its strength. What makes this one weak: a
    single target class t, the runner-up on the clean image; one c, without a search; steps that add up to about
    0.03 per pixel and do not grow with the threat; no confidence, so that a candidate ends on the decision
    boundary; and the point of smallest objective is kept, fooling or not. The published tables show it: accuracy
    under it lies above that under IFGSM. Neither the ball nor the box bounds the path; the result is clipped to
    the box.

    Args:
        target: how t is chosen: ``runner_up`` (as published), ``least_likely``, ``next`` or ``random``.
        reference: see :class:`attacks.base.Attack`.
        steps: Adam's steps.
        learning_rate: Adam's, in pixel units.
        c: weight of the hinge against the squared size.
        eot: passes averaged per step when the network is random; as published, 1.
    """

    weak: ClassVar[bool] = True
    bounded: ClassVar[bool] = False
    target: Target = "runner_up"
    steps: int = 50
    learning_rate: float = 6e-4
    c: float = 10.0
    eot: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        # The hinge compares the true class with the target: both must be known.
        wrong_class = self.target not in ("none", "given")
        check(wrong_class, "target", "runner_up, least_likely, next or random", self.target)
        check(self.steps >= 1, "steps", "an integer >= 1", self.steps)
        check(0 < self.learning_rate < math.inf, "learning_rate", "a finite number > 0", self.learning_rate)
        check(0 < self.c < math.inf, "c", "a finite number > 0", self.c)
        check(self.eot >= 1, "eot", "an integer >= 1", self.eot)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """The point of smallest objective on each image's path, (B, C, H, W)."""
        t, _ = self.aim(model, x, y, random, self.eot)

        def hinge(logits: Tensor, y: Tensor) -> Tensor:
            return (logits.gather(1, y[:, None]) - logits.gather(1, t[:, None])).squeeze(1).clamp_min(0)

        d, adam = torch.zeros_like(x), Adam(x)
        kept, smallest = x, x.new_full((len(x),), math.inf)
        for _ in range(self.steps):
            grad, value, _ = input_gradient(model, x + d, y, hinge, random, self.eot)
            objective = (d**2).flatten(1).sum(1) + self.c * value
            # Written so that an objective that is not a number is kept, and seen by whoever judges.
            better = ~(objective >= smallest)
            kept = torch.where(per_image(better, x), x + d, kept)
            smallest = torch.where(better, objective, smallest)
            d = d - self.learning_rate * adam.step(2 * d + self.c * grad)
        return kept.clamp(0, 1)

"""The PGD behind CLIP's table (Bungert et al. 2021, https://arxiv.org/abs/2103.12531), after the authors' code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.base import Attack, SampleRandom, Threat, check, input_gradient, per_image
from attacks.iterate import steepest
from attacks.losses import cross_entropy


@dataclass(frozen=True, kw_only=True)
class PGDClip(Attack):
    """WEAK, only to repeat a published table: signed steps, every point stretched to the sphere of radius eps.

    Never report it alone; ``pgd`` is the attack of the same name at its strength. From a random point,
    d <- d + alpha * sign(grad L), clipped to the box, then scaled to ||d||_2 = eps; the last point is clipped to the
    box once more. What makes it weak: signs are the steepest step for l_inf and spend an l2 radius on all pixels
    alike; with alpha = 0.5 the step of 784 signs is seven times as long as eps = 2, so that the path forgets where it
    was and jumps from corner to corner of the sphere. An image stays where it is as soon as a point fools.
    With an l_inf threat d is clipped to [-eps, eps] in place of box and sphere.

    Args:
        target: ``none``; the label's cross-entropy is ascended.
        reference: see :class:`attacks.base.Attack`.
        steps: gradient steps; the authors train with 7 and test with 100.
        step_size: alpha, in pixel units.
    """

    weak: ClassVar[bool] = True
    steps: int = 100
    step_size: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.target == "none", "target", "none", self.target)
        check(self.steps >= 1, "steps", "an integer >= 1", self.steps)
        check(0 < self.step_size < math.inf, "step_size", "a finite number > 0", self.step_size)

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError where there is no sphere."""
        check(math.isfinite(threat.eps), "threat.eps", "a finite number", threat.eps)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """The last point of each path, clipped to the box, (B, C, H, W)."""
        d = _scaled(_boxed(threat.eps * (2 * random.uniform(x) - 1), x), threat)
        rows = torch.arange(len(x), device=x.device)  # those that no point has fooled yet
        for _ in range(self.steps):
            grad, _, logits = input_gradient(model, x[rows] + d[rows], y[rows], cross_entropy, random)
            stay = logits.argmax(1) == y[rows]
            rows, random = rows[stay], random.subset(stay)
            if len(rows) == 0:
                break
            moved = d[rows] + self.step_size * steepest(grad[stay], "linf")
            # The box comes first, the sphere second, unlike in a projection: that is how it was published.
            d[rows] = _scaled(_boxed(moved, x[rows]) if threat.norm == "l2" else moved, threat)
        return (x + d).clamp(0, 1)


def _boxed(d: Tensor, x: Tensor) -> Tensor:
    """What is left of ``d`` where x + d is clipped to [0, 1]."""
    return d.clamp(-x, 1 - x)


def _scaled(d: Tensor, threat: Threat) -> Tensor:
    """Scaled to ||d||_2 = eps; for l_inf clipped to [-eps, eps]. Zero stays zero."""
    if threat.norm == "linf":
        return d.clamp(-threat.eps, threat.eps)
    return d * per_image(threat.eps / threat.size(d).clamp_min(torch.finfo(d.dtype).tiny), d)

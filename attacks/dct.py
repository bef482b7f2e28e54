"""Low-frequency attacks: gradient steps within the lowest cosine frequencies of the image (Guo, Frank, Weinberger
2018, https://arxiv.org/abs/1809.08758; Sharma, Ding, Brubaker 2019, https://arxiv.org/abs/1903.00073).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.base import (
    Attack,
    SampleRandom,
    Threat,
    check,
    input_gradient,
    is_stochastic,
    logits_of,
)
from attacks.iterate import Best, random_start, steepest
from attacks.losses import LOSSES, LossName, loss_towards


def dct_matrix(size: int) -> Tensor:
    """The orthonormal DCT-II of a signal of ``size`` values, (size, size) in float64; row k has frequency k.

    D[k, n] = sqrt((1 if k == 0 else 2) / size) * cos(pi * (n + 1/2) * k / size).
    """
    k = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(torch.outer(k, k + 0.5) * (math.pi / size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


class LowPass:
    """The orthogonal projection of images (B, C, H, W) onto their lowest frequencies, channel by channel.

    Args:
        like: an image or a batch; its last two dimensions, type and device are used.
        frequencies: rows and columns of the two-dimensional DCT that are kept; all where the image has fewer.
    """

    def __init__(self, like: Tensor, frequencies: int) -> None:
        self.down, self.across = (dct_matrix(n)[:frequencies].to(like) for n in like.shape[-2:])

    def coefficients(self, x: Tensor) -> Tensor:
        """The lowest DCT coefficients; (B, C, H, W) -> (B, C, at most frequencies, at most frequencies)."""
        return self.down @ x @ self.across.T

    def image(self, z: Tensor) -> Tensor:
        """The image that has these coefficients, and none above them; the other way round."""
        return self.down.T @ z @ self.across

    def __call__(self, x: Tensor) -> Tensor:
        """The nearest image (in l2) without higher frequencies, (B, C, H, W)."""
        return self.image(self.coefficients(x))


@dataclass(frozen=True, kw_only=True)
class DCT(Attack):
    """PGD on the lowest DCT coefficients of the perturbation; with all of them it is PGD itself.

    With P the projection onto the lowest frequencies, a step goes from the perturbation d to
    P d + alpha * P s(P grad L), s the step of steepest ascent (the sign for l_inf, the normalised gradient for l2),
    and from there into the ball and the box. Only those two put energy above the cut-off into an image, and the
    next step takes it out. An image leaves at its first success on a network that is not random; what is returned
    is the point of the largest margin met.

    Args:
        target: see :class:`attacks.base.Attack`.
        reference: see :class:`attacks.base.Attack`.
        steps: gradient steps.
        step_size: the alpha above, in pixel units; None means 2.5 * eps / steps.
        frequencies: coefficients kept along each axis, the lowest ones; an image smaller than this keeps all.
        loss: what is ascended: ``ce`` (cross-entropy), ``margin``, ``dlr`` or ``pma``.
        eot: gradients averaged per step when the network is random; 1 pass otherwise.
        random_start: start at the low-frequency part of a uniformly random point of the ball; false starts at the
            clean image.
    """

    steps: int = 20
    step_size: float | None = None
    frequencies: int = 8
    loss: LossName = "ce"
    eot: int = 1
    random_start: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.steps >= 1, "steps", "an integer >= 1", self.steps)
        alpha = self.step_size
        check(alpha is None or 0 < alpha < math.inf, "step_size", "a finite number > 0 or null", alpha)
        check(self.frequencies >= 1, "frequencies", "an integer >= 1", self.frequencies)
        check(self.loss in LOSSES, "loss", " or ".join(LOSSES), self.loss)
        check(self.eot >= 1, "eot", "an integer >= 1", self.eot)

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError when the threat leaves a step or the start without a length."""
        finite, alpha = math.isfinite(threat.eps), self.step_size
        check(finite or alpha is not None, "step_size", "a number, as eps is infinite", alpha)
        check(
            finite or not self.random_start, "random_start", "false where eps is infinite", self.random_start
        )

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return a candidate (B, C, H, W) per image."""
        check(x.ndim == 4, "x", "images (B, C, H, W)", tuple(x.shape))
        goal, towards = self.aim(model, x, y, random, self.eot)
        loss, margin = loss_towards(self.loss, towards), loss_towards("margin", towards)
        alpha = 2.5 * threat.eps / self.steps if self.step_size is None else self.step_size
        low, stops = LowPass(x, self.frequencies), not is_stochastic(model)
        best, rows, x_adv = Best(x), torch.arange(len(x), device=x.device), x
        if self.random_start:
            x_adv = threat.project(x + low(random_start(x, threat, random) - x), x)
        for _ in range(self.steps):
            grad, _, logits = input_gradient(model, x_adv, goal, loss, random, self.eot)
            best.update(rows, x_adv, margin(logits, goal))
            if stops and bool(best.fooled[rows].any()):
                stay = ~best.fooled[rows]
                x, goal, x_adv, grad, rows = (t[stay] for t in (x, goal, x_adv, grad, rows))
                random = random.subset(stay)
                if len(rows) == 0:
                    return best.result()
            x_adv = threat.project(x + self.stepped(low, x_adv - x, alpha, grad, threat), x)
        with torch.no_grad():
            logits = logits_of(model, x_adv, random, self.eot)
        best.update(rows, x_adv, margin(logits, goal))
        return best.result()

    @staticmethod
    def stepped(low: LowPass, delta: Tensor, alpha: float, grad: Tensor, threat: Threat) -> Tensor:
        """The perturbation (B, C, H, W) after a step along the gradient, before the ball and the box."""
        return low(delta + alpha * steepest(low(grad), threat.norm))

"""FGSM-RS, "fast" adversarial training (Wong, Rice, Kolter 2020, https://arxiv.org/abs/2001.03994)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attacks.base import Threat
from attacks.iterate import random_start
from defenses.robust.draws import BatchRandom
from defenses.robust.single_step import SingleStep


@dataclass(frozen=True, kw_only=True)
class FGSMRS(SingleStep):
    """Adversarial training with one step from a uniformly random point of the ball, clipped to the ball.

    delta ~ U(-eps, eps), delta <- clip(delta + alpha * sign(grad L(x + delta, y)), -eps, eps) (Wong et al., Alg. 3). It
    may overfit to the single step all at once: watch ``overfitting`` in the history. With radius 0 this is natural
    training.

    Further settings (``norm``, ``eps``, ``eps_warm_up``, ``gradient``, ``batch_statistics``, ``alarm_images``,
    ``alarm_gap``) are those of :class:`defenses.robust.single_step.SingleStep`.

    Args:
        step_size: alpha in units of eps, finite and > 0; 1.25 is the authors'.
    """

    step_size: float = 1.25

    def start(self, x: Tensor, eps: float, random: BatchRandom) -> Tensor:
        """A uniformly random point of the ball, in [0, 1]."""
        return random_start(x, Threat(norm="linf", eps=eps), random)

    def finish(self, x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
        """Clip to the ball and to [0, 1]."""
        return Threat(norm="linf", eps=eps).project(x_adv, x)

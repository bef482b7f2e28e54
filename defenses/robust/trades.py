"""TRADES (Zhang et al. 2019, https://arxiv.org/abs/1901.08573): accuracy on clean images, and answers that stay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.base import check, input_gradient, logits_of
from attacks.iterate import steepest
from defenses.base import Step
from defenses.robust.attacking import Attacking, quick_copy, record, scaled, second_pass
from defenses.robust.draws import BatchRandom


@dataclass(frozen=True, kw_only=True)
class TRADES(Attacking):
    """The loss on clean images plus beta times the divergence of the answers to them and to the worst images near by.

    min_w E [ L(f(x), y) + beta * max_{||x' - x|| <= eps} KL(f(x) || f(x')) ] (Zhang et al., eq. (5)), f the softmax
    outputs, KL(p || q) = sum_k p_k log(p_k / q_k): p is the answer to the clean image, and both have a gradient, as in
    the authors' code. The images x' are found by gradient steps on that divergence, in the network's eval mode; the
    minibatch itself stays clean. Batch-norm layers see both minibatches in training mode, one after the other. At beta
    0 or radius 0 this is natural training.

    Further settings (``norm``, ``eps``, ``eps_warm_up``) are those of :class:`defenses.robust.attacking.Attacking`.

    Args:
        beta: weight of the divergence, the paper's 1 / lambda, finite and >= 0; 6 is the authors'.
        steps: gradient steps to x', >= 1.
        step_size: their length in pixel units; None means 2.5 * eps / steps, about the authors' 0.007 at 8/255.
        start_noise: the steps start at x + start_noise * N(0, 1): at x itself the divergence has no gradient; finite
            and > 0.
    """

    repeatable: ClassVar[bool] = True
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None
    start_noise: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.beta < math.inf, "beta", "a finite number >= 0", self.beta)
        check(self.steps >= 1, "steps", "an integer >= 1", self.steps)
        alpha = self.step_size
        check(alpha is None or 0 < alpha < math.inf, "step_size", "a finite number > 0 or null", alpha)
        check(0 < self.start_noise < math.inf, "start_noise", "a finite number > 0", self.start_noise)

    @property
    def passes(self) -> int:
        """Gradient passes per minibatch."""
        return 0 if self.eps == 0 or self.beta == 0 else self.steps

    def check_stage(self, s: Step) -> None:
        """Refuse a ball in which a step has no length."""
        super().check_stage(s)
        known = self.step_size is not None or math.isfinite(self.threat(s.threat).eps)
        check(known, "step_size", "a number, as 2.5 * eps / steps needs a finite eps", self.step_size)

    def perturb(self, s: Step) -> Tensor:
        """Find x' on the current network; the minibatch stays as it is."""
        self._now.clear()
        if self.beta > 0 and self.threat(s.threat).eps > 0:
            self._now["x"] = self._worst(s)
        return s.x

    def penalty(self, s: Step) -> Tensor | None:
        """beta * KL(f(x) || f(x')), the mean over the minibatch; None where there is no x'."""
        if "x" not in self._now:
            return None
        assert s.outputs is not None
        outputs, self._now["statistics"] = second_pass(s, self._now["x"])
        return self.beta * divergence(s.outputs, outputs).mean()

    def after_backward(self, s: Step) -> None:
        """Batch-norm statistics take in x'."""
        record(self._now.pop("statistics", []))

    def _worst(self, s: Step) -> Tensor:
        share = self.grown(s)
        threat, random, x = (
            scaled(self.threat(s.threat), share),
            BatchRandom(s.generator, len(s.x), s.part),
            s.x,
        )
        alpha = 2.5 * threat.eps / self.steps if self.step_size is None else share * self.step_size
        with quick_copy(s) as network:
            with torch.no_grad():
                clean = logits_of(network, x, random)
            worst = x + self.start_noise * random.normal(x)
            for _ in range(self.steps):
                away = input_gradient(network, worst, s.y, lambda z, _: divergence(clean, z), random)[0]
                worst = threat.project(worst + alpha * steepest(away, threat.norm), x)
        return worst.detach()


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL(p || q) of each image, p and q the softmax of two outputs (B, K); (B,), >= 0."""
    p, q = F.log_softmax(first, 1), F.log_softmax(second, 1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1)

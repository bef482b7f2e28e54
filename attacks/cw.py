"""The attack of Carlini & Wagner 2017 (https://arxiv.org/abs/1608.04644) for l2 (VI.A) and for l_inf (VI.C)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.base import (
    Attack,
    Norm,
    SampleRandom,
    Threat,
    check,
    input_gradient,
    per_image,
)
from attacks.iterate import Adam, Best, settled
from attacks.losses import loss_towards


@dataclass(frozen=True, kw_only=True)
class CW(Attack):
    """Smallest adversarial perturbation: min size(d) + c * max(-margin(x + d), -kappa), searched over c.

    With an l2 threat, size(d) = ||d||_2^2 in the variable w, x + d = (tanh(w) + 1) / 2, and c is found by
    bisection. With an l_inf threat, size(d) = sum_i max(|d_i| - tau, 0), x + d is clipped to [0, 1], and after a
    success tau is 0.9 times the largest |d_i|; where that gains nothing, the paper stops, and here tau goes half
    of the way back. c grows by 10 as long as nothing is found.

    The radius of the threat is not used: each image's candidate is the smallest perturbation found, inside the
    ball or not, and the clean image if there is none. Two things differ from the paper. The step size falls to
    zero within each search, and never exceeds what the best perturbation so far calls for: an Adam step moves
    all pixels by about as much, and would leap over an adversarial that is near. And w starts at 0.999 of the
    range: at 0 and 1, where most pixels of MNIST lie, tanh is so flat that its pixels would hardly ever move.

    Args:
        target: see :class:`attacks.base.Attack`.
        reference: see :class:`attacks.base.Attack`.
        steps: gradient steps per search.
        search_steps: searches, each from the clean image: values of c (l2), pairs of tau and c (l_inf).
        initial_c: first weight of the hinge against the size.
        learning_rate: Adam's; None means 0.1 for l2 (in units of w) and 0.02 for l_inf (in pixel units).
        kappa: confidence, the margin by which the network is to be fooled (in logits).
        early_abort: end an image's search when a tenth of the steps has not lowered its objective.
        eot: passes averaged per step when the network is random; 1 pass otherwise.
    """

    bounded: ClassVar[bool] = False
    steps: int = 100
    search_steps: int = 9
    initial_c: float = 1.0
    learning_rate: float | None = None
    kappa: float = 0.0
    early_abort: bool = False
    eot: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.steps >= 1, "steps", "an integer >= 1", self.steps)
        check(self.search_steps >= 1, "search_steps", "an integer >= 1", self.search_steps)
        check(0 < self.initial_c < math.inf, "initial_c", "a finite number > 0", self.initial_c)
        rate = self.learning_rate
        check(rate is None or 0 < rate < math.inf, "learning_rate", "a finite number > 0 or null", rate)
        check(0 <= self.kappa < math.inf, "kappa", "a finite number >= 0", self.kappa)
        check(self.eot >= 1, "eot", "an integer >= 1", self.eot)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """The smallest adversarial found for each image, (B, C, H, W)."""
        goal, towards = self.aim(model, x, y, random, self.eot)
        best, c = Best(x), x.new_full((len(x),), self.initial_c)
        low, high = torch.zeros_like(c), torch.full_like(c, math.inf)  # of c, for l2
        tau, gain = torch.ones_like(c), torch.full_like(c, 0.1)  # for l_inf; gain: 1 - tau / max |d_i|
        for _ in range(self.search_steps):
            before = -best.score  # the smallest norm so far, inf where there is none
            rate = before * (2 / math.sqrt(x[0].numel()) if threat.norm == "l2" else gain.clamp_min(0.05))
            won = self._search(model, x, goal, towards, threat.norm, c, tau, rate, random, best)
            if threat.norm == "l2":
                high, low = torch.where(won, c, high), torch.where(won, low, c)
                c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)
            else:
                gain = torch.where(won & (-best.score > 0.99 * before), gain / 2, gain)
                tau = torch.where(won, (1 - gain) * -best.score, tau)
                c = torch.where(won, c, 10 * c)
        margin = loss_towards("margin", towards)
        return settled(model, x, best.result(), lambda z, y: margin(z, y) - self.kappa, goal)

    def _search(
        self,
        model: nn.Module,
        x: Tensor,
        goal: Tensor,
        towards: bool,
        norm: Norm,
        c: Tensor,
        tau: Tensor,
        rate: Tensor,
        random: SampleRandom,
        best: Best,
    ) -> Tensor:
        """Descend from the clean images; c, tau and the largest step size are given per image.

        Returns whether each image was fooled by more than kappa, (B,).
        """
        l2, margin = norm == "l2", loss_towards("margin", towards)
        everything = Threat(norm=norm, eps=math.inf)
        farthest = math.sqrt(x[0].numel()) if l2 else 1.0  # the largest size that fits into the box

        def hinge(logits: Tensor, y: Tensor) -> Tensor:
            return (-margin(logits, y)).clamp_min(-self.kappa)

        rate = rate.clamp_max(self.learning_rate or (0.1 if l2 else 0.02))
        rows, won = torch.arange(len(x), device=x.device), torch.zeros_like(best.fooled)
        w = torch.atanh(0.999 * (2 * x - 1)) if l2 else x
        adam, objective = Adam(w), torch.full_like(c, math.inf)
        for step in range(self.steps):
            if l2:
                th = w.tanh()
                x_adv, slope = (th + 1) / 2, (1 - th**2) / 2
            else:
                x_adv, slope = w, torch.ones_like(w)
            grad, value, logits = input_gradient(model, x_adv, goal, hinge, random, self.eot)
            delta, gap = x_adv - x, margin(logits, goal)
            # A point that fools by less than kappa is better than none, and worse than any that does.
            score = -everything.size(delta) - farthest * (gap <= self.kappa)
            best.update(rows, x_adv, gap, torch.where(gap > 0, score, -math.inf))
            won[rows] |= gap > self.kappa

            size, pull = _size(delta, tau, norm)
            total, step_grad = size + c * value, slope * (pull + per_image(c, grad) * grad)
            if self.early_abort and step % max(1, self.steps // 10) == 0:
                stay = ~(total > 0.9999 * objective)
                x, goal, w, c, tau, rate, rows, step_grad, objective = (
                    t[stay] for t in (x, goal, w, c, tau, rate, rows, step_grad, total)
                )
                random = random.subset(stay)
                adam.keep(stay)
                if len(rows) == 0:
                    break
            w = w - per_image(rate * (1 - step / self.steps), w) * adam.step(step_grad)
            w = w if l2 else w.clamp(0, 1)
        return won


def _size(delta: Tensor, tau: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """The term that keeps the perturbation small, (B,), and its gradient, (B, C, H, W)."""
    if norm == "l2":
        return (delta**2).flatten(1).sum(1), 2 * delta
    over = (delta.abs() - per_image(tau, delta)).clamp_min(0)
    return over.flatten(1).sum(1), (over > 0) * delta.sign()

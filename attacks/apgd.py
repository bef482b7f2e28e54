"""APGD, projected gradient descent without a step size (Croce & Hein 2020, https://arxiv.org/abs/2003.01690)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.base import (
    Attack,
    Loss,
    SampleRandom,
    Threat,
    check,
    input_gradient,
    is_stochastic,
    logits_of,
    per_image,
)
from attacks.iterate import Best, random_start, steepest
from attacks.losses import dlr_targeted, likeliest_wrong, loss_towards

MOMENTUM, RHO = 0.75, 0.75  # the paper's alpha and rho


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Algorithm 1: steps of 2 eps with momentum, halved at checkpoints where the loss has stopped growing.

    A path starts at a random point of the ball. Wherever the step size is halved, it goes back to its point of the
    largest loss. On a network that is not random, an image leaves at the first point that fools.

    Args:
        target: see :class:`attacks.base.Attack`; must be ``none`` with ``dlr_targeted``.
        reference: see :class:`attacks.base.Attack`.
        steps: gradient steps per path, the paper's N_iter.
        restarts: paths per image (and class, with ``dlr_targeted``), each from a random point of its own.
        loss: what is ascended: ``ce``, ``margin``, ``pma`` (the margin of the probabilities), ``dlr`` (at least 3
            classes), or ``dlr_targeted`` (at least 4): paths towards the likeliest wrong classes one after another;
            any wrong class counts as success.
        eot: gradients and losses averaged per step when the network is random; 1 pass otherwise.
        targets: number of wrong classes that ``dlr_targeted`` tries; unused with other losses.
    """

    steps: int = 100
    restarts: int = 1
    loss: Literal["ce", "dlr", "dlr_targeted", "margin", "pma"] = "ce"
    eot: int = 1
    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.steps >= 1, "steps", "an integer >= 1", self.steps)
        check(self.restarts >= 1, "restarts", "an integer >= 1", self.restarts)
        losses = ("ce", "dlr", "dlr_targeted", "margin", "pma")
        check(self.loss in losses, "loss", " or ".join(losses), self.loss)
        check(self.eot >= 1, "eot", "an integer >= 1", self.eot)
        check(self.targets >= 1, "targets", "an integer >= 1", self.targets)
        free = self.loss != "dlr_targeted" or self.target == "none"
        check(free, "target", "none with loss: dlr_targeted", self.target)

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError for a ball without a radius: the first step is 2 eps."""
        check(math.isfinite(threat.eps), "eps", "a finite number", threat.eps)

    @property
    def passes(self) -> int:
        """Gradient passes per image at most."""
        return super().passes * (self.targets if self.loss == "dlr_targeted" else 1)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return a candidate (B, C, H, W) per image."""
        goal, towards = self.aim(model, x, y, random, self.eot)
        best, rows, stops = Best(x), torch.arange(len(x), device=x.device), not is_stochastic(model)
        with torch.no_grad():
            clean = logits_of(model, x, random, self.eot)
        best.update(rows, x, loss_towards("margin", towards)(clean, goal))
        targeted = self.loss == "dlr_targeted"
        for _ in range(self.restarts):
            for other in likeliest_wrong(clean, y, self.targets).T if targeted else goal[None]:
                if stops:
                    rows = (~best.fooled).nonzero().flatten()
                if len(rows) == 0:
                    break
                streams, classes = random.subset(rows), torch.stack([goal, other], 1)[rows]
                self._climb(model, x[rows], classes, towards, threat, streams, best, rows)
        return best.result()

    def _climb(
        self,
        model: nn.Module,
        x: Tensor,
        classes: Tensor,
        towards: bool,
        threat: Threat,
        random: SampleRandom,
        best: Best,
        rows: Tensor,
    ) -> None:
        """One path per image; shows its points to ``best``, within which ``rows`` numbers these images.

        ``classes`` (B, 2) holds the class to leave (or to reach, if ``towards``) and that of ``dlr_targeted``.
        """
        objective, stops = self._objective(towards), not is_stochastic(model)
        margin, checkpoints = loss_towards("margin", towards), _checkpoints(self.steps)
        x_adv = x_old = random_start(x, threat, random)
        grad, value, logits = input_gradient(model, x_adv, classes, objective, random, self.eot)
        best.update(rows, x_adv, margin(logits, classes[:, 0]))
        # The point of the largest loss, its loss and its gradient.
        x_max, f_max, grad_max = x_adv, value.nan_to_num(nan=-math.inf), grad
        eta, f_before, rises = torch.full_like(value, 2 * threat.eps), f_max, torch.zeros_like(value)
        halved = torch.zeros_like(best.fooled[rows])
        last_checkpoint = 0
        for k in range(1, self.steps + 1):
            if stops and bool(best.fooled[rows].any()):
                stay = ~best.fooled[rows]
                x, classes, x_adv, x_old, grad, value, rows = (
                    t[stay] for t in (x, classes, x_adv, x_old, grad, value, rows)
                )
                x_max, f_max, grad_max, eta, f_before, rises, halved = (
                    t[stay] for t in (x_max, f_max, grad_max, eta, f_before, rises, halved)
                )
                random = random.subset(stay)
                if len(rows) == 0:
                    return
            z = threat.project(x_adv + per_image(eta, x) * steepest(grad, threat.norm), x)
            if k > 1:
                z = threat.project(x_adv + MOMENTUM * (z - x_adv) + (1 - MOMENTUM) * (x_adv - x_old), x)
            x_old, x_adv, f_old = x_adv, z, value
            if k == self.steps:
                break
            grad, value, logits = input_gradient(model, x_adv, classes, objective, random, self.eot)
            best.update(rows, x_adv, margin(logits, classes[:, 0]))
            rises = rises + (value > f_old)
            better = value > f_max
            x_max, f_max = torch.where(per_image(better, x), x_adv, x_max), torch.where(better, value, f_max)
            grad_max = torch.where(per_image(better, x), grad, grad_max)
            if k in checkpoints:
                # Condition 1: too few steps raised the loss. Condition 2: none has since the last checkpoint found
                # a new maximum, though the step size was not halved there.
                halve = (rises < RHO * (k - last_checkpoint)) | (~halved & (f_max == f_before))
                eta = torch.where(halve, eta / 2, eta)
                x_adv, value = (
                    torch.where(per_image(halve, x), x_max, x_adv),
                    torch.where(halve, f_max, value),
                )
                grad = torch.where(per_image(halve, x), grad_max, grad)
                f_before, halved, rises, last_checkpoint = f_max, halve, torch.zeros_like(rises), k
        with torch.no_grad():
            logits = logits_of(model, x_adv, random, self.eot)
        best.update(rows, x_adv, margin(logits, classes[:, 0]))

    def _objective(self, towards: bool) -> Loss:
        """The loss of logits (B, K) and two classes per image (B, 2); see ``_climb``."""
        if self.loss == "dlr_targeted":
            return lambda logits, classes: dlr_targeted(logits, classes[:, 0], classes[:, 1])
        loss = loss_towards(self.loss, towards)
        return lambda logits, classes: loss(logits, classes[:, 0])


def _checkpoints(steps: int) -> list[int]:
    """w_j = ceil(p_j * steps) with p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""
    hundredths, gap = [22], 22  # in whole hundredths, so that no rounding moves a checkpoint
    while hundredths[-1] < 100:
        gap = max(gap - 3, 6)
        hundredths.append(hundredths[-1] + gap)
    return [-(-p * steps // 100) for p in hundredths if p <= 100]

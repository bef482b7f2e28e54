"""IFGSM / BIM (Kurakin, Goodfellow, Bengio 2017, https://arxiv.org/abs/1607.02533), with momentum on request:
MI-FGSM (Dong et al. 2018, https://arxiv.org/abs/1710.06081).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

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
    per_image,
)
from attacks.iterate import Best, steepest
from attacks.losses import LOSSES, LossName, loss_towards


@dataclass(frozen=True, kw_only=True)
class IFGSM(Attack):
    """Gradient steps from the clean image: x^m = clip_{x,eps}(x^{m-1} + alpha * sign(grad L(x^{m-1}, y))).

    With an l2 threat the step is alpha * grad / ||grad||_2 and the clip the projection onto the ball.

    Args:
        target: see :class:`attacks.base.Attack`.
        reference: see :class:`attacks.base.Attack`.
        steps: the paper's M.
        step_size: the paper's alpha, in pixel units; None means 2.5 * eps / steps (Madry et al. 2018, app. A), which
            lets the path reach the boundary of the ball from anywhere in it and move along it.
        loss: what is ascended: ``ce`` (cross-entropy, the papers'), ``margin``, ``dlr`` or ``pma``.
        eot: gradients averaged per step when the network is random; 1 pass otherwise.
        momentum: MI-FGSM's mu, the decay of the accumulated l1-normalised gradients; 0 uses the last gradient alone.
        keep: ``last`` returns the last point, as the papers do; ``best`` the point of the largest margin on the way,
            which fools the network if any point visited does (one more forward pass).
        early_stop: an image leaves the batch at the first point that fools; needs ``keep: best``. None stops wherever
            the verdict stays the same, which is with ``keep: best`` on a network that is not random.
    """

    steps: int = 20
    step_size: float | None = None
    loss: LossName = "ce"
    eot: int = 1
    momentum: float = 0.0
    keep: Literal["best", "last"] = "best"
    early_stop: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.steps >= 1, "steps", "an integer >= 1", self.steps)
        alpha = self.step_size
        check(alpha is None or 0 < alpha < math.inf, "step_size", "a finite number > 0 or null", alpha)
        check(self.loss in LOSSES, "loss", " or ".join(LOSSES), self.loss)
        check(self.eot >= 1, "eot", "an integer >= 1", self.eot)
        check(0 <= self.momentum < math.inf, "momentum", "a finite number >= 0", self.momentum)
        check(self.keep in ("best", "last"), "keep", "best or last", self.keep)
        early = self.early_stop
        check(self.keep == "best" or not early, "early_stop", "false or null with keep: last", early)

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError when the threat leaves a step without a length."""
        alpha = self.step_size
        known = alpha is not None or math.isfinite(threat.eps)
        check(known, "step_size", "a number, as 2.5 * eps / steps needs a finite eps", alpha)

    def stops(self, model: nn.Module) -> bool:
        """Whether an image leaves at its first success: never on a random network unless asked for."""
        if self.early_stop is None:
            return self.keep == "best" and not is_stochastic(model)
        return self.early_stop

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return a candidate (B, C, H, W) per image."""
        return self.from_start(model, x, y, threat, x, random)

    def from_start(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, start: Tensor, random: SampleRandom
    ) -> Tensor:
        """The attack's path from given points ``start`` (B, C, H, W) of the ball; else as ``run``."""
        goal, towards = self.aim(model, x, y, random, self.eot)
        best, rows = Best(x), torch.arange(x.shape[0], device=x.device)
        last = self._climb(model, x, goal, towards, threat, start, random, best, rows)
        return last if self.keep == "last" else best.result()

    def _climb(
        self,
        model: nn.Module,
        x: Tensor,
        goal: Tensor,
        towards: bool,
        threat: Threat,
        x_adv: Tensor,
        random: SampleRandom,
        best: Best,
        rows: Tensor,
    ) -> Tensor:
        """Ascend from ``x_adv``; return the last points, or show all of them to ``best`` with ``keep: best``.

        ``rows`` numbers these images within ``best``.
        """
        loss, margin = loss_towards(self.loss, towards), loss_towards("margin", towards)
        alpha = 2.5 * threat.eps / self.steps if self.step_size is None else self.step_size
        stops, direction, bounds = self.stops(model), torch.zeros_like(x), threat.bounds(x)
        for _ in range(self.steps):
            grad, _, logits = input_gradient(model, x_adv, goal, loss, random, self.eot)
            if self.keep == "best":
                best.update(rows, x_adv, margin(logits, goal))
            if stops and bool(best.fooled[rows].any()):
                stay = ~best.fooled[rows]
                x, goal, x_adv, grad, direction = (t[stay] for t in (x, goal, x_adv, grad, direction))
                rows, random, bounds = rows[stay], random.subset(stay), threat.bounds(x)
                if len(rows) == 0:
                    return x_adv
            if self.momentum:
                length = grad.abs().flatten(1).sum(1).clamp_min(torch.finfo(grad.dtype).tiny)
                direction = self.momentum * direction + grad / per_image(length, grad)
            else:
                direction = grad
            x_adv = x_adv + alpha * steepest(direction, threat.norm)
            # The same numbers as project()'s, without making the bounds anew at every step.
            x_adv = x_adv.clamp(*bounds) if threat.norm == "linf" else threat.project(x_adv, x)
        if self.keep == "best":
            with torch.no_grad():
                logits = logits_of(model, x_adv, random, self.eot)
            best.update(rows, x_adv, margin(logits, goal))
        return x_adv

"""What adversarial training with a single gradient step shares: the step, and an alarm for catastrophic overfitting."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from attacks.base import Threat, check, input_gradient
from attacks.losses import cross_entropy
from defenses.base import Log, Precision, Step, gathered
from defenses.robust.attacking import Attacking, parts, quick_copy, scaled
from defenses.robust.draws import BatchRandom
from defenses.robust.overfitting import Alarm


@dataclass(frozen=True, kw_only=True)
class SingleStep(Attacking):
    """Base of adversarial training by x + eta + alpha * sign(grad L(x + eta, y)), eta uniform noise; l_inf only.

    Further settings (``norm``, ``eps``, ``eps_warm_up``) are those of :class:`defenses.robust.attacking.Attacking`.

    Args:
        step_size: alpha in units of eps, finite and > 0.
        gradient: the precision of the gradient, whose signs are all that is used of it: the stage's (``stage``), or
            ``bf16``, which is quicker on hardware that has it and turns the signs of the smallest entries.
        batch_statistics: batch-norm layers use the attacked batch's own statistics during the attack, as in the
            authors' code; off uses the running ones, as at test time, which is quicker. Neither changes the running
            ones.
        alarm_images: training images, the first of every epoch, on which the network is attacked with FGSM and PGD-10
            after the epoch; 0 looks at none. The history gets ``fgsm_accuracy``, ``pgd_accuracy`` and ``overfitting``.
        alarm_gap: percentage points by which the accuracy under PGD-10 may lie below that under FGSM, or below its best
            so far, before ``overfitting`` is 1; in (0, 100].
    """

    step_size: float = 1.0
    gradient: Literal["stage", "bf16"] = "stage"
    batch_statistics: bool = False
    alarm_images: int = 128
    alarm_gap: float = 20.0
    _looked_at: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.norm in (None, "linf"), "norm", "'linf' or null", self.norm)
        check(0 < self.step_size < math.inf, "step_size", "a finite number > 0", self.step_size)
        check(
            0 <= self.alarm_images <= 100_000, "alarm_images", "an integer in [0, 100000]", self.alarm_images
        )
        check(self.gradient in ("stage", "bf16"), "gradient", "stage or bf16", self.gradient)
        fine = self.gradient == "stage" or not self.batch_statistics
        check(fine, "gradient", "stage with batch_statistics", self.gradient)
        check(0 < self.alarm_gap <= 100, "alarm_gap", "a number in (0, 100]", self.alarm_gap)

    @abstractmethod
    def start(self, x: Tensor, eps: float, random: BatchRandom) -> Tensor:
        """x + eta: where the gradient is taken, (B, C, H, W) in [0, 1]."""

    @abstractmethod
    def finish(self, x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
        """What becomes of the point that the step leads to, (B, C, H, W) in [0, 1]."""

    @property
    def _precision(self) -> Precision | None:
        return "bf16" if self.gradient == "bf16" else None

    @property
    def passes(self) -> int:
        """Gradient passes per minibatch."""
        return 0 if self.eps == 0 else 1

    def check_stage(self, s: Step) -> None:
        """The ball must be a finite one in l_inf."""
        super().check_stage(s)
        threat = self.threat(s.threat)
        check(threat.norm == "linf", "norm", "'linf', here or in the benchmark's threat", threat.norm)
        check(math.isfinite(threat.eps), "eps", "a finite radius", threat.eps)

    def perturb(self, s: Step) -> Tensor:
        """One step on the current network; noise comes from this defense's stream."""
        threat = self.threat(s.threat)
        if threat.eps == 0:
            return s.x
        self._remember(s)
        eps, x, random = scaled(threat, self.grown(s)).eps, s.x, BatchRandom(s.generator, len(s.x), s.part)
        start = self.start(x, eps, random)
        with quick_copy(s, self._precision, self.batch_statistics) as network:
            gradient = torch.cat(
                [
                    input_gradient(network, start[part], s.y[part], cross_entropy, random)[0]
                    for part in parts(network, start)
                ]
            )
        return self.finish(start + self.step_size * eps * gradient.sign(), x, eps).detach()

    def end_epoch(self, s: Step) -> Log:
        """Look for catastrophic overfitting."""
        threat, found = self.threat(s.threat), self._looked_at.pop("images", [])
        if threat.eps == 0 or not found:
            return {}
        x, y = (torch.cat(parts)[: self.alarm_images] for parts in zip(*found, strict=True))
        best = self.memory.get("best", 0.0)
        with quick_copy(s) as network:
            log = Alarm(gap=self.alarm_gap).look(network, x, y, threat, s.generator, best)
        self.memory["best"] = max(best, log["pgd_accuracy"])
        if log["overfitting"] and s.tell is not None:
            s.tell(_warning(s, threat, log))
        return log

    def _remember(self, s: Step) -> None:
        """Keep the first images of an epoch, as they are before the attack."""
        if s.minibatch == 0:
            self._looked_at["images"] = []
        images = self._looked_at.setdefault("images", [])
        if sum(len(y) for _, y in images) < self.alarm_images:
            images.append((gathered(s, s.x), gathered(s, s.y)))


def _warning(s: Step, threat: Threat, log: Log) -> str:
    return (
        f"epoch {s.epoch + 1}: catastrophic overfitting: of its training images {log['fgsm_accuracy']:.0f} % withstand "
        f"FGSM and {log['pgd_accuracy']:.0f} % PGD-10 at eps {threat.eps:.4g}"
    )

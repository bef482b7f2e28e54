"""Adversarial training with PGD (Dinh 4.2.3, Roith 1.2; Madry et al. 2018, https://arxiv.org/abs/1706.06083)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.base import Norm, Threat, check
from attacks.losses import LOSSES, LossName
from attacks.pgd import PGD
from defenses.base import Defense, Step, frozen_statistics
from defenses.robust.draws import BatchRandom


@dataclass(frozen=True, kw_only=True)
class PGDAT(Defense):
    """Adversarial training: every minibatch is replaced by its PGD adversarial examples.

    min_w E max_{||d|| <= eps} L(x + d, y) (Dinh 4.2.3). The examples are the last points of one PGD path from
    a random start, as published. With radius 0 this is natural training.

    Args:
        norm: ``linf`` or ``l2``; None takes the benchmark's threat. A norm needs an ``eps`` beside it.
        eps: radius of the ball in pixel units, >= 0; None takes the benchmark's.
        steps: PGD's M, >= 1.
        step_size: PGD's alpha in pixel units; None means 2.5 * eps / steps.
        random_start: start at a uniformly random point of the ball.
        loss: what the attack ascends, ``ce`` or ``margin``.
        eot: gradients averaged per step when the network is random.
        batch_statistics: batch-norm layers use the attacked batch's own statistics during the attack, as in
            training mode; off uses the running ones, as at test time. Neither changes the running ones.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classify",)
    norm: Norm | None = None
    eps: float | None = None
    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    loss: LossName = "ce"
    eot: int = 1
    batch_statistics: bool = False

    def __post_init__(self) -> None:
        check(self.norm in (None, "linf", "l2"), "norm", "'linf', 'l2' or null", self.norm)
        check(self.eps is None or self.eps >= 0, "eps", "a number >= 0 or null", self.eps)
        check(self.norm is None or self.eps is not None, "eps", "a radius beside norm", self.eps)
        check(self.loss in LOSSES, "loss", " or ".join(LOSSES), self.loss)
        self.attack()  # checks the settings it shares with PGD, by the same names

    def attack(self) -> PGD:
        """The attack trained against."""
        return PGD(
            steps=self.steps,
            step_size=self.step_size,
            random_start=self.random_start,
            loss=self.loss,
            eot=self.eot,
            keep="last",
        )

    @property
    def passes(self) -> int:
        """Gradient passes per minibatch."""
        return 0 if self.eps == 0 else self.attack().passes

    def threat(self, benchmark: Threat) -> Threat:
        """The ball trained against: the benchmark's where a setting is None."""
        norm = benchmark.norm if self.norm is None else self.norm
        return Threat(norm=norm, eps=benchmark.eps if self.eps is None else self.eps)

    def check_stage(self, s: Step) -> None:
        """Refuse a ball the attack cannot work in, such as an infinite one with a random start."""
        threat = self.threat(s.threat)
        self.attack().check_threat(threat)
        # Pixels lie in [0, 1]: beyond 1, l_inf bounds nothing, and 8 / 255 is what is meant by 8.
        fine = threat.norm != "linf" or not 1 < threat.eps < math.inf
        check(fine, "eps", "at most 1 for linf, in units of the pixel range (8/255, not 8)", threat.eps)

    def begin(self, s: Step) -> None:
        """As ``check_stage``."""
        self.check_stage(s)

    def perturb(self, s: Step) -> Tensor:
        """PGD on the current network; draws starts and network noise from this defense's stream."""
        threat = self.threat(s.threat)
        if threat.eps == 0:
            return s.x
        # run() and not the call: its checks read values back from the device, which would wait for it.
        attack, random = self.attack().run, BatchRandom(s.generator, len(s.x))
        if s.fast is not None and not self.batch_statistics:
            return attack(s.fast(), s.x, s.y, threat, random).detach()
        statistics = _batch_statistics if self.batch_statistics else frozen_statistics
        with statistics(s.model):
            return attack(s.model, s.x, s.y, threat, random).detach()


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Eval mode in which batch-norm layers normalise by the batch's statistics and keep no record of them."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    running = [(m.running_mean, m.running_var) for m in layers]
    with frozen_statistics(model):
        try:
            for m in layers:  # without running statistics there is nothing to use or to update
                m.running_mean = m.running_var = None
            yield
        finally:
            for m, (mean, var) in zip(layers, running, strict=True):
                m.running_mean, m.running_var = mean, var

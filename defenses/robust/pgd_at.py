"""Adversarial training with PGD (Dinh 4.2.3, Roith 1.2; Madry et al. 2018, https://arxiv.org/abs/1706.06083)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.base import Threat, check
from attacks.iterate import random_start
from attacks.losses import LOSSES, LossName
from attacks.pgd import PGD
from defenses.base import Step
from defenses.robust.attacking import Attacking, attacked, parts, scaled
from defenses.robust.draws import BatchRandom


@dataclass(frozen=True, kw_only=True)
class PGDAT(Attacking):
    """Adversarial training: every minibatch is replaced by its PGD adversarial examples.

    min_w E max_{||d|| <= eps} L(x + d, y) (Dinh 4.2.3). The examples are the last points of one PGD path from
    a random start, as published. With radius 0 this is natural training.

    Further settings (``norm``, ``eps``, ``eps_warm_up``) are those of :class:`defenses.robust.attacking.Attacking`.

    Args:
        steps: PGD's M, >= 1.
        step_size: PGD's alpha in pixel units; None means 2.5 * eps / steps.
        random_start: start at a uniformly random point of the ball.
        loss: what the attack ascends, ``ce`` or ``margin``.
        eot: gradients averaged per step when the network is random.
        batch_statistics: batch-norm layers use the attacked batch's own statistics during the attack, as in
            training mode; off uses the running ones, as at test time. Neither changes the running ones.
    """

    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    loss: LossName = "ce"
    eot: int = 1
    batch_statistics: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
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

    def check_stage(self, s: Step) -> None:
        """Refuse a ball the attack cannot work in, such as an infinite one with a random start."""
        self.attack().check_threat(self.threat(s.threat))
        super().check_stage(s)

    def perturb(self, s: Step) -> Tensor:
        """PGD on the current network; draws starts and network noise from this defense's stream."""
        threat, attack = self.threat(s.threat), self.attack()
        if threat.eps == 0:
            return s.x
        share = self.grown(s)
        if attack.step_size is not None and share < 1:
            attack = dataclasses.replace(attack, step_size=share * attack.step_size)
        random = BatchRandom(s.generator, len(s.x), s.part)
        with attacked(s, self.batch_statistics) as network:
            return _attacked(attack, network, s.x, s.y, scaled(threat, share), random).detach()


def _attacked(
    attack: PGD, network: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: BatchRandom
) -> Tensor:
    """The last points of the attack, part by part, from starts drawn for all images at once; (B, C, H, W)."""
    several = parts(network, x)
    # run() and from_start(), not the call: its checks read values back from the device, which would wait for it.
    if len(several) == 1:
        return attack.run(network, x, y, threat, random)
    start = random_start(x, threat, random) if attack.random_start else x
    return torch.cat([attack.from_start(network, x[p], y[p], threat, start[p], random) for p in several])

"""Catastrophic overfitting of single-step training: robust to one step, and to nothing else.

Wong, Rice, Kolter 2020, https://arxiv.org/abs/2001.03994, section 5.1; Andriushchenko, Flammarion 2020,
https://arxiv.org/abs/2007.02617.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.base import Attack, Threat, exact_of
from attacks.ifgsm import IFGSM
from attacks.pgd import PGD
from defenses.base import Log
from defenses.robust.draws import BatchRandom


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """Compares a network's accuracy under one step with that under ten, on the same images.

    Attributes:
        gap: percentage points. It rings where the accuracy under PGD-10 lies more than this below that under FGSM, or
            more than this below its own best so far (the rule of Wong et al.'s code, there with 20 and from one epoch
            to the next).
    """

    gap: float = 20.0

    def look(
        self,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        stream: torch.Generator,
        best: float = 0.0,
    ) -> Log:
        """Attack images twice.

        Args:
            network: in eval mode.
            x, y: images (B, C, H, W) and labels (B,).
            threat: the ball.
            stream: where starts come from; it is not moved on.
            best: the highest ``pgd_accuracy`` of earlier looks, in percent.

        Returns:
            ``fgsm_accuracy`` and ``pgd_accuracy`` in percent, and ``overfitting``, 1 where it rings and else 0.
        """
        own = torch.Generator(stream.device)
        own.set_state(stream.get_state())
        random = BatchRandom(own, len(x))

        def accuracy(attack: Attack) -> float:
            candidate = attack.run(network, x, y, threat, random)
            with torch.no_grad():
                right = (exact_of(network) or network)(candidate).argmax(1) == y
            return 100 * right.double().mean().item()

        fgsm = accuracy(IFGSM(steps=1, step_size=threat.eps, keep="last"))
        pgd = accuracy(PGD(steps=10))
        rings = pgd < max(fgsm, best) - self.gap
        return {"fgsm_accuracy": fgsm, "pgd_accuracy": pgd, "overfitting": float(rings)}

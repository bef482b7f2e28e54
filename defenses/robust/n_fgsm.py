"""N-FGSM (de Jorge et al. 2022, https://arxiv.org/abs/2202.01181): one step from strong noise, and no clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from attacks.base import check
from defenses.robust.draws import BatchRandom
from defenses.robust.single_step import SingleStep


@dataclass(frozen=True, kw_only=True)
class NFGSM(SingleStep):
    """Adversarial training with one step from noise that leaves the ball, as does the step.

    eta ~ U(-k eps, k eps), delta = eta + alpha * sign(grad L(x + eta, y)), trained on x + delta (de Jorge et al., Alg.
    1): delta is not clipped to the ball; pixels are clipped to [0, 1] after the noise and after the step, as in the
    authors' code. With radius 0 this is natural training.

    Further settings (``norm``, ``eps``, ``eps_warm_up``, ``step_size``, ``gradient``, ``batch_statistics``,
    ``alarm_images``, ``alarm_gap``) are those of :class:`defenses.robust.single_step.SingleStep`; ``step_size`` 1 is
    the authors' alpha.

    Args:
        noise: the paper's k, finite and >= 0.
    """

    noise: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.noise < math.inf, "noise", "a finite number >= 0", self.noise)

    def start(self, x: Tensor, eps: float, random: BatchRandom) -> Tensor:
        """x + k eps U(-1, 1), in [0, 1]."""
        return (x + self.noise * eps * (2 * random.uniform(x) - 1)).clamp(0, 1)

    def finish(self, x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
        """Clip to [0, 1] only."""
        return x_adv.clamp(0, 1)

"""PGD, projected gradient descent from random starts (Madry et al. 2018, https://arxiv.org/abs/1706.06083)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.base import SampleRandom, Threat, check
from attacks.ifgsm import IFGSM
from attacks.iterate import Best, random_start


@dataclass(frozen=True, kw_only=True)
class PGD(IFGSM):
    """IFGSM from uniformly random points of the ball, best of several restarts.

    Further settings (``target``, ``reference``, ``steps``, ``step_size``, ``loss``, ``eot``, ``momentum``, ``keep``,
    ``early_stop``) are those of :class:`attacks.ifgsm.IFGSM`.

    Args:
        random_start: start at a uniformly random point of the ball; false starts at the clean image.
        restarts: paths per image, each from a start of its own; the best point of all of them is returned.
    """

    random_start: bool = True
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.restarts >= 1, "restarts", "an integer >= 1", self.restarts)
        several = self.random_start and self.keep == "best"
        check(
            several or self.restarts == 1, "restarts", "1 without random_start or keep: best", self.restarts
        )

    def check_threat(self, threat: Threat) -> None:
        """Raise ValueError when the threat leaves a step without a length."""
        super().check_threat(threat)
        finite = math.isfinite(threat.eps) or not self.random_start
        check(finite, "random_start", "false where eps is infinite", self.random_start)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        """Return a candidate (B, C, H, W) per image."""
        goal, towards = self.aim(model, x, y, random, self.eot)
        best, last, stops = Best(x), x, self.stops(model)
        rows = torch.arange(x.shape[0], device=x.device)
        for _ in range(self.restarts):
            if stops:
                rows = (~best.fooled).nonzero().flatten()
            if len(rows) == 0:
                break
            clean, streams = x[rows], random.subset(rows)
            start = random_start(clean, threat, streams) if self.random_start else clean
            last = self._climb(model, clean, goal[rows], towards, threat, start, streams, best, rows)
        return last if self.keep == "last" else best.result()

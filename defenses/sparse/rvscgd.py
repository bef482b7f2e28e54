"""RVSCGD, relaxed variable splitting with coarse gradients: RVSM on unit filters, for steps; Dinh 3.1.3, Alg. 2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from attacks.base import check
from defenses.base import Make, Step
from defenses.regularisers import group_norms
from defenses.sparse.one_layer import BinaryReLU, binarised
from defenses.sparse.rvsm import RVSM


@dataclass(frozen=True, kw_only=True)
class RVSCGD(RVSM):
    """RVSM with every filter scaled to norm 1 after each step, and ReLUs that may be replaced by steps.

    The algorithm is stated for one filter w in front of 1[x > 0], whose output does not depend on ||w||: it
    trains by a coarse gradient, that of a ReLU of slope sqrt(2/pi) (Dinh (3.6)), and w <- w / ||w|| keeps the
    iterates from 0. In a network each filter or row W[o] of the weights acted upon takes w's part. Scaling
    changes the function of a network with ReLUs, unless batch-norm follows the layer. The norms are those
    after a step; w <- u at an epoch's end may leave others until the next one. With beta = 0 nothing is scaled.

    Args:
        binarise: replace every nn.ReLU of the network by a step with the coarse gradient. Such a network hands
            coarse gradients to gradient-based attacks too, so judge it by gradient-free ones as well.
    """

    binarise: bool = False

    def wrap(self, make: Make) -> Make:
        """Networks with steps for ReLUs, where asked for."""
        return (lambda: binarised(make())) if self.binarise else make

    def check(self, model: nn.Module) -> None:
        """As for RVSM; and there must be ReLUs to replace."""
        super().check(model)
        found = any(isinstance(m, BinaryReLU) for m in model.modules())
        check(found or not self.binarise, "binarise", "a network with nn.ReLU modules", type(model).__name__)

    @torch.no_grad()
    def after_step(self, s: Step) -> None:
        """W[o] <- W[o] / ||W[o]||, then u <- prox(w)."""
        if self.beta > 0:
            weights = list(self._weights(s.model).values())
            norms = [group_norms(w, "filter").clamp_min(torch.finfo(w.dtype).tiny) for w in weights]
            torch._foreach_div_(weights, norms)
        super().after_step(s)

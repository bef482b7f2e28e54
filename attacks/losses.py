"""Losses an attack ascends: one value per image, larger means closer to misclassification."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from attacks.base import Loss

LossName = Literal["ce", "margin"]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy L(F(x), y) of each image; logits (B, K), y (B,) -> (B,)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{i != y} Z_i - Z_y: positive exactly when the image is misclassified (Carlini & Wagner 2017, f_6)."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    other = logits.scatter(1, y[:, None], -math.inf).amax(1)
    return other - own


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin}


def loss_towards(name: LossName, towards: bool) -> Loss:
    """The named loss for an untargeted attack, or its negative for reaching the class given as label."""
    loss = LOSSES[name]
    return (lambda logits, y: -loss(logits, y)) if towards else loss

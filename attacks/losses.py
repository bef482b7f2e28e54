"""Losses an attack ascends: one value per image, larger means closer to misclassification."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.base import Loss, check

LossName = Literal["ce", "margin", "dlr", "pma"]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy L(F(x), y) of each image; logits (B, K), y (B,) -> (B,)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{i != y} Z_i - Z_y: positive exactly when the image is misclassified (Carlini & Wagner 2017, f_6)."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    other = logits.scatter(1, y[:, None], -math.inf).amax(1)
    return other - own


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, eq. 6): the margin over Z_(1) - Z_(3), sorted downwards.

    Neither scaling nor shifting the logits changes it: it does not saturate where the cross-entropy does.

    Args:
        logits: (B, K), K >= 3.
        y: labels (B,).

    Returns:
        The loss (B,), positive exactly where the image is misclassified.

    Raises:
        ValueError: for fewer than 3 classes.
    """
    check(logits.shape[1] >= 3, "dlr", "logits of at least 3 classes", logits.shape[1])
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2]).clamp_min(SMALLEST_SPREAD)


def dlr_targeted(logits: Tensor, y: Tensor, goal: Tensor) -> Tensor:
    """Targeted DLR (Croce & Hein 2020, eq. 7): (Z_goal - Z_y) / (Z_(1) - (Z_(3) + Z_(4)) / 2).

    Args:
        logits: (B, K), K >= 4.
        y: labels (B,).
        goal: the classes to reach (B,).

    Returns:
        The loss (B,), positive exactly where ``goal`` is ahead of ``y``.

    Raises:
        ValueError: for fewer than 4 classes.
    """
    check(logits.shape[1] >= 4, "dlr_targeted", "logits of at least 4 classes", logits.shape[1])
    top = logits.topk(4, dim=1).values
    spread = (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(SMALLEST_SPREAD)
    return lead(logits, y, goal) / spread


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k != y} p_k - p_y of the softmax p: the probability margin attack (PMA, https://arxiv.org/abs/2411.15210).

    With S = log sum_{k != y} exp Z_k - Z_y and q the softmax of the wrong classes alone it is
    (1 + max q) sigmoid(S) - 1. Where p_y rounds to 1, the softmax's own gradient is lost to cancellation; that of this
    form is not.

    Args:
        logits: (B, K), K >= 2.
        y: labels (B,).

    Returns:
        The loss (B,) in [-1, 1], positive exactly where the image is misclassified; of the logits' type, computed in
        float64.
    """
    wide = logits.double()
    own = wide.gather(1, y[:, None]).squeeze(1)
    wrong = wide.scatter(1, y[:, None], -math.inf)
    total = wrong.logsumexp(1)
    share = (wrong.amax(1) - total).exp()
    return ((1 + share) * torch.sigmoid(total - own) - 1).to(logits.dtype)


def lead(logits: Tensor, y: Tensor, goal: Tensor) -> Tensor:
    """Z_goal - Z_y: how far one class is ahead of another; logits (B, K), y (B,), goal (B,) -> (B,)."""
    return (logits.gather(1, goal[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


def likeliest_wrong(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The ``count`` classes of the largest logits, ``y`` left out, likeliest first; (B, min(count, K - 1))."""
    wrong = logits.scatter(1, y[:, None], -math.inf)
    return wrong.topk(min(count, logits.shape[1] - 1), dim=1).indices


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each restored image; (B, C, H, W) twice -> (B,)."""
    return (outputs - targets).square().flatten(1).mean(1)


# Keeps a ratio finite where the largest logits are equal, as those of a saturated output may be.
SMALLEST_SPREAD = 1e-12
LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr, "pma": probability_margin}


def loss_towards(name: LossName, towards: bool) -> Loss:
    """The named loss for an untargeted attack, or its negative for reaching the class given as label."""
    loss = LOSSES[name]
    return (lambda logits, y: -loss(logits, y)) if towards else loss

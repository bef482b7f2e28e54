"""Label smoothing (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from attacks.base import check
from defenses.base import Defense, Step


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Defense):
    """The cross-entropy with labels that leave a little to every class.

    -sum_k q_k log p_k, q = (1 - eps) e_y + eps / K, in the place of the task's loss (Szegedy et al., section 7). It
    goes with whatever attacks the images, with the divergence of ``trades``, and not with ``mart``, whose loss is its
    own. Attacks climb the plain loss. At 0 nothing changes.

    Args:
        smoothing: the paper's epsilon, in [0, 1).
    """

    tasks: ClassVar[tuple[str, ...]] = ("classify",)
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        check(0 <= self.smoothing < 1, "smoothing", "a number in [0, 1)", self.smoothing)

    def criterion(self, s: Step) -> Tensor | None:
        """The mean over the minibatch; None at 0."""
        if self.smoothing == 0:
            return None
        assert s.outputs is not None
        return F.cross_entropy(s.outputs, s.y, label_smoothing=self.smoothing)

"""RigL, the rigged lottery; Evci et al. 2020, https://arxiv.org/abs/1911.11134."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defenses.base import Step
from defenses.sparse.dynamic import Dynamic


@dataclass(frozen=True, kw_only=True)
class RigL(Dynamic):
    """Dynamic sparse training that grows where the gradient is largest, with a share traded that falls to 0.

    The gradient is that of the minibatch's loss with respect to all weights, the zeros included; beside ``pgd_at`` and
    the like it is the robust loss's. Published, a step that trades does nothing else; here it is a training step, too.
    """

    def growth(self, s: Step, name: str, weight: Tensor) -> Tensor:
        """The size of the gradient."""
        return torch.zeros_like(weight) if weight.grad is None else weight.grad.detach().abs()

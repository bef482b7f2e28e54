"""AWP, adversarial weight perturbation (Wu, Xia, Wang 2020, https://arxiv.org/abs/2004.05884)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks.base import check
from defenses.base import Defense, Step, prunable, summed


@dataclass(frozen=True, kw_only=True)
class AWP(Defense):
    """Every step descends the robust loss at weights that were first moved against it.

    min_w max_{v in V(w)} rho(w + v), rho the training loss on the attacked minibatch and V(w) = {v : ||v_l|| <= gamma
    ||w_l|| for every layer l} (Wu et al., eq. (7) and (8)). One ascent step finds v_l = gamma ||w_l|| g_l / ||g_l||, g
    the gradient of rho, in training mode; then the network makes its pass at w + v, and w itself is put back, bit for
    bit, before the optimizer steps with that gradient. (The authors' code puts it back after the step: its weight decay
    is of w + v.) rho is ``Step.objective``: whatever loss the other defenses of the stage make, such as that of
    ``pgd_at``, ``trades`` and ``mart``.

    Layers are convolutions and linear layers; their biases and batch-norm stay as they are. A weight that is exactly
    zero is not moved, and counts in neither norm: a pruned network is attacked in the weights it has. A weight that
    another defense keeps frozen or makes from other parameters is not moved either. At gamma 0 nothing is done.

    Args:
        gamma: the relative size of v, finite and >= 0; 0.005 is the authors' for CIFAR-10.
        warm_up: epochs of the stage before the first v, >= 0.
    """

    needs_attack: ClassVar[bool] = True
    gamma: float = 5e-3
    warm_up: int = 0
    # Weights and what they were, from before_forward to after_backward: nothing is saved in between.
    _moved: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check(0 <= self.gamma < math.inf, "gamma", "a finite number >= 0", self.gamma)
        check(self.warm_up >= 0, "warm_up", "an integer >= 0", self.warm_up)

    def check(self, model: nn.Module) -> None:
        """A network without such layers has no v."""
        if not prunable(model):
            raise ValueError("awp: expected convolutions or linear layers, got none")

    def before_forward(self, s: Step) -> None:
        """w <- w + v."""
        if self.gamma == 0 or s.epoch < self.warm_up:
            return
        if s.objective is None:
            raise ValueError("awp: expected a loop that gives its loss (Step.objective), got none")
        weights = [w for w in prunable(s.model).values() if w.is_leaf and w.requires_grad]
        if not weights:
            return
        gradients = summed(s, torch.autograd.grad(s.objective(), weights, allow_unused=True))
        pairs = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None]
        with torch.no_grad():
            self._moved["weights"] = [w for w, _ in pairs]
            self._moved["before"] = [w.detach().clone() for w, _ in pairs]
            for w, g in pairs:
                w.add_(worst_step(w, g, self.gamma))

    @torch.no_grad()
    def after_backward(self, s: Step) -> None:
        """w is what it was."""
        for w, before in zip(self._moved.pop("weights", []), self._moved.pop("before", []), strict=True):
            w.copy_(before)


def worst_step(w: Tensor, gradient: Tensor, gamma: float) -> Tensor:
    """v = gamma ||w|| g / ||g||, in the weights that are not zero; of any shape. Zero where the gradient is."""
    g = gradient * (w != 0)
    length = torch.linalg.vector_norm(g)
    # Where the gradient vanishes there is no direction; nothing is read back from the device for that.
    v: Tensor = g * (gamma * torch.linalg.vector_norm(w) / torch.where(length > 0, length, math.inf))
    return v

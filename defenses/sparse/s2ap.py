"""S2AP: the mask search of HYDRA at the worst scores nearby; Piras et al. 2025, https://arxiv.org/abs/2510.18381."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.base import check
from defenses.base import Step, summed
from defenses.sparse.hydra import Hydra


@dataclass(frozen=True, kw_only=True)
class S2AP(Hydra):
    """Pruning by scores whose loss is flat: min_s max_z L(w * M(s + z)), ||z_l|| <= gamma ||s_l|| in every layer l.

    z is one step of ascent onto the ball's sphere, z_l = gamma ||s_l|| g_l / ||g_l||, where g is the scores' gradient
    at s on the minibatch's adversarial images; the scores then step along the gradient at s + z, from s. One pass more
    for every minibatch of the search. Min-max problem and constraint are the paper's. That z is found in one step, in
    l2 norms and on the images found for s is assumed, as in adversarial weight perturbation (Wu et al. 2020), and so
    are the defaults. All else is as in ``hydra``: stages, first scores, mask, fine-tuning.

    Args:
        sparsity: share of the weights to prune in percent, in [0, 100); 0 switches everything off.
        gamma: radius of the ball as a share of the scores' norm, >= 0; 0 is ``hydra``.
        warm_up: epochs of the search before scores are perturbed, >= 0.
        scope: ``layer`` prunes this share of every layer; ``global`` of all layers together.
        layers: ``conv``, ``linear`` or ``all``: the weights that have scores.
        freeze_norms: batch-norm scales and shifts are frozen during the search; their statistics never are.
    """

    gamma: float = 0.01
    warm_up: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.gamma >= 0 and math.isfinite(self.gamma), "gamma", "a finite number >= 0", self.gamma)
        check(self.warm_up >= 0, "warm_up", "an integer >= 0", self.warm_up)

    def before_forward(self, s: Step) -> None:
        """Move to the worst scores nearby."""
        self._found.pop("points", None)
        if not self.searching or self.gamma == 0 or s.epoch < self.warm_up or s.objective is None:
            return
        scores, weights = list(self.memory["scores"].values()), self.weights_of(s.model)
        found = summed(s, torch.autograd.grad(s.objective(), weights, allow_unused=True))
        gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
        self._found["points"] = self.worst(scores, self.score_gradients(gradients, scores))
        self.put(s.model, self._found["points"])

    def after_backward(self, s: Step) -> None:
        """Put the weights of the scores themselves back."""
        if "points" in self._found:
            self.put(s.model, list(self.memory["scores"].values()))

    def points(self, scores: list[Tensor]) -> list[Tensor]:
        """Where in the space of scores this step's gradients were taken."""
        points: list[Tensor] = self._found.get("points", scores)
        return points

    def worst(self, scores: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """s + z, from the scores' gradients; a layer without a gradient stays where it is."""
        moved = []
        for a, g in zip(scores, gradients, strict=True):
            length = torch.linalg.vector_norm(g).clamp_min(torch.finfo(g.dtype).tiny)
            moved.append(a + self.gamma * torch.linalg.vector_norm(a) / length * g)
        return moved

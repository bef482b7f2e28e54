"""Sparse evolutionary training; Mocanu et al. 2018, https://arxiv.org/abs/1707.04780."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from defenses.base import Step
from defenses.sparse.dynamic import Decay, Dynamic, uniform


@dataclass(frozen=True, kw_only=True)
class SET(Dynamic):
    """Dynamic sparse training that grows at random: after every epoch the smallest weights are traded for others.

    Mocanu et al. drop a share zeta = 0.3 of the smallest positive and of the largest negative weights and draw the new
    ones at random; here, as in later comparisons (Evci et al. 2020), those of smallest |w| go, and new ones start at 0.

    Args:
        sparsity: share of the weights held at zero in percent, in [0, 100); 0 switches everything off.
        drop: share zeta of the weights left that is traded, in (0, 1).
        every: steps from one trade to the next, >= 1; None means as many as an epoch has.
        end: share of the stage after which the mask stays as it is, in (0, 1].
        decay: ``constant``, or ``cosine``, with which the share traded falls to 0 at the end.
        densities: ``erk`` or ``uniform``; of linear layers alone ``erk`` is the published Erdos-Renyi start.
        layers: ``conv``, ``linear`` or ``all``: the weights acted upon.
    """

    every: int | None = None
    end: float = 1.0
    decay: Decay = "constant"

    def growth(self, s: Step, name: str, weight: Tensor) -> Tensor:
        """Uniform draws from this defense's stream."""
        return uniform(weight, s.generator)

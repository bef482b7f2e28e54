"""Regularisers J and their proximal maps: what Lasso, ProxGD, LinBreg, RVSM and RGSM have in common.

A regulariser carries no multiplier: value and subgradient are those of J itself, and whatever weights J
(lambda, lambda / beta, tau * lambda, ...) is the ``step`` of its proximal map. So lambda is applied once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from attacks.base import check

Group = Literal["channel", "filter", "kernel", "row", "layer"]

# A group keeps these dimensions of a weight fixed and runs over all others. Weights are (out, in, k, k) or
# (out, in): a channel is an input channel W[:, g], a filter or row W[o], a kernel W[o, i].
KEPT: dict[str, tuple[int, ...]] = {
    "channel": (1,),
    "filter": (0,),
    "kernel": (0, 1),
    "row": (0,),
    "layer": (),
}


class Regulariser(Protocol):
    """A function J of one weight tensor."""

    def value(self, w: Tensor) -> Tensor:
        """J(w), a scalar. Differentiable, with gradient ``subgrad(w)``."""
        ...

    def prox(self, w: Tensor, step: float) -> Tensor:
        """argmin_u step * J(u) + ||u - w||^2 / 2, a new tensor shaped like ``w``; step >= 0."""
        ...

    def subgrad(self, w: Tensor) -> Tensor:
        """An element of the subdifferential of J at ``w``: the one that is 0 where a group is 0."""
        ...


def group_norms(w: Tensor, group: Group) -> Tensor:
    """l2 norm of every group, with the dimensions kept: it broadcasts against ``w``.

    A weight (out, in, k, k) gives (1, in, 1, 1) for channels. Differentiable; at a zero group the gradient is
    0.

    Raises:
        ValueError: when the weight has no such groups, as a bias has no channels.
    """
    kept = KEPT[group]
    check(w.ndim > max(1, len(kept)), "group", f"a weight with {group}s", tuple(w.shape))
    over = [d for d in range(w.ndim) if d not in kept]
    norms: Tensor = torch.linalg.vector_norm(w, dim=over, keepdim=True)
    return norms


@dataclass(frozen=True, kw_only=True)
class _Grouped:
    """Base of the group regularisers.

    Args:
        group: what is zeroed together: ``channel`` (input channels), ``filter``, ``kernel``, ``row``,
            ``layer``.
        weighted: weight each group by sqrt(n_g), n_g its number of entries; off weights all groups by 1.
    """

    group: Group = "channel"
    weighted: bool = False

    def __post_init__(self) -> None:
        check(self.group in KEPT, "group", " or ".join(KEPT), self.group)

    def weight(self, w: Tensor, norms: Tensor) -> float:
        """sqrt(n_g), or 1. All groups of one tensor have the same size."""
        return math.sqrt(w.numel() / norms.numel()) if self.weighted else 1.0

    def factor(self, norms: Tensor, step: float) -> Tensor:
        """What ``prox`` multiplies a group by, from its norm alone; the step with the group's weight c in it."""
        raise NotImplementedError

    def prox(self, w: Tensor, step: float) -> Tensor:
        """argmin_u step * J(u) + ||u - w||^2 / 2: every group times its factor."""
        norms = group_norms(w, self.group)
        return w * self.factor(norms, step * self.weight(w, norms))


class GroupLasso(_Grouped):
    """J(w) = sum_g c ||w_g||_2 with c = 1 or sqrt(n_g); Dinh (4.2), Yuan & Lin 2006."""

    def value(self, w: Tensor) -> Tensor:
        """Sum of the groups' norms, a scalar."""
        norms = group_norms(w, self.group)
        return self.weight(w, norms) * norms.sum()

    def factor(self, norms: Tensor, step: float) -> Tensor:
        """max(1 - step * c / ||w_g||, 0), Dinh (4.4)."""
        # A zero group: step / tiny is huge and the factor 0, or, with step 0, the factor is 1. Never NaN.
        return (1 - step / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min(0)

    def subgrad(self, w: Tensor) -> Tensor:
        """c w_g / ||w_g||, and 0 where w_g = 0."""
        norms = group_norms(w, self.group)
        return self.weight(w, norms) * (w / norms).masked_fill(norms == 0, 0)


class GroupL0(_Grouped):
    """J(w) = sum_g c 1[w_g != 0] with c = 1 or sqrt(n_g); Dinh section 4.1.1."""

    def value(self, w: Tensor) -> Tensor:
        """Number of groups that are not zero (times c), a scalar with gradient 0."""
        norms = group_norms(w, self.group)
        return self.weight(w, norms) * (norms > 0).to(w.dtype).sum()

    def factor(self, norms: Tensor, step: float) -> Tensor:
        """1 where ||w_g|| > sqrt(2 * step * c), else 0, Dinh (4.6)."""
        return (norms > math.sqrt(2 * step)).to(norms.dtype)

    def subgrad(self, w: Tensor) -> Tensor:
        """0: J is piecewise constant, so it acts through its proximal map alone."""
        return torch.zeros_like(w)


REGULARISERS: dict[str, type[GroupLasso] | type[GroupL0]] = {"group_lasso": GroupLasso, "group_l0": GroupL0}

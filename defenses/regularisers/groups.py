"""Regularisers that zero groups of weights together: input channels, filters, kernels, rows, layers.

Their proximal maps multiply every group by a factor that depends on its norm alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.base import check
from defenses.regularisers.elementwise import L1, is_number

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


def group_means(w: Tensor, group: Group) -> Tensor:
    """Root mean square of every group, ||w_g||_2 / sqrt(n_g), which compares groups of different size; see above."""
    norms = group_norms(w, group)
    return norms / math.sqrt(w.numel() / norms.numel())


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
        known = isinstance(self.group, str) and self.group in KEPT
        check(known, "group", " or ".join(KEPT), self.group)
        check(isinstance(self.weighted, bool), "weighted", "true or false", self.weighted)

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

    def prox_many(self, ws: Sequence[Tensor], step: float) -> list[Tensor]:
        """``prox`` of several weights; the factors of all groups of the same weight c are taken at once."""
        norms = [group_norms(w, self.group) for w in ws]
        alike: dict[tuple[float, torch.dtype, torch.device], list[int]] = {}
        for i, (w, n) in enumerate(zip(ws, norms, strict=True)):
            alike.setdefault((self.weight(w, n), w.dtype, w.device), []).append(i)
        out = list(ws)
        for (c, _, _), places in alike.items():
            some = [norms[i] for i in places]
            factor = self.factor(torch.cat([n.flatten() for n in some]), step * c)
            parts = factor.split_with_sizes([n.numel() for n in some])
            for i, part in zip(places, parts, strict=True):
                out[i] = ws[i] * part.view_as(norms[i])
        return out


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
        if step == 0:  # a norm may underflow to 0 where the group is not 0
            return torch.ones_like(norms)
        return (norms > math.sqrt(2 * step)).to(norms.dtype)

    def subgrad(self, w: Tensor) -> Tensor:
        """0: J is piecewise constant, so it acts through its proximal map alone."""
        return torch.zeros_like(w)


@dataclass(frozen=True, kw_only=True)
class SparseGroupLasso(_Grouped):
    """J(w) = mix ||w||_1 + (1 - mix) sum_g c ||w_g||_2; Simon et al. 2013, A Sparse-Group Lasso, (3).

    Args:
        mix: share of the l1 norm, in [0, 1]: 0 is the group lasso, 1 is l1.
        group: what is zeroed together: ``channel`` (input channels), ``filter``, ``kernel``, ``row``,
            ``layer``.
        weighted: weight each group by sqrt(n_g), n_g its number of entries; off weights all groups by 1.
    """

    mix: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check(is_number(self.mix) and 0 <= self.mix <= 1, "mix", "a number in [0, 1]", self.mix)

    @property
    def _lasso(self) -> GroupLasso:
        return GroupLasso(group=self.group, weighted=self.weighted)

    def value(self, w: Tensor) -> Tensor:
        """Both norms mixed, a scalar."""
        return self.mix * L1().value(w) + (1 - self.mix) * self._lasso.value(w)

    def prox(self, w: Tensor, step: float) -> Tensor:
        """The soft threshold of every weight first, the group lasso's shrinkage of what it leaves second."""
        return self._lasso.prox(F.softshrink(w, step * self.mix), step * (1 - self.mix))

    def prox_many(self, ws: Sequence[Tensor], step: float) -> list[Tensor]:
        """``prox`` of several weights."""
        return self._lasso.prox_many(L1().prox_many(ws, step * self.mix), step * (1 - self.mix))

    def subgrad(self, w: Tensor) -> Tensor:
        """Both subgradients mixed; 0 where w is 0."""
        return self.mix * w.sign() + (1 - self.mix) * self._lasso.subgrad(w)


# Those whose proximal map is a factor for each group (``factor``).
GROUP_REGULARISERS: dict[str, type[GroupLasso] | type[GroupL0]] = {
    "group_lasso": GroupLasso,
    "group_l0": GroupL0,
}

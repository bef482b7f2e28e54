"""Regularisers that are sums over single weights: each weight has its own proximal map, a threshold."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.base import check


def is_number(value: object) -> bool:
    """Whether a setting is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _single(w: Tensor) -> Tensor:
    """The weights in single precision at least: sums a + |w| need it."""
    return w.float() if w.dtype.itemsize < 4 else w


class _Elementwise(ABC):
    """J(w) = sum_i rho(w_i)."""

    @abstractmethod
    def prox(self, w: Tensor, step: float) -> Tensor:
        """argmin_u step * J(u) + ||u - w||^2 / 2."""

    def prox_many(self, ws: Sequence[Tensor], step: float) -> list[Tensor]:
        """``prox`` of several weights; on an accelerator by a few kernels for all, not a few for each."""
        if all(w.is_cpu for w in ws):  # there the copies cost more than the calls they save
            return [self.prox(w, step) for w in ws]
        return self.prox_end_to_end(ws, step)

    def prox_end_to_end(self, ws: Sequence[Tensor], step: float) -> list[Tensor]:
        """``prox`` of several weights, those of one type laid end to end; the results are views of one tensor."""
        alike: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for i, w in enumerate(ws):
            alike.setdefault((w.dtype, w.device), []).append(i)
        out = list(ws)
        for places in alike.values():
            flat = self.prox(torch.cat([ws[i].flatten() for i in places]), step)
            for i, part in zip(places, flat.split_with_sizes([ws[i].numel() for i in places]), strict=True):
                out[i] = part.view(ws[i].shape)
        return out


@dataclass(frozen=True, kw_only=True)
class L1(_Elementwise):
    """J(w) = ||w||_1; Dinh (2.4), Tibshirani 1996."""

    def value(self, w: Tensor) -> Tensor:
        """Sum of |w_i|, a scalar."""
        value: Tensor = torch.linalg.vector_norm(w, 1)
        return value

    def prox(self, w: Tensor, step: float) -> Tensor:
        """sign(w) max(|w| - step, 0), the soft threshold."""
        return F.softshrink(w, step)

    def subgrad(self, w: Tensor) -> Tensor:
        """sign(w), 0 at 0."""
        return w.sign()


@dataclass(frozen=True, kw_only=True)
class L0(_Elementwise):
    """J(w) = number of weights that are not 0."""

    def value(self, w: Tensor) -> Tensor:
        """The count, a scalar with gradient 0."""
        return w.count_nonzero().to(w.dtype)

    def prox(self, w: Tensor, step: float) -> Tensor:
        """The hard threshold: w where |w| > sqrt(2 * step), else 0."""
        return F.hardshrink(w, math.sqrt(2 * step))

    def subgrad(self, w: Tensor) -> Tensor:
        """0: J is piecewise constant, so it acts through its proximal map alone."""
        return torch.zeros_like(w)


@dataclass(frozen=True, kw_only=True)
class TransformedL1(_Elementwise):
    """J(w) = sum_i (a + 1) |w_i| / (a + |w_i|); Zhang & Xin 2018, Minimization of transformed l1 penalty.

    Not convex. It tends to l1 as a grows and to l0 as a falls to 0.

    Args:
        a: where it bends, > 0.
    """

    a: float = 1.0

    def __post_init__(self) -> None:
        check(is_number(self.a) and self.a > 0, "a", "a finite number > 0", self.a)

    def threshold(self, step: float) -> float:
        """Weights up to this size are set to 0: below it 0 is the better of the two local minima."""
        a = self.a
        if step <= a * a / (2 * (a + 1)):
            return step * ((a + 1) / a)
        return math.sqrt(2 * step * (a + 1)) - a / 2

    def value(self, w: Tensor) -> Tensor:
        """The sum, a scalar."""
        size = _single(w).abs()
        return ((self.a + 1) * (size / (self.a + size))).sum().to(w.dtype)

    def prox(self, w: Tensor, step: float) -> Tensor:
        """0 up to the threshold, beyond it the largest root of a cubic.

        In the paper sign(w) {2/3 (a + |w|) cos(phi / 3) - 2a/3 + |w|/3} with phi = arccos(1 - 2q^2) and
        q^2 = 27 step a (a + 1) / (4 (a + |w|)^3). As cos(phi / 3) = 1 - 2 sin^2(phi / 6) and phi / 2 =
        arcsin(q), that is |w| - 4/3 (a + |w|) sin^2(arcsin(q) / 3): nothing cancels where a is large.
        """
        a = self.a
        x = _single(w)
        size = x.abs()
        reach = a + size
        q = (math.sqrt(6.75 * step * (a + 1)) / a * (a / reach) ** 1.5).clamp_max(1)
        less = (4 / 3) * reach * (q.asin() / 3).sin().square()
        shrunk = (size - less).clamp_min(0).copysign(x)
        return torch.where(size <= self.threshold(step), 0, shrunk).to(w.dtype)

    def subgrad(self, w: Tensor) -> Tensor:
        """a (a + 1) sign(w) / (a + |w|)^2, 0 at 0."""
        x = _single(w)
        reach = self.a + x.abs()
        return (x.sign() * ((self.a / reach) * ((self.a + 1) / reach))).to(w.dtype)


@dataclass(frozen=True, kw_only=True)
class L1Nonnegative(_Elementwise):
    """J(w) = ||w||_1 where all w_i >= 0, else infinity."""

    def value(self, w: Tensor) -> Tensor:
        """Sum of the weights, a scalar; infinity where one is negative."""
        return torch.where((w < 0).any(), math.inf, F.relu(w).sum())

    def prox(self, w: Tensor, step: float) -> Tensor:
        """max(w - step, 0); for step 0 the projection onto w >= 0, which is what it tends to."""
        return F.relu(w - step)

    def subgrad(self, w: Tensor) -> Tensor:
        """1 where w > 0, else 0. Where w < 0 there is none: 0 stands for it."""
        return (w > 0).to(w.dtype)


@dataclass(frozen=True, kw_only=True)
class Zero(_Elementwise):
    """J(w) = 0 where all w_i = 0, else infinity: it forbids the weights it is given."""

    def value(self, w: Tensor) -> Tensor:
        """0 or infinity, a scalar with gradient 0."""
        return torch.where((w != 0).any(), math.inf, 0.0).to(w.dtype)

    def prox(self, w: Tensor, step: float) -> Tensor:
        """0, whatever the step; for step 0 too, as what it tends to."""
        return torch.zeros_like(w)

    def subgrad(self, w: Tensor) -> Tensor:
        """0, which is one at w = 0. Elsewhere there is none: 0 stands for it."""
        return torch.zeros_like(w)

"""The nuclear norm: weights of low rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.base import check


@dataclass(frozen=True, kw_only=True)
class Nuclear:
    """J(w) = sum of the singular values of a weight as a matrix (out, rest): it makes weights of low rank.

    Its decompositions wait for the device. Weights have two dimensions or more.
    """

    def value(self, w: Tensor) -> Tensor:
        """The sum, a scalar."""
        s: Tensor = torch.linalg.svdvals(_matrix(w))
        # Those that are 0 but for rounding are left out, so that the gradient is the smallest subgradient.
        return (s * _counted(s, w)).sum().to(w.dtype)

    def prox(self, w: Tensor, step: float) -> Tensor:
        """The soft threshold of the singular values; Cai, Candes & Shen 2010, theorem 2.1."""
        matrix = _matrix(w)
        if step == 0:
            return w.clone()
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        shrunk: Tensor = (u * (s - step).clamp_min(0)) @ vh
        return shrunk.view(w.shape).to(w.dtype)

    def subgrad(self, w: Tensor) -> Tensor:
        """U V^T of the singular vectors that count; 0 at 0."""
        u, s, vh = torch.linalg.svd(_matrix(w), full_matrices=False)
        signs: Tensor = (u * _counted(s, w)) @ vh
        return signs.view(w.shape).to(w.dtype)


def _matrix(w: Tensor) -> Tensor:
    """(out, rest), in single precision at least."""
    check(w.ndim > 1, "nuclear", "a weight of two dimensions or more", tuple(w.shape))
    return (w.float() if w.dtype.itemsize < 4 else w).flatten(1)


def _counted(s: Tensor, w: Tensor) -> Tensor:
    """1 for the singular values that are not 0, else 0, by the usual rule for a matrix's numerical rank."""
    slack = max(w.shape[0], w.numel() // max(w.shape[0], 1)) * torch.finfo(s.dtype).eps
    return (s > slack * s.max()).to(s.dtype)

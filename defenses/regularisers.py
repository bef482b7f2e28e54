"""Regularisers J and their proximal maps: what Lasso, ProxGD, LinBreg, RVSM and RGSM have in common.

A regulariser carries no multiplier: value and subgradient are those of J itself, and whatever weights J
(lambda, lambda / beta, tau * lambda, ...) is the ``step`` of its proximal map. So lambda is applied once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from attacks.base import check
from defenses.elementwise_regularisers import L0, L1, L1Nonnegative, TransformedL1, Zero
from defenses.group_regularisers import (
    GROUP_REGULARISERS,
    KEPT,
    Group,
    GroupL0,
    GroupLasso,
    SparseGroupLasso,
    group_means,
    group_norms,
)

RegulariserEntry = str | dict[str, Any]  # of a config: a key of REGULARISERS, or {name: key, setting: value}


@runtime_checkable
class Regulariser(Protocol):
    """A function J of one weight tensor.

    A class may also have ``prox_many(ws, step)``, which ``prox_many`` below then uses.
    """

    def value(self, w: Tensor) -> Tensor:
        """J(w), a scalar. Differentiable, with gradient ``subgrad(w)``."""
        ...

    def prox(self, w: Tensor, step: float) -> Tensor:
        """argmin_u step * J(u) + ||u - w||^2 / 2, a new tensor shaped like ``w``; step >= 0.

        For step 0 that is ``w`` itself, or the nearest point where J is finite.
        """
        ...

    def subgrad(self, w: Tensor) -> Tensor:
        """An element of the subdifferential of J at ``w``: the one that is 0 where a group is 0."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
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


REGULARISERS: dict[str, type[Regulariser]] = {
    "l1": L1,
    "l0": L0,
    "transformed_l1": TransformedL1,
    **GROUP_REGULARISERS,
    "sparse_group_lasso": SparseGroupLasso,
    "l1_nonnegative": L1Nonnegative,
    "zero": Zero,
    "nuclear": Nuclear,
}


def make_regulariser(
    entry: str | Mapping[str, Any] | Regulariser, setting: str = "regulariser"
) -> Regulariser:
    """Build a regulariser from its key, from ``{name: key, setting: value, ...}``, or pass one through.

    Args:
        entry: what a config has, or a regulariser.
        setting: the name of the setting that holds it, for errors.

    Raises:
        ValueError: ``setting: expected ..., got ...`` for an unknown key, an unknown setting or a bad value.
    """
    if isinstance(entry, Regulariser) and not isinstance(entry, type):
        return entry
    settings: dict[str, Any] = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    keys = ", ".join(REGULARISERS)
    check("name" in settings, setting, f"`name:` with one of {keys}", entry)
    name = settings.pop("name")
    check(isinstance(name, str) and name in REGULARISERS, setting, f"one of {keys}", name)
    cls = cast("Any", REGULARISERS[name])
    known = [f.name for f in dataclasses.fields(cls)]
    for key in settings:
        check(key in known, setting, f"settings of {name} ({', '.join(known) or 'none'})", key)
    try:
        made: Regulariser = cls(**settings)
    except ValueError as e:
        raise ValueError(f"{setting}: {e}") from None
    return made


def prox_many(regulariser: Regulariser, ws: Sequence[Tensor], step: float) -> list[Tensor]:
    """The proximal maps of several weights, which need not have one shape: as ``prox`` one by one, but faster.

    The results may be parts of one tensor.
    """
    many = getattr(regulariser, "prox_many", None)
    if many is None:
        return [regulariser.prox(w, step) for w in ws]
    together: list[Tensor] = many(ws, step)
    return together


__all__ = [
    "GROUP_REGULARISERS",
    "KEPT",
    "L0",
    "L1",
    "REGULARISERS",
    "Group",
    "GroupL0",
    "GroupLasso",
    "L1Nonnegative",
    "Nuclear",
    "Regulariser",
    "RegulariserEntry",
    "SparseGroupLasso",
    "TransformedL1",
    "Zero",
    "group_means",
    "group_norms",
    "make_regulariser",
    "prox_many",
]

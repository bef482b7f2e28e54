"""What a regulariser is: a value, a proximal map and a subgradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

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


def prox_many(regulariser: Regulariser, ws: Sequence[Tensor], step: float) -> list[Tensor]:
    """The proximal maps of several weights, which need not have one shape: as ``prox`` one by one, but faster.

    The results may be parts of one tensor.
    """
    many = getattr(regulariser, "prox_many", None)
    if many is None:
        return [regulariser.prox(w, step) for w in ws]
    together: list[Tensor] = many(ws, step)
    return together

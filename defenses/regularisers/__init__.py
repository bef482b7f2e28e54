"""Regularisers J and their proximal maps: what Lasso, ProxGD, LinBreg, RVSM and RGSM have in common.

A regulariser carries no multiplier: value and subgradient are those of J itself, and whatever weights J
(lambda, lambda / beta, tau * lambda, ...) is the ``step`` of its proximal map. So lambda is applied once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from attacks.base import check
from defenses.regularisers.base import Regulariser, RegulariserEntry, prox_many
from defenses.regularisers.elementwise import L0, L1, L1Nonnegative, TransformedL1, Zero
from defenses.regularisers.groups import (
    GROUP_REGULARISERS,
    KEPT,
    Group,
    GroupL0,
    GroupLasso,
    SparseGroupLasso,
    group_means,
    group_norms,
)
from defenses.regularisers.nuclear import Nuclear

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

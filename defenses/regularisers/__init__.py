"""Regularisers J and their proximal maps: what Lasso, ProxGD, LinBreg, RVSM and RGSM have in common.

A regulariser carries no multiplier: value and subgradient are those of J itself, and whatever weights J
(lambda, lambda / beta, tau * lambda, ...) is the ``step`` of its proximal map. So lambda is applied once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
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

# Finds the class behind ``package.module:Class``, or raises ValueError. This package imports nothing by a name in a
# setting; who reads configs, and knows which names may be imported, puts a function in here.
ELSEWHERE: list[Callable[[str], type]] = []


def make_regulariser(
    entry: str | Mapping[str, Any] | Regulariser, setting: str = "regulariser"
) -> Regulariser:
    """Build a regulariser from its key, from ``{name: key, setting: value, ...}``, or pass one through.

    In a config a key may be ``package.module:Class``, too: a dataclass with ``value``, ``prox`` and ``subgrad``.

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
    if isinstance(name, str) and ":" in name and ELSEWHERE:
        try:
            cls = cast("Any", ELSEWHERE[0](name))
        except ValueError as e:
            raise ValueError(f"{setting}: {e}") from None
    else:
        check(isinstance(name, str) and name in REGULARISERS, setting, f"one of {keys}", name)
        cls = cast("Any", REGULARISERS[name])
    known = [f.name for f in dataclasses.fields(cls)]
    for key in settings:
        check(key in known, setting, f"settings of {name} ({', '.join(known) or 'none'})", key)
    try:
        made: Regulariser = cls(**settings)
    except (TypeError, ValueError) as e:  # a setting without a default that is missing
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

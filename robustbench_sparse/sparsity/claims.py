"""What methods say about a network's zeros, held against what its file has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

POINTS = 0.1  # percentage points that a claim may be off


def against_asked(
    asked: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What was asked for beside what was counted in the same layers.

    Args:
        asked: ``defenses.base.Asked`` as plain values, with the ``defense`` that was asked.
        layers: the counts of every layer, see ``sparsity.count_layers``.

    Returns:
        Kind, percent, binding and defense as given; ``achieved``: the percentage counted over the layers meant; and
        ``slack``: by how many percentage points it may fall short, as each layer's share is rounded to whole pieces.
    """
    return [_one(each, layers) for each in asked]


def _one(asked: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kind, names = asked["kind"], {name.removesuffix("weight").removesuffix(".") for name in asked["names"]}
    meant = [layer for layer in layers if layer["name"] in names]
    whole = sum(layer[f"{kind}s"] for layer in meant)
    zeros = sum(layer[f"zero_{kind}s"] for layer in meant)
    return {
        "defense": asked["defense"],
        "kind": kind,
        "percent": asked["percent"],
        "achieved": 100 * zeros / whole if whole else 0.0,
        "slack": max(POINTS, 100 * len(meant) / whole) if whole else POINTS,
        "binding": asked["binding"],
    }


def refusal(claimed: Mapping[str, float | None], counts: Mapping[str, Any]) -> str:
    """Why a row has to be refused; empty where its claims hold.

    Args:
        claimed: the sparsities of the network that was chosen in training, by name.
        counts: those of the network read back from the file, with ``asked``.
    """
    for name, claim in claimed.items():
        counted = counts.get(name)
        if name.endswith("_sparsity") and claim is not None and abs(claim - (counted or 0.0)) > POINTS + 1e-9:
            return f"{name} {claim:.2f} % is claimed, the saved file has {counted or 0.0:.2f} %"
    for each in counts["asked"]:
        if each["binding"] and each["achieved"] < each["percent"] - each["slack"]:
            return (
                f"{each['defense']} was asked for {each['percent']:g} % of the {each['kind']}s, the saved file has "
                f"{each['achieved']:.2f} % (selected before the last pruning? see select_after; refilled by a later "
                "stage? see hold_zeros)"
            )
    return ""

"""How much of a network is zero, as it stands."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.runs.targets import resolve_target
from robustbench_sparse.sources.state_dicts import folded_copy
from robustbench_sparse.sparsity.counting import count_layers, shares_of

KINDS = ("weight", "linear", "channel", "kernel", "row")


def zeros_of(
    model: str | Path | nn.Module, kind: str, weights: str | Path | None = None
) -> tuple[float, str]:
    """Percent of a network's weights, channels, ... that are zero, and the layer that has the smallest share.

    Raises:
        UserError: it has none of the kind.
    """
    network, _ = folded_copy(resolve_target(model, weights, None).model)
    layers = count_layers(network)
    share = shares_of(layers)[f"{kind}_sparsity"]
    if share is None:
        raise UserError(f"kind: the network has no {kind}s to count")
    fewest = min(layers, key=lambda layer: shares_of([layer])[f"{kind}_sparsity"] or 0.0)
    return share, str(fewest["name"])

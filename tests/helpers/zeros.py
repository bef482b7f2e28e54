"""Counts of zeros in short."""

from __future__ import annotations

from torch import nn

from robustbench_sparse.sparsity.counting import count_layers, shares_of


def zero_shares(model: nn.Module) -> dict[str, float | None]:
    """The sparsities of a network, in percent."""
    return shares_of(count_layers(model))

"""Which channels of a network's layers are one and the same, found in its forward pass.

What a layer makes goes on through activations, batch-norm and pools; sums make two channels one, flattening makes
several of one, and putting channels side by side moves them. torch-pruning works this out as well, from gradients; a
channel goes only where both agree.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from robustbench_sparse.sparsity.shrink.calls import Calls


class _Names:
    """Sets of channels that grow together (union-find)."""

    def __init__(self) -> None:
        self.parent: list[int] = []

    def fresh(self, count: int) -> list[int]:
        first = len(self.parent)
        self.parent += range(first, first + count)
        return self.parent[first:]

    def of(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        self.parent[self.of(j)] = self.of(i)


def channels_of(calls: Calls) -> dict[str, tuple[Tensor, Tensor]]:
    """For every layer that is understood, by name: numbers of the channels that it reads, and of those it makes.

    Equal numbers are the same channel, int64 (in,) and (out,). Batch-norm makes those that it reads.
    """
    names = _Names()
    at: dict[fx.Node, list[int]] = {}
    layers: dict[str, tuple[list[int], list[int]]] = {}
    for node in calls.nodes:
        width = calls.width(node)
        if width is None:
            continue
        kind = calls.kind(node)
        parts = [at[part] for part in calls.given(node)] if kind else []
        if kind in ("", "mix"):
            at[node] = names.fresh(width)
        elif kind == "cat":
            at[node] = [i for part in parts for i in part]
        elif kind == "flatten":
            at[node] = [i for i in parts[0] for _ in range(width // len(parts[0]))]
        else:
            at[node] = parts[0]
        if kind in ("add", "skip"):
            for i, j in zip(*parts, strict=True):
                names.join(i, j)
        if kind in ("mix", "norm"):
            layers[str(node.target)] = parts[0], at[node]
    return {
        name: (torch.tensor([names.of(i) for i in read]), torch.tensor([names.of(i) for i in made]))
        for name, (read, made) in layers.items()
    }

"""How many weights each layer of a sparse network is left: Erdos-Renyi-kernel and uniform; Evci et al. 2020, section 3.

https://arxiv.org/abs/1911.11134
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from defenses.sparse.masks import share_of

Densities = Literal["erk", "uniform"]
Shape = Sequence[int]


def densities_of(shapes: Mapping[str, Shape], density: float, rule: Densities) -> dict[str, float]:
    """The share of weights left in each layer, in [0, 1]; of all layers together it is ``density``.

    Args:
        shapes: of the weights W (out, in, ...), by name.
        density: in [0, 1].
        rule: ``uniform``: the same everywhere. ``erk``: eps * (out + in + k_1 + ...) / (out * in * k_1 * ...) with one
            eps for all layers; a layer for which that is above 1 is dense, and the others share what is left.
    """
    if rule == "uniform":
        return dict.fromkeys(shapes, density)
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        eps = budget / sum(raw[name] * sizes[name] for name in rest) if rest else 0.0
        above = {name for name in rest if eps * raw[name] > 1}
        if not above:
            return {name: 1.0 if name in dense else max(eps, 0.0) * raw[name] for name in shapes}
        highest = max(raw[name] for name in above)
        dense |= {name for name in above if raw[name] == highest}


def counts_of(shapes: Mapping[str, Shape], sparsity: float, rule: Densities) -> dict[str, int]:
    """The weights left in each layer; of all layers together exactly what a sparsity in percent asks for.

    Shares are rounded down, and the weights that are missing then go to the layers that lost the most by it.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    whole = sum(sizes.values())
    total = whole - share_of(sparsity, whole)
    wanted = {
        name: share * sizes[name] for name, share in densities_of(shapes, total / max(whole, 1), rule).items()
    }
    counts = {name: min(math.floor(n + 1e-9), sizes[name]) for name, n in wanted.items()}
    missing = total - sum(counts.values())
    room = [name for name in shapes if counts[name] < sizes[name]]
    for name in sorted(room, key=lambda n: counts[n] - wanted[n])[:missing]:
        counts[name] += 1
    return counts

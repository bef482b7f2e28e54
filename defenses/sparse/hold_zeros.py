"""Retraining of a pruned network: zeros stay zero; Han et al. 2015, https://arxiv.org/abs/1506.02626."""

from __future__ import annotations

import math
from dataclasses import dataclass

from attacks.base import check
from defenses.base import Layers, Step, chosen_weights
from defenses.sparse.masks import Masked


@dataclass(frozen=True, kw_only=True)
class HoldZeros(Masked):
    """Weights that are zero when the stage begins stay zero while the others are trained on.

    For the stage after one that made zeros, with any optimizer. A dense network has nothing to hold, and this
    is natural training.

    Args:
        layers: ``conv``, ``linear`` or ``all``: the weights looked at.
        threshold: weights with |w| <= threshold are set to zero at the beginning, >= 0. Needed after methods
            that round small weights down only in the network that is judged.
    """

    layers: Layers = "all"
    threshold: float = 0.0

    def __post_init__(self) -> None:
        check(self.layers in ("conv", "linear", "all"), "layers", "'conv', 'linear' or 'all'", self.layers)
        fine = self.threshold >= 0 and math.isfinite(self.threshold)
        check(fine, "threshold", "a finite number >= 0", self.threshold)

    def begin(self, s: Step) -> None:
        """Remember the zeros."""
        super().begin(s)
        weights = chosen_weights(s.model, self.layers)
        self.keep(s.model, {name: w.detach().abs() > self.threshold for name, w in weights.items()})

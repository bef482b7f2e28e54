"""Filters of small l1 norm pruned, then retraining; Li et al. 2017, https://arxiv.org/abs/1608.08710."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.base import LATER, check
from defenses.base import Asked, Step, chosen_weights
from defenses.sparse.consumers import kept_without, outputs_of
from defenses.sparse.masks import Masked, largest_last, share_of, smallest


@dataclass(frozen=True, kw_only=True)
class L1FilterPrune(Masked):
    """The filters W[o] of the smallest sum |W[o]| are zeroed when the stage begins, and held at 0 while it trains.

    With a filter go its bias, scale and shift of the batch-norm layer behind it, and what reads its channel in the
    next layers (Li et al., section 3.1), so that the channel could be taken out of the network. All filters are
    ranked before any is pruned (their "independent" strategy). Pruned are convolutions whose channels are read by
    convolutions and linear layers alone: the last layer is none of them, and of a residual block they are those
    whose output is not added to a skip connection, as in the paper's section 3.3.

    Args:
        sparsity: share of the filters to prune in percent, in [0, 100); 0 prunes none.
        scope: ``layer`` prunes that share of each layer; ``global`` ranks all filters together, by the mean of |W[o]|
            since layers differ in the number of weights of a filter.
        linear: hidden neurons of linear layers are pruned like filters.
        branches: convolutions whose output is only added to a skip connection are pruned, too. Their channels live on
            with what the skip brings, so that no reading layer loses any.
        keep_one: the filter of largest norm in a layer is never pruned. A layer without filters cuts the network
            in two: its logits no longer depend on the image.
        reinitialise: after pruning all that is left, batch-norm included, is drawn anew as the network's own
            initialisation draws it, so that the stage trains from scratch (Liu et al. 2019,
            https://arxiv.org/abs/1810.05270); false retrains the weights that are there.
    """

    sparsity: float = 0.0
    scope: Literal["layer", "global"] = "layer"
    linear: bool = False
    branches: bool = False
    keep_one: bool = True
    reinitialise: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        check(0 <= self.sparsity < 100, "sparsity", "a percentage in [0, 100)", self.sparsity)
        prunes = self.sparsity > 0 or not self.reinitialise
        check(prunes, "reinitialise", "false, or a sparsity > 0 beside it", self.reinitialise)
        check(self.scope in ("global", "layer"), "scope", "'layer' or 'global'", self.scope)

    def layers(self, model: nn.Module) -> dict[str, Tensor]:
        """Weights (out, in, ...) of the layers whose filters may be pruned, by name of the layer."""
        weights = chosen_weights(model, "all" if self.linear else "conv")
        return {
            name: weights[f"{name}.weight"]
            for name, out in outputs_of(model).items()
            if f"{name}.weight" in weights and (out.closed or (self.branches and out.branch))
        }

    def check(self, model: nn.Module) -> None:
        """There must be filters to prune."""
        if self.sparsity > 0 and not self.layers(model):
            raise ValueError(
                "l1_filter_prune: expected a network with hidden filters that only convolutions and linear layers "
                "read, as its forward pass can be traced, got none"
            )

    def asked(self, model: nn.Module) -> Asked | None:
        """The share of zero rows among the layers pruned, as whole filters allow it."""
        layers = self.layers(model) if self.sparsity > 0 else {}
        if not layers:
            return None
        rows = [len(w) for w in layers.values()]
        percent = 100 * sum(self._counts(rows)) / sum(rows)
        return Asked(kind="row", percent=percent, names=tuple(f"{n}.weight" for n in layers), binding=True)

    @torch.no_grad()
    def begin(self, s: Step) -> None:
        """Prune, and draw anew what is left where that is asked for."""
        super().begin(s)
        if self.sparsity == 0:
            return
        layers = self.layers(s.model)
        norms = [w.detach().abs().flatten(1).mean(1) for w in layers.values()]
        counts = self._counts([len(a) for a in norms])
        if self.keep_one:
            norms = largest_last(norms)
        if self.scope == "global":
            dead = smallest(norms, counts[0])
        else:
            dead = [smallest([a], count)[0] for a, count in zip(norms, counts, strict=True)]
        pruned = dict(zip(layers, dead, strict=True))
        kept = kept_without(s.model, outputs_of(s.model), pruned)
        if self.reinitialise:
            self.draw_anew(s)
        self.keep(s.model, kept)

    def _counts(self, rows: list[int]) -> list[int]:
        """Filters to prune: of all layers together, or of each."""
        if self.scope == "global":
            return [min(share_of(self.sparsity, sum(rows)), sum(rows) - len(rows) * self.keep_one)]
        return [min(share_of(self.sparsity, n), n - self.keep_one) for n in rows]

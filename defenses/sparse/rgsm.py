"""RGSM, the relaxed group splitting method: channels pruned while the network trains; Dinh 4.1.1, Alg. 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.base import check
from defenses.base import ZERO_CHANNEL, Log, Step, conv_weights
from defenses.regularisers import GROUP_REGULARISERS, group_norms
from defenses.sparse.splitting import Splitting


@dataclass(frozen=True, kw_only=True)
class RGSM(Splitting):
    """Channel pruning by variable splitting: weights w are pulled towards a channel-sparse copy u.

    Variable splitting over the weights (out, in, k, k) of all 2-D convolutions, a channel being an input
    channel W[:, g]; u <- prox of (lambda/beta) P at w is (4.4) or (4.6). For linear layers, other groups or a
    lambda that is steered, ``rvsm`` takes these regularisers too.

    Args:
        regulariser: P: ``group_lasso`` (sum of channel norms) or ``group_l0`` (number of non-zero channels).
        lam2: lambda_2, the weight of a differentiable group lasso term sum_g ||W_g||_2 in the loss, >= 0.
        include_first: the first convolution's input channels are pruned too, as in the papers' counts.
        keep_one: where the proximal map zeroes a whole layer, its largest channel is kept as it is; off, as
            published, lets the layer die.
    """

    regulariser: Literal["group_lasso", "group_l0"] = "group_lasso"
    lam2: float = 0.0
    include_first: bool = True
    keep_one: bool = False

    def __post_init__(self) -> None:
        known = self.regulariser in GROUP_REGULARISERS
        check(known, "regulariser", " or ".join(GROUP_REGULARISERS), self.regulariser)
        super().__post_init__()
        ok = self.lam2 >= 0 and math.isfinite(self.lam2)
        check(ok, "lam2", "a finite number >= 0", self.lam2)

    def chosen(self, model: nn.Module) -> dict[str, Tensor]:
        """The convolution weights acted upon, by parameter name."""
        weights = list(conv_weights(model).items())
        return dict(weights if self.include_first else weights[1:])

    def check(self, model: nn.Module) -> None:
        """There must be a convolution whose channels can be pruned."""
        if not self.chosen(model):
            raise ValueError("rgsm: expected a network with 2-D convolutions to prune, got none")

    def penalty(self, s: Step) -> Tensor | None:
        """lambda_2 sum_g ||W_g||_2 over all layers, or None."""
        if self.lam2 == 0:
            return None
        return self.lam2 * _all_norms(list(self._weights(s.model).values()))[0].sum()

    def prox(self, w: Tensor) -> Tensor:
        """argmin_u lambda P(u) + beta/2 ||w - u||^2 for one weight (out, in, k, k)."""
        return self.thresholded([w], self.threshold)[0]

    def thresholded(self, weights: Sequence[Tensor], step: float) -> list[Tensor]:
        """Every channel times its factor, found for all layers together.

        A step should not cost a dozen kernels a layer; nothing waits for a device.
        """
        p = GROUP_REGULARISERS[self.regulariser](group="channel")
        norms, counts = _all_norms(weights)
        factor = p.factor(norms, step)
        factors = list(factor.split_with_sizes(counts))
        if self.keep_one:
            factors = [_keep_one(*pair) for pair in zip(factors, norms.split_with_sizes(counts), strict=True)]
        return [w * f.view(1, -1, 1, 1) for w, f in zip(weights, factors, strict=True)]

    def _log(self, u: list[Tensor]) -> Log:
        """Share of zero channels, in [0, 1]."""
        return {"channel_sparsity": (_all_norms(u)[0] < ZERO_CHANNEL).double().mean().item()}


def _all_norms(weights: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """The channels' norms of all layers in one vector, and how many each layer has."""
    norms = [group_norms(w, "channel").flatten() for w in weights]
    return torch.cat(norms), [len(n) for n in norms]


def _keep_one(factor: Tensor, norms: Tensor) -> Tensor:
    """The factors (in,) of one layer; where they leave nothing of it, 1 for its largest channel instead."""
    largest = torch.zeros_like(factor).index_fill_(0, norms.argmax(), 1)
    return torch.where((norms * factor != 0).any(), factor, largest)

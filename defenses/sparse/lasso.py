"""Lasso: a sparsity-promoting penalty in the loss, small weights rounded to zero afterwards.

The baseline of Bungert et al., "A Bregman learning framework", https://arxiv.org/abs/2105.04319, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks.base import check
from defenses.base import Asked, Defense, Kind, Layers, Step, chosen_weights
from defenses.regularisers import (
    REGULARISERS,
    Group,
    GroupLasso,
    Regulariser,
    RegulariserEntry,
    group_means,
    make_regulariser,
)
from defenses.sparse.masks import masked, share_of, smallest

# Functions without a gradient to follow, or that are not finite everywhere: a loss has no use for them.
_WITHOUT_GRADIENT = ("l0", "group_l0", "zero", "l1_nonnegative")
_LAYERS: tuple[Layers, ...] = ("linear", "conv")


@dataclass(frozen=True, kw_only=True)
class Lasso(Defense):
    """lambda * R(w) in the loss; in the network that is judged, what is small is zero.

    A subgradient step makes weights small and hardly ever 0, so that the zeros come from ``threshold`` or
    ``sparsity``: single weights, or whole groups where R is a group lasso. Training goes on with the weights as
    they are; a stage that retrains the zeros left has ``hold_zeros`` or ``magnitude_prune``.

    What the penalty has won ends within 2 eta lambda of zero with steps of length eta (a group by norm / sqrt(n), if
    weighted by sqrt(n)); with momentum m, over 1 - m. A threshold there finds the zeros of lambda, a larger one prunes
    what the network uses. The paper gives no number: its thresholds are tuned, as lambda is, until the share of zeros
    is that of the other methods (section 4.4), which is what ``sparsity`` asks for. Where weights and groups have
    shares of their own, two of these defenses stand side by side, one with ``conv: null``, one with ``linear: null``.

    Args:
        lam: lambda, >= 0; 0 leaves the loss as it is.
        linear: R on the weights of linear layers: a regulariser's name, or a mapping of name and settings; null
            leaves them alone.
        conv: R on the weights of 2-D convolutions, likewise.
        threshold: judged as zero are weights with |w| <= threshold, or groups of n weights whose norm is
            <= threshold * sqrt(n); >= 0.
        sparsity: instead of a threshold: judged as zero is this share of them in percent, in [0, 100), the
            smallest ones of all layers together (groups by norm / sqrt(n)). Linear layers and convolutions then
            need groups of one kind.
    """

    sparsifies: ClassVar[bool] = True
    lam: float = 0.0
    linear: RegulariserEntry | None = "l1"
    conv: RegulariserEntry | None = "l1"
    threshold: float = 0.0
    sparsity: float = 0.0
    _found: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("lam", "threshold"):
            value = getattr(self, name)
            check(value >= 0 and math.isfinite(value), name, "a finite number >= 0", value)
        check(0 <= self.sparsity < 100, "sparsity", "a percentage in [0, 100)", self.sparsity)
        check(self.threshold == 0 or self.sparsity == 0, "sparsity", "0 beside a threshold", self.sparsity)
        for name, r in self.regularisers().items():
            bad = isinstance(r, tuple(REGULARISERS[n] for n in _WITHOUT_GRADIENT))
            check(not bad, name, "a regulariser with a gradient", getattr(self, name))
            fine = name == "conv" or getattr(r, "group", None) != "kernel"
            check(fine, name, "groups that linear layers have", getattr(self, name))
        kinds = {name: _kind(r, name) for name, r in self.regularisers().items()}
        if self.sparsity > 0:
            fine = len(set(kinds.values())) == 1 and None not in kinds.values()
            check(fine, "sparsity", "weights or groups of one kind that every layer counts", self.sparsity)

    def regularisers(self) -> dict[Layers, Regulariser]:
        """R by kind of layer, ``linear`` and ``conv``, without what is left alone."""
        entries = {name: getattr(self, name) for name in _LAYERS}
        return {name: make_regulariser(e, name) for name, e in entries.items() if e is not None}

    def check(self, model: nn.Module) -> None:
        """There must be layers of a kind that is not left alone."""
        if max(self.lam, self.threshold, self.sparsity) > 0 and not self._terms(model):
            raise ValueError("lasso: expected a network with linear layers or convolutions, as set, got none")

    def begin(self, s: Step) -> None:
        """Nothing is remembered; the weights are looked up anew."""
        self.memory.clear()
        self._found.clear()

    def penalty(self, s: Step) -> Tensor | None:
        """lambda sum R(w) over the weights, or None."""
        if self.lam == 0:
            return None
        if self._found.get("model") is not s.model:
            self._found.update(model=s.model, terms=self._terms(s.model))
        return self.lam * torch.stack([r.value(w) for r, w in self._found["terms"].values()]).sum()

    @torch.no_grad()
    def deploy(self, model: nn.Module) -> nn.Module:
        """A copy in which what is small is zero; the network itself without threshold and sparsity."""
        if self.threshold == 0 and self.sparsity == 0:
            return model
        terms = self._terms(model)
        sizes = [_sizes(r, w) for r, w in terms.values()]
        if self.sparsity > 0:
            small = smallest(sizes, share_of(self.sparsity, sum(a.numel() for a in sizes)))
        else:
            small = [a <= self.threshold for a in sizes]
        return masked(model, {name: ~m for name, m in zip(terms, small, strict=True)})

    def asked(self, model: nn.Module) -> Asked | None:
        """The sparsity, as whole weights or groups allow it."""
        if self.sparsity == 0:
            return None
        terms = self._terms(model)
        n = sum(_sizes(r, w).numel() for r, w in terms.values())
        kinds = [_kind(r, name) for name, r in self.regularisers().items()]
        assert kinds[0] is not None
        percent = 100 * share_of(self.sparsity, n) / n
        return Asked(kind=kinds[0], percent=percent, names=tuple(terms), binding=True)

    def _terms(self, model: nn.Module) -> dict[str, tuple[Regulariser, Tensor]]:
        """R and the weight, by parameter name."""
        own = self.regularisers()
        weights = {name: chosen_weights(model, name) for name in _LAYERS if name in own}
        of = {n: own[name] for name, ws in weights.items() for n in ws}
        return {n: (of[n], w) for n, w in chosen_weights(model, "all").items() if n in of}


def _group(regulariser: Regulariser) -> Group | None:
    """What becomes zero together, None for single weights."""
    return regulariser.group if isinstance(regulariser, GroupLasso) else None


def _sizes(regulariser: Regulariser, w: Tensor) -> Tensor:
    """|w|, or norm / sqrt(n) of its groups of n weights; broadcasts against ``w``."""
    group = _group(regulariser)
    if group is None:
        return w.detach().abs()
    return group_means(w.detach(), group)


def _kind(regulariser: Regulariser, layers: Layers) -> Kind | None:
    """What its zeros are counted as; None where nothing counts them."""
    group = _group(regulariser)
    if group is None:
        return "weight"
    kinds: dict[str, Kind] = {"filter": "row", "row": "row"}
    if layers == "conv":
        kinds |= {"channel": "channel", "kernel": "kernel"}
    return kinds.get(group)

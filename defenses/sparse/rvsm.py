"""RVSM, the relaxed variable splitting method: weights pruned while the network trains; Dinh 3.1.3, Alg. 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.base import check
from defenses.base import KINDS, LAYERS, Asked, Kind, Layers, Log, Step, chosen_weights, counted_weights
from defenses.regularisers import (
    L0,
    L1,
    L1Nonnegative,
    Regulariser,
    RegulariserEntry,
    TransformedL1,
    Zero,
    make_regulariser,
    prox_many,
)
from defenses.sparse.splitting import Splitting
from defenses.sparse.target_sparsity import steered

ELEMENTWISE = (L1, L0, TransformedL1, L1Nonnegative, Zero)


@dataclass(frozen=True, kw_only=True)
class RVSM(Splitting):
    """Pruning by variable splitting: weights w are pulled towards a sparse copy u.

    In place of a fixed lambda a share of zeros can be asked for: after every epoch lambda is multiplied by
    (density / target density)^gain, by 2 at most, the density being that of the deployed network, all layers
    together.

    Args:
        regulariser: P, by its name or with settings of its own, as {name: transformed_l1, a: 1.0}; ``l1``,
            ``l0`` and ``transformed_l1`` in the papers, and any other that has a proximal map.
        layers: the weights acted upon: ``conv`` as in the papers, ``linear`` or ``all``.
        target_sparsity: share of zeros to steer lambda for, in percent, in (0, 100); it needs lam > 0, the
            first epoch's lambda. None keeps lambda constant.
        target_kind: zeros of what: ``weight``, ``channel``, ``kernel`` or ``row``.
        target_gain: exponent of that law, > 0; smaller is slower and steadier.
    """

    regulariser: RegulariserEntry = "l1"
    layers: Layers = "conv"
    target_sparsity: float | None = None
    target_kind: Kind = "weight"
    target_gain: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.penalised_by()  # checks the entry
        check(self.layers in LAYERS, "layers", " or ".join(LAYERS), self.layers)
        target = self.target_sparsity
        ok = target is None or 0 < target < 100
        check(ok, "target_sparsity", "a percentage in (0, 100) or null", target)
        check(target is None or self.lam > 0, "lam", "a number > 0 where target_sparsity steers it", self.lam)
        check(self.target_kind in KINDS, "target_kind", " or ".join(KINDS), self.target_kind)
        ok = self.target_gain > 0 and math.isfinite(self.target_gain)
        check(ok, "target_gain", "a finite number > 0", self.target_gain)

    def penalised_by(self) -> Regulariser:
        """P."""
        return make_regulariser(self.regulariser)

    def chosen(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights acted upon, by parameter name."""
        return chosen_weights(model, self.layers)

    def check(self, model: nn.Module) -> None:
        """There must be weights to prune, groups in all of them, and something to count where lambda is steered."""
        name = type(self).__name__.lower()
        if not self.chosen(model):
            raise ValueError(
                f"{name}: expected a network with layers to prune (layers: {self.layers}), got none"
            )
        p = self.penalised_by()
        for dims in {w.ndim for w in self.chosen(model).values()}:
            try:
                p.prox(torch.ones([2] * dims, device="cpu"), 0.1)
            except ValueError as e:
                raise ValueError(f"regulariser: {e}") from None
        if self.target_sparsity is not None and not counted_weights(model, self.target_kind):
            raise ValueError(f"target_kind: expected a network with {self.target_kind}s to count, got none")

    def asked(self, model: nn.Module) -> Asked | None:
        """The target: a goal, since nothing is projected."""
        if self.target_sparsity is None:
            return None
        percent, names = float(self.target_sparsity), counted_weights(model, self.target_kind)
        return Asked(kind=self.target_kind, percent=percent, names=names, binding=False)

    def thresholded(self, weights: Sequence[Tensor], step: float) -> list[Tensor]:
        """The proximal map of P at all weights: new tensors, in the same order."""
        if "regulariser" not in self._found:
            self._found["regulariser"] = self.penalised_by()
        p: Regulariser = self._found["regulariser"]
        if not isinstance(p, ELEMENTWISE):
            return prox_many(p, weights, step)
        # In the order of memory, as they are laid end to end there: nothing is shuffled, and u lies as w does.
        turned = [_is_channels_last(w) for w in weights]
        laid = [w.permute(0, 2, 3, 1) if t else w for w, t in zip(weights, turned, strict=True)]
        u = prox_many(p, laid, step)
        return [v.permute(0, 3, 1, 2) if t else v for v, t in zip(u, turned, strict=True)]

    def end_epoch(self, s: Step) -> Log:
        """w <- u, and the next epoch's lambda; log how sparse u is and the lambda of this epoch.

        Raises:
            ValueError: when lambda is steered and the network has nothing of the kind to count.
        """
        log = super().end_epoch(s)
        if self.target_sparsity is None:
            return log
        used: float = self.memory.get("lam", self.lam)
        sparsity = s.sparsity.get(f"{self.target_kind}_sparsity")
        if sparsity is None:
            raise ValueError(f"target_kind: expected a network with {self.target_kind}s to count, got none")
        self.memory["lam"] = steered(used, sparsity, self.target_sparsity, self.target_gain)
        return {**log, "lam": used}


def _is_channels_last(w: Tensor) -> bool:
    return w.ndim == 4 and not w.is_contiguous() and w.is_contiguous(memory_format=torch.channels_last)

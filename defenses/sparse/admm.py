"""ADMM pruning: weights driven by a dual variable towards the largest ones; Dinh 3.1.4 and 3.5, Zhang et al. 2018.

https://arxiv.org/abs/1804.03294
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks.base import check
from defenses.base import KINDS, LAYERS, Asked, Kind, Layers, Log, Step, chosen_weights
from defenses.regularisers import group_norms
from defenses.sparse.splitting import WeightsInScope


@dataclass(frozen=True, kw_only=True)
class ADMM(WeightsInScope):
    """Pruning to a given share of zeros by the alternating direction method of multipliers.

    min f(w) + [z has so many zeros] subject to w = z, with scaled dual u. Each step w <- w - eta grad f(w)
    - eta rho (w - z + u), the coupling with the plain learning rate and outside momentum; then z <- projection
    of w + u, which keeps the largest, and u <- u + w - z. The deployed network has the projection of w, and so
    have the weights when a stage ends.

    Published code takes the percentile of the signed weights and judges the network it never projected; here
    it is that of absolute values, or of group norms, and exactly as many become zero as are asked for.

    Args:
        sparsity: share of zeros in percent, in [0, 100); 0 switches everything off. It is rounded to whole
            groups (of each layer, or of all), but for one that every layer keeps under ``scope: layer``.
        rho: strength of the coupling, >= 0; with 0 the weights are projected and nothing else.
        group: what is zeroed together: ``weight``, ``channel`` (input channels W[:, g]), ``kernel`` or
            ``row`` (filters W[o] of convolutions).
        scope: ``layer`` zeroes this share of every layer, as published; ``global`` of all layers together,
            which may empty one.
        layers: the weights acted upon: ``conv`` as in the papers, ``linear`` or ``all``.
        update: when z and u are updated: after every ``step``, or every ``epoch``. The thesis replaces ADMM's
            minimisation over w by one gradient step (Dinh 3.5), hence the default; Zhang et al. train for
            epochs in between, which lets u grow less.
    """

    sparsifies: ClassVar[bool] = True
    sparsity: float = 0.0
    rho: float = 1e-2
    group: Kind = "weight"
    scope: Literal["layer", "global"] = "layer"
    layers: Layers = "conv"
    update: Literal["step", "epoch"] = "step"

    def __post_init__(self) -> None:
        check(0 <= self.sparsity < 100, "sparsity", "a percentage in [0, 100)", self.sparsity)
        check(self.rho >= 0 and math.isfinite(self.rho), "rho", "a finite number >= 0", self.rho)
        check(self.group in KINDS, "group", " or ".join(KINDS), self.group)
        check(self.scope in ("layer", "global"), "scope", "'layer' or 'global'", self.scope)
        check(self.layers in LAYERS, "layers", " or ".join(LAYERS), self.layers)
        check(self.update in ("step", "epoch"), "update", "'step' or 'epoch'", self.update)

    def chosen(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights acted upon, by parameter name."""
        return chosen_weights(model, self.layers)

    def check(self, model: nn.Module) -> None:
        """There must be weights to prune, and groups in all of them."""
        weights = self.chosen(model)
        if not weights:
            raise ValueError(
                f"admm: expected a network with layers to prune (layers: {self.layers}), got none"
            )
        if self.group == "kernel":
            ok = all(w.ndim > 2 for w in weights.values())
            check(ok, "group", "convolutions alone where kernels are pruned", f"layers: {self.layers}")

    def asked(self, model: nn.Module) -> Asked | None:
        """The share to be met; None where it is off, or of channels where only linear layers are pruned.

        None, too, of channels ranked together with the columns of linear layers: how many of either go is open.
        """
        # A linear layer's columns are pruned as channels, but not counted as such.
        counted, weights = self.group in ("weight", "row"), self.chosen(model)
        names = tuple(name for name, w in weights.items() if counted or w.ndim > 2)
        mixed = self.scope == "global" and len(names) < len(weights)
        if self.sparsity == 0 or not names or mixed:
            return None
        return Asked(kind=self.group, percent=float(self.sparsity), names=names)

    @torch.no_grad()
    def begin(self, s: Step) -> None:
        """z <- projection of w, u <- 0."""
        super().begin(s)
        if self.sparsity > 0:
            weights = self._weights(s.model)
            z = self.projected(list(weights.values()))
            self.memory["z"] = dict(zip(weights, z, strict=True))
            self.memory["u"] = {name: torch.zeros_like(w) for name, w in weights.items()}

    @torch.no_grad()
    def before_step(self, s: Step) -> None:
        """w <- w - eta rho (w - z + u)."""
        if self.sparsity > 0 and self.rho > 0:
            weights, z = self._with("z", s.model)
            target = torch._foreach_sub(z, self._with("u", s.model)[1])
            torch._foreach_lerp_(weights, target, s.lr * self.rho)

    @torch.no_grad()
    def after_step(self, s: Step) -> None:
        """z <- projection of w + u, u <- u + w - z, unless that is left to the epoch's end."""
        if self.sparsity > 0 and self.update == "step":
            self._update(s.model)

    @torch.no_grad()
    def end_epoch(self, s: Step) -> Log:
        """Project w for good at the stage's end; log ||w - z|| / ||w||, how far the constraint is from met."""
        if self.sparsity == 0:
            return {}
        if self.update == "epoch":
            self._update(s.model)
        weights, z = self._with("z", s.model)
        away, size = (_norm(ts) for ts in (torch._foreach_sub(weights, z), weights))
        if s.epoch + 1 == s.epochs:
            torch._foreach_copy_(weights, self.projected(weights))
        return {"gap": (away / size).item()}

    def deploy(self, model: nn.Module) -> nn.Module:
        """A copy with the projection of w for w; the network itself where the pruning is off."""
        if "z" not in self.memory:
            return model
        deployed = copy.deepcopy(model)
        with torch.no_grad():
            weights = list(self.chosen(deployed).values())
            torch._foreach_copy_(weights, self.projected(weights))
        return deployed

    def projected(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The weights with their smallest groups at zero: new tensors.

        Of groups of equal size those that go are as many as were asked for, no more and no less.
        """
        return list(torch._foreach_mul(list(weights), self._kept(weights)))

    def _kept(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """1 for a group that stays and 0 for one that goes; broadcasts against the weight."""
        if self.group == "weight":
            sizes = list(torch._foreach_abs(list(weights)))
        else:
            sizes = [group_norms(w, self.group) for w in weights]
        flat = [v.flatten() for v in sizes]
        if self.scope == "global":
            counts = [len(v) for v in flat]
            kept = _all_but_smallest(torch.cat(flat)[None], self._zeros(sum(counts)))[0].split_with_sizes(
                counts
            )
            return [k.view(v.shape) for k, v in zip(kept, sizes, strict=True)]
        # Layers of one size are pruned in one go: a handful of kernels, however many layers there are.
        alike: dict[int, list[int]] = {}
        for i, v in enumerate(flat):
            alike.setdefault(len(v), []).append(i)
        out: dict[int, Tensor] = {}
        for n, indices in alike.items():
            rows = _all_but_smallest(torch.stack([flat[i] for i in indices]), min(self._zeros(n), n - 1))
            out.update(zip(indices, rows.unbind(), strict=True))
        return [out[i].view(v.shape) for i, v in enumerate(sizes)]

    def _zeros(self, groups: int) -> int:
        """How many of so many groups are to be zero."""
        return round(self.sparsity * groups / 100)

    def _update(self, model: nn.Module) -> None:
        weights, u = self._with("u", model)
        moved = torch._foreach_add(weights, u)
        z = self.projected(moved)
        for name, values in (("z", z), ("u", torch._foreach_sub(moved, z))):
            self.memory[name] = dict(zip(self._weights(model), values, strict=True))


def _all_but_smallest(sizes: Tensor, count: int) -> Tensor:
    """Of sizes (L, n): 0 for the ``count`` smallest of each row and 1 for all others; ties never add to them."""
    smallest = sizes.topk(count, dim=1, largest=False, sorted=False).indices
    return torch.ones_like(sizes).scatter_(1, smallest, 0)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """l2 norm of all entries together."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
    return norm

"""Steering the regulariser's weight lambda until the network has the share of zeros asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from attacks.base import check
from defenses.base import KINDS, Asked, Defense, Kind, Log, Step, counted_weights


def steered(
    lam: float, sparsity_percent: float, target_percent: float, gain: float = 0.5, max_factor: float = 2.0
) -> float:
    """The next lambda: lam * clip((density / target density)^gain, 1 / max_factor, max_factor).

    A density is 100 % less a sparsity. The law works on densities because near 100 % it is their ratio that
    counts: 98 % in place of 99 % is twice the weights. It asks for nothing but that more lambda makes more
    zeros.

    Args:
        lam: lambda of the epoch that ended, > 0.
        sparsity_percent: the share of zeros that came of it, in [0, 100].
        target_percent: the share wanted, in (0, 100).
        gain: how hard to steer, > 0. From 1 on the density may swing about the target without end.
        max_factor: bound on one change, > 1.
    """
    density, wanted = 100 - sparsity_percent, 100 - target_percent
    if density <= 0:
        return lam / max_factor
    bound = math.log(max_factor)
    return lam * math.exp(min(max(gain * math.log(density / wanted), -bound), bound))


@dataclass(frozen=True, kw_only=True)
class TargetSparsity(Defense):
    """Steers lambda of a sparse optimizer (LinBreg, AdaBreg, ProxSGD) towards a share of zeros.

    After every epoch the lambda of each regularised parameter group is multiplied by
    (density / target density)^gain within bounds; the groups keep their ratios. The density is that of the
    deployed network, all layers together. Lambda lives in the optimizer's groups, and starts again from the
    config's value where a stage builds a new optimizer. LinBreg and AdaBreg settle within a fraction of a
    point; the zeros of ProxSGD come and go with the minibatches, and it keeps wandering by a few points.

    Args:
        target: share of zeros wanted, in percent, in (0, 100); None switches the steering off.
        kind: zeros of what: ``weight``, ``channel``, ``kernel`` or ``row``.
        gain: exponent of the law, > 0; smaller is slower and steadier.
        max_factor: bound on the change of lambda in one epoch, > 1.
        warm_up: epochs at the start of a stage in which lambda stays, >= 0.
        max_lam: lambda never grows beyond this, > 0; None sets no bound.
    """

    sparsifies: ClassVar[bool] = True
    target: float | None = None
    kind: Kind = "weight"
    gain: float = 0.5
    max_factor: float = 2.0
    warm_up: int = 0
    max_lam: float | None = None

    def __post_init__(self) -> None:
        target, max_lam = self.target, self.max_lam
        ok = target is None or 0 < target < 100
        check(ok, "target", "a percentage in (0, 100) or null", target)
        check(self.kind in KINDS, "kind", " or ".join(KINDS), self.kind)
        check(self.gain > 0 and math.isfinite(self.gain), "gain", "a finite number > 0", self.gain)
        ok = self.max_factor > 1 and math.isfinite(self.max_factor)
        check(ok, "max_factor", "a finite number > 1", self.max_factor)
        check(self.warm_up >= 0, "warm_up", "an integer >= 0", self.warm_up)
        check(max_lam is None or max_lam > 0, "max_lam", "a number > 0 or null", max_lam)

    def check(self, model: nn.Module) -> None:
        """There must be something to make sparse."""
        if self.target is not None and not counted_weights(model, self.kind):
            raise ValueError(f"target_sparsity: expected a network with {self.kind}s to make zero, got none")

    def check_stage(self, s: Step) -> None:
        """The optimizer must have a lambda that can be steered."""
        if self.target is not None:
            _regularised(s)

    def asked(self, model: nn.Module) -> Asked | None:
        """The target: a goal, since nothing is projected."""
        if self.target is None:
            return None
        names = counted_weights(model, self.kind)
        return Asked(kind=self.kind, percent=float(self.target), names=names, binding=False)

    def end_epoch(self, s: Step) -> Log:
        """Set the next epoch's lambda; log the lambda of this one, that of the first regularised group.

        Raises:
            ValueError: when the optimizer has no group with a regulariser and lambda > 0, or the network
                nothing of the kind steered for.
        """
        if self.target is None:
            return {}
        groups = _regularised(s)
        used = float(groups[0]["lam"])
        if s.epoch + 1 <= self.warm_up:
            return {"lam": used}
        sparsity = s.sparsity.get(f"{self.kind}_sparsity")
        if sparsity is None:
            raise ValueError(f"kind: expected a network with {self.kind}s to count, got none")
        bound = math.inf if self.max_lam is None else self.max_lam
        for group in groups:
            lam = steered(float(group["lam"]), sparsity, self.target, self.gain, self.max_factor)
            group["lam"] = min(lam, bound)
        return {"lam": used}


def _regularised(s: Step) -> list[dict[str, Any]]:
    """The optimizer's groups whose lambda can be steered."""
    every: list[dict[str, Any]] = s.optimizer.param_groups if s.optimizer is not None else []
    groups = [g for g in every if g.get("regulariser") is not None and "lam" in g]
    name = type(s.optimizer).__name__
    if not groups:
        raise ValueError(f"target_sparsity: expected an optimizer with a regulariser to steer, got {name}")
    check(all(g["lam"] > 0 for g in groups), "target_sparsity", "lam > 0 to steer", _lams(groups))
    return groups


def _lams(groups: list[dict[str, Any]]) -> list[float]:
    return [g["lam"] for g in groups]

"""Flying Bird and Flying Bird+: dynamic sparse adversarial training; Chen et al. 2022, https://arxiv.org/abs/2202.09844."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from attacks.base import check
from defenses.base import Asked, Log, Step
from defenses.sparse.rigl import RigL


@dataclass(frozen=True, kw_only=True)
class FlyingBird(RigL):
    """RigL under adversarial training, for a whole stage; with ``adapt`` (the +) the density follows the robust gap.

    Weights are dropped by magnitude and grown by the gradient of the robust loss, the share traded falls as a cosine
    over the whole training, from the published code's 0.5. With ``adapt``, a trade looks back over some epochs: where
    the gap, training accuracy less robust accuracy on the validation part, has risen from one epoch to the next in half
    of them or more, it drops the more; where the robust accuracy on the validation part has not risen in half of them
    or more, it grows the more; both may hold. The published code asks the validation part's robust loss in its place.

    Args:
        sparsity: share of the weights held at zero in percent, in [0, 100); 0 switches everything off. With ``adapt``
            it is where the training starts.
        drop: share of the weights left that is traded at first, in (0, 1).
        every: steps from one trade to the next, >= 1; None means as many as an epoch has.
        end: share of the stage after which the mask stays as it is, in (0, 1].
        adapt: let the density follow the robust gap.
        drop_more: weights that are dropped beyond the usual, as a share of the usual, in [0, 1].
        grow_more: the same of those that are grown.
        window: epochs looked back over, >= 1.
        drift: percentage points that ``adapt`` may lead away from ``sparsity``, >= 0; with it, the two together are
            below 100.
    """

    drop: float = 0.5
    every: int | None = None
    end: float = 1.0
    adapt: bool = False
    drop_more: float = 0.4
    grow_more: float = 0.05
    window: int = 4
    drift: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("drop_more", "grow_more"):
            check(0 <= getattr(self, name) <= 1, name, "a share in [0, 1]", getattr(self, name))
        check(self.window >= 1, "window", "an integer >= 1", self.window)
        check(self.drift >= 0 and math.isfinite(self.drift), "drift", "a finite number >= 0", self.drift)
        fine = not self.adapt or self.sparsity + self.drift < 100
        check(fine, "drift", "less than what sparsity leaves of 100", self.drift)

    @property
    def needs_robust_validation(self) -> bool:
        """With ``adapt`` the robust accuracy on the validation part has to be measured after every epoch."""
        return self.adapt and self.sparsity > 0

    def check_stage(self, s: Step) -> None:
        """With ``adapt`` there must be a validation part."""
        super().check_stage(s)
        if self.needs_robust_validation:
            check(not math.isnan(s.val_accuracy), "adapt", "a validation part (validation > 0)", "none")

    def asked(self, model: nn.Module) -> Asked | None:
        """The sparsity; where the density adapts, a goal that may be missed."""
        asked = super().asked(model)
        if asked is None or not self.adapt:
            return asked
        return Asked(percent=float(self.sparsity), names=asked.names, binding=False)

    def numbers(self, left: int, size: int, share: float) -> tuple[int, int]:
        """How many of a layer's weights are dropped and how many grown."""
        usual = int(share * left)
        drop = usual + math.ceil(self.drop_more * usual) if self.overfits else usual
        grow = int(usual * (1 + self.grow_more)) if self.stagnates else usual
        drop = min(drop, left)
        return drop, min(grow, size - left + drop)

    @property
    def overfits(self) -> bool:
        """The robust gap rose in at least half of the steps from epoch to epoch looked at, and there is room."""
        return self._room(1) and _often([b > a for a, b in _pairs(self._seen("gaps"))], self.window)

    @property
    def stagnates(self) -> bool:
        """The robust accuracy did not rise in at least half of them, and there is room."""
        return self._room(-1) and _often([b <= a for a, b in _pairs(self._seen("robust"))], self.window)

    def end_epoch(self, s: Step) -> Log:
        """Remember the epoch's gap; log it."""
        log = super().end_epoch(s)
        if not self.needs_robust_validation or self.memory.get("stage") != s.stage:
            return log
        robust = float(s.val_adversarial_accuracy)
        if math.isnan(robust):
            return log
        gap = float(s.train_accuracy) - robust
        for name, value in (("gaps", gap), ("robust", robust)):
            self.memory[name] = [*self._seen(name), value][-(self.window + 1) :]
        return {**log, "robust_gap": 100 * gap}

    def _seen(self, name: str) -> list[float]:
        seen: list[float] = self.memory.get(name, [])
        return seen

    def _room(self, direction: int) -> bool:
        """Whether the sparsity may still go up (1) or down (-1)."""
        if not self.adapt:
            return False
        kept = self.memory["kept"].values()
        now = 100 * (1 - sum(self.memory["left"].values()) / sum(k.numel() for k in kept))
        return bool(direction * (now - self.sparsity) < self.drift)


def _pairs(values: Sequence[float]) -> list[tuple[float, float]]:
    return list(itertools.pairwise(values))


def _often(happened: Sequence[bool], window: int) -> bool:
    """In half of the window or more, once it is full."""
    return len(happened) >= window and 2 * sum(happened) >= len(happened)

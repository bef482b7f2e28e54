"""Penalties whose multiplier lambda may be steered by the discrepancy principle; Roith 1.2.3."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from attacks.base import check
from defenses.base import Defense, Log, Step


@dataclass(frozen=True, kw_only=True)
class Controlled(Defense):
    """Base of penalties lambda * J: a constant lambda, or one raised while the accuracy allows it.

    Discrepancy principle: after every epoch, if the accuracy is above the target lambda grows by the
    increment, else it shrinks by it, never below 0.

    Args:
        lam: lambda, constant, or its first value after the warm-up when steered; >= 0. 0 without a target
            switches the penalty off.
        target_accuracy: accuracy to hold, in (0, 1); None keeps lambda constant.
        increment: what lambda changes by, > 0; without a target it is not used.
        warm_up: epochs at the start of the stage with lambda = 0; None means 5 with a target and 0 without.
        cooldown: epochs between two changes in which lambda stays; the authors' code waits 1.
        signal: whose accuracy is compared with the target: ``validation`` or ``train`` (the authors' code).
    """

    tasks: ClassVar[tuple[str, ...]] = ("classify",)
    lam: float = 0.0
    target_accuracy: float | None = None
    increment: float = 1e-4
    warm_up: int | None = None
    cooldown: int = 0
    signal: Literal["validation", "train"] = "validation"

    def __post_init__(self) -> None:
        target = self.target_accuracy
        check(self.lam >= 0 and math.isfinite(self.lam), "lam", "a finite number >= 0", self.lam)
        check(target is None or 0 < target < 1, "target_accuracy", "a share in (0, 1) or null", target)
        check(0 < self.increment < math.inf, "increment", "a finite number > 0", self.increment)
        check(self.warm_up is None or self.warm_up >= 0, "warm_up", "an integer >= 0 or null", self.warm_up)
        check(self.cooldown >= 0, "cooldown", "an integer >= 0", self.cooldown)
        check(self.signal in ("validation", "train"), "signal", "'validation' or 'train'", self.signal)

    @property
    def _warm_up(self) -> int:
        if self.warm_up is not None:
            return self.warm_up
        return 0 if self.target_accuracy is None else 5

    def check_stage(self, s: Step) -> None:
        """There must be a validation part where its accuracy is the signal."""
        if self.target_accuracy is not None and self.signal == "validation":
            check(not math.isnan(s.val_accuracy), "signal", "'train' without a validation part", self.signal)

    def begin(self, s: Step) -> None:
        """Start with lambda = 0 while warming up, else with ``lam``."""
        self.memory.clear()
        self.memory["lam"] = 0.0 if self._warm_up > 0 else self.lam

    def end_epoch(self, s: Step) -> Log:
        """Set the next epoch's lambda; log the lambda of this one."""
        used: float = self.memory["lam"]
        after = s.epoch + 1 - self._warm_up  # epochs since the warm-up ended
        if after == 0:
            self.memory["lam"] = self.lam
        elif after > 0 and self.target_accuracy is not None and after % (self.cooldown + 1) == 0:
            self.memory["lam"] = self._steered(used, s)
        return {"lam": used}

    def _steered(self, lam: float, s: Step) -> float:
        accuracy = s.val_accuracy if self.signal == "validation" else s.train_accuracy
        check(not math.isnan(accuracy), "signal", f"an accuracy on the {self.signal} part", accuracy)
        assert self.target_accuracy is not None
        return max(lam + self.increment if accuracy > self.target_accuracy else lam - self.increment, 0.0)

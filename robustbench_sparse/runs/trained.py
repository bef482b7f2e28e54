"""What training leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Trained:
    """What training leaves.

    Attributes:
        weights: the deployed network's state, chosen by validation.
        selected: stage, epoch, accuracies and sparsities of the chosen weights.
        last_weights, last: the same of the last epoch.
        history: one row per epoch.
        layers: one row per epoch and layer: zeros and l1 norm of the deployed network.
        asked: the shares of zeros that defenses were asked for, see ``defenses.base.Asked``; plain values.
        seconds: time spent training, over all sittings.
        snapshots: names of the files, in the run's folder, that hold networks kept on the way.
        diverged: why training stopped early, or an empty string.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    selected: dict[str, float] = field(default_factory=dict)
    last_weights: dict[str, Tensor] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    snapshots: list[str] = field(default_factory=list)
    diverged: str = ""

    def memory(self) -> dict[str, Any]:
        """What a training that goes on later has to know."""
        return {name: getattr(self, name) for name in _REMEMBERED}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Take over what ``memory`` gave; KeyError where a part is missing."""
        known = {"snapshots": [], **memory}  # what was kept by an earlier version knows of none
        for name in _REMEMBERED:
            setattr(self, name, known[name])


_REMEMBERED = ("weights", "selected", "last_weights", "last", "history", "layers", "seconds", "snapshots")

"""What training leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Trained:
    """What training leaves.

    Attributes:
        weights: the deployed network's state, chosen by validation.
        history: one row per epoch.
        layers: one row per epoch and layer: zeros and l1 norm of the deployed network.
        selected: stage, epoch, accuracies and sparsities of the chosen weights.
        asked: the shares of zeros that defenses were asked for, see ``defenses.base.Asked``; plain values.
        seconds: time spent training, over all sittings.
        diverged: why training stopped early, or an empty string.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    selected: dict[str, float] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    diverged: str = ""

"""The base of an optimiser's settings in a config."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from attacks.base import check


@dataclass(frozen=True, kw_only=True)
class OptimiserSpec(ABC):
    """Base of optimiser settings.

    Attributes:
        sparsifies: it leaves zeros in the weights of its own accord.
    """

    sparsifies: ClassVar[bool] = False
    lr: float = 0.1
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check(self.lr > 0, "lr", "a number > 0", self.lr)
        check(self.weight_decay >= 0, "weight_decay", "a number >= 0", self.weight_decay)

    @abstractmethod
    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser for all parameters of a network."""

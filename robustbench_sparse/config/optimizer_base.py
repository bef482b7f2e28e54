"""The base of an optimizer's settings in a config."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from attacks.base import check

MOST = 1e6  # of a rate or a decay; beyond any use


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec(ABC):
    """Base of optimizer settings.

    Attributes:
        sparsifies: it leaves zeros in the weights of its own accord.
        lr: learning rate, in (0, 1e6].
        weight_decay: L2 coefficient, in [0, 1e6].
    """

    sparsifies: ClassVar[bool] = False
    lr: float = 0.1
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check(self.lr > 0, "lr", "a number > 0", self.lr)
        check(self.lr <= MOST, "lr", f"a number of at most {MOST:g}", self.lr)
        check(0 <= self.weight_decay <= MOST, "weight_decay", f"a number in [0, {MOST:g}]", self.weight_decay)

    @abstractmethod
    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer for all parameters of a network."""

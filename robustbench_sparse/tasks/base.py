"""What a network is trained for: its inputs and targets, its loss, and what is measured of every image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attacks.base import NoiseSource


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Base of all tasks.

    Attributes:
        key: its name in a config.
        measured: what ``measure`` gives, as columns of the history call it behind ``train_`` and ``val_``.
        percent: it is a share, which tables show in percent.
        larger_is_better: of what is measured; the epoch with the best validation value is kept.
        redraws: a training image's input is drawn anew whenever it is trained on; else once in a run.
    """

    key: ClassVar[str]
    measured: ClassVar[str]
    percent: ClassVar[bool]
    larger_is_better: ClassVar[bool]

    @property
    def redraws(self) -> bool:
        """Whether a training image's input is drawn anew whenever it is trained on."""
        return True

    @abstractmethod
    def classes(self, count: int) -> int | None:
        """Classes that the network tells apart, of a data set with ``count``; None where it gives images."""

    @abstractmethod
    def pair(self, x: Tensor, y: Tensor, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """What the network is given and what it should give.

        Args:
            x: images of the data set in [0, 1], (B, C, H, W).
            y: their labels, (B,).
            noise: where random inputs are drawn from.

        Returns:
            Inputs (B, C, H, W), and targets (B, ...).
        """

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a minibatch, a scalar: what training descends."""

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What counts of each image, (B,): its mean is the network's validation value."""

    def shown(self, value: float) -> float:
        """A mean of ``measure`` as histories have it."""
        return 100 * value if self.percent else value

    def score(self, value: float) -> float:
        """A mean of ``measure``, so that larger is better."""
        return value if self.larger_is_better else -value

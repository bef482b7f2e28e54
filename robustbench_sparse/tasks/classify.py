"""Classification: images and labels, the cross-entropy, and whether the largest logit is the label's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from attacks.base import NoiseSource
from robustbench_sparse.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Classify(Task):
    """Tell which class an image belongs to."""

    key: ClassVar[str] = "classify"
    measured: ClassVar[str] = "accuracy"
    percent: ClassVar[bool] = True
    larger_is_better: ClassVar[bool] = True

    def classes(self, count: int) -> int | None:
        """All of the data set's."""
        return count

    def pair(self, x: Tensor, y: Tensor, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """Images and labels as they are."""
        return x, y

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits (B, K) and labels (B,)."""
        return F.cross_entropy(outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Whether each image is classified correctly, (B,)."""
        return outputs.argmax(1) == targets

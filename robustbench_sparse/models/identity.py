"""The network that returns its input: how far off degraded images are if nothing is done about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from robustbench_sparse.models.base import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Identity(ModelSpec):
    """The input as it is: the row that a restoration network has to beat. It has no weights and is not trained."""

    key: ClassVar[str] = "identity"
    tasks: ClassVar[tuple[str, ...]] = ("restore",)

    def restorer(self, channels: int, size: int) -> nn.Module:
        """Make the network, (B, C, H, W) -> (B, C, H, W)."""
        return nn.Identity()

"""Fully connected network: 784-200-80-10 in Bungert et al., arXiv:2105.04319 (section 4.2) and in CLIP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from attacks.base import check
from robustbench_sparse.models.base import ModelSpec

Activation = Literal["relu", "sigmoid", "tanh", "elu", "gelu", "softplus", "leaky_relu"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "leaky_relu": nn.LeakyReLU,
}


@dataclass(frozen=True, kw_only=True)
class MLP(ModelSpec):
    """Linear layers with an activation between them; torch's default initialisation.

    Args:
        hidden: widths of the hidden layers; ``[]`` gives a linear classifier.
        activation: after every hidden layer.
        batch_norm: batch-norm between every hidden layer and its activation.
        last_activation: after the last layer; ``none`` gives plain logits. The networks published with CLIP
            (Bungert et al., arXiv:2103.12531) have ``sigmoid`` here: their "logits" lie in (0, 1), which
            bounds the cross-entropy and shrinks its gradients.
    """

    key: ClassVar[str] = "mlp"

    hidden: tuple[int, ...] = (200, 80)
    activation: Activation = "relu"
    batch_norm: bool = False
    last_activation: Activation | Literal["none"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(all(width >= 1 for width in self.hidden), "hidden", "widths >= 1", self.hidden)
        known = ", ".join(ACTIVATIONS)
        check(self.activation in ACTIVATIONS, "activation", f"one of {known}", self.activation)
        last = self.last_activation
        check(last == "none" or last in ACTIVATIONS, "last_activation", f"one of none, {known}", last)

    def network(self, channels: int, size: int, classes: int) -> nn.Module:
        """Make the network: flatten, then linear layers, (B, C, H, W) -> (B, K)."""
        layers: list[nn.Module] = [nn.Flatten()]
        width = channels * size * size
        for after in self.hidden:
            layers.append(nn.Linear(width, after))
            if self.batch_norm:
                layers.append(nn.BatchNorm1d(after))
            layers.append(ACTIVATIONS[self.activation]())
            width = after
        layers.append(nn.Linear(width, classes))
        if self.last_activation != "none":
            layers.append(ACTIVATIONS[self.last_activation]())
        return nn.Sequential(*layers)

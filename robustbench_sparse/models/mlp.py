"""Fully connected network: 784-200-80-10 in Bungert et al., arXiv:2105.04319 (section 4.2) and in CLIP."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from attacks.base import LATER, check
from robustbench_sparse.models.base import ModelSpec
from robustbench_sparse.models.skips import SkipLayer

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


class ResidualLayer(SkipLayer):
    """Phi(w, W, b)(z) = w z + sigma(W z + b), the layer of Roith's thesis, section 1.1; w, W and b are trained.

    Its w is the parameter ``skip``, (1,), so named as in ``dense_residual``, for groups that match ``*skip``.

    Args:
        inner: z -> sigma(W z + b), as wide as z.
        start: of w.
    """

    def __init__(self, inner: nn.Module, start: float) -> None:
        super().__init__([0], start)
        self.inner = inner

    def forward(self, z: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        return self.with_skips(self.inner(z), [z])


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
        residual: value that w starts at in z -> w z + sigma(W z + b); null for plain layers sigma(W z + b). Every
            hidden layer as wide as its input has such a w of its own, which is trained like all else.
    """

    key: ClassVar[str] = "mlp"
    thins: ClassVar[tuple[str, ...]] = ("hidden",)

    hidden: tuple[int, ...] = (200, 80)
    activation: Activation = "relu"
    batch_norm: bool = False
    last_activation: Activation | Literal["none"] = "none"
    residual: float | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(all(width >= 1 for width in self.hidden), "hidden", "widths >= 1", self.hidden)
        known = ", ".join(ACTIVATIONS)
        check(self.activation in ACTIVATIONS, "activation", f"one of {known}", self.activation)
        last = self.last_activation
        check(last == "none" or last in ACTIVATIONS, "last_activation", f"one of none, {known}", last)
        w = self.residual
        check(w is None or math.isfinite(w), "residual", "a finite number or null", w)

    def network(self, channels: int, size: int, classes: int) -> nn.Module:
        """Make the network: flatten, then linear layers, (B, C, H, W) -> (B, K).

        Raises:
            ValueError: ``residual`` without a hidden layer as wide as its input.
        """
        layers: list[nn.Module] = [nn.Flatten()]
        widths = [channels * size * size, *self.hidden]
        equal = any(a == b for a, b in itertools.pairwise(widths))
        expected = "null, or a hidden layer as wide as the one before it"
        check(self.residual is None or equal, "residual", expected, f"widths {widths}")
        width = widths[0]
        for after in self.hidden:
            parts: list[nn.Module] = [nn.Linear(width, after)]
            if self.batch_norm:
                parts.append(nn.BatchNorm1d(after))
            parts.append(ACTIVATIONS[self.activation]())
            # Plain layers stay beside each other, not in a module of their own: stored weights keep their names.
            if self.residual is not None and width == after:
                parts = [ResidualLayer(nn.Sequential(*parts), self.residual)]
            layers += parts
            width = after
        layers.append(nn.Linear(width, classes))
        if self.last_activation != "none":
            layers.append(ACTIVATIONS[self.last_activation]())
        return nn.Sequential(*layers)

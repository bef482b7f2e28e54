"""Dense residual network: every layer may read all before it; Bungert et al. 2021, arXiv:2106.02479, (2.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from attacks.base import check
from robustbench_sparse.models.base import ModelSpec
from robustbench_sparse.models.mlp import ACTIVATIONS, Activation
from robustbench_sparse.models.skips import SkipLayer


class DenseResidualLayer(SkipLayer):
    """x^{l+1} = sigma(W^l x^l + b^l) + sum_i tau^{l,i} x^i over the earlier x^i that are as wide as x^{l+1}.

    Args:
        widths: of x^0 to x^l; the last one is the layer's input.
        width: of x^{l+1}.
        activation: sigma.

    Attributes:
        sources: the numbers i of the x^i that may be skipped to here.
        skip: tau^{l,i} in their order; None where there is none.
    """

    def __init__(self, widths: list[int], width: int, activation: nn.Module) -> None:
        super().__init__([i for i, other in enumerate(widths) if other == width])
        self.linear = nn.Linear(widths[-1], width)
        self.activation = activation

    def forward(self, xs: list[Tensor]) -> Tensor:
        """x^0 to x^l, each (B, width) -> x^{l+1}, (B, width)."""
        return self.with_skips(self.activation(self.linear(xs[-1])), xs)


class DenseResidualModule(nn.Module):
    """L dense residual layers on the flattened image, and what makes logits or an image of the last x^L."""

    def __init__(self, widths: list[int], activation: Activation, head: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DenseResidualLayer(widths[: i + 1], width, ACTIVATIONS[activation]())
            for i, width in enumerate(widths[1:])
        )
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K), or images."""
        xs = [x.flatten(1)]
        for layer in self.layers:
            xs.append(layer(xs))
        out: Tensor = self.head(xs[-1])
        return out


@dataclass(frozen=True, kw_only=True)
class DenseResidual(ModelSpec):
    """L layers x^{l+1} = sigma(W^l x^l + b^l) + sum_{i <= l} tau^{l,i} x^i; the search space of Bungert et al. 2021.

    The skips tau start at 0: what is a plain network at first may grow into a residual one. A skip joins layers of
    equal width, so that with ``width: null`` there are all of them. An optimizer regularises the skips by
    ``groups: [{match: "*skip", regulariser: l1, lam: ...}]``; ``zero`` in place of ``l1`` holds them at 0. torch's
    default initialisation.

    Args:
        layers: L, >= 1: an input, L - 1 hidden layers and an output.
        width: of the hidden layers; null for that of the flattened image, the paper's.
        activation: sigma, after every layer, the last one too: as in the paper, an image restored is
            sigma(...) + skips. A classifier has a linear layer behind it.
    """

    key: ClassVar[str] = "dense_residual"
    tasks: ClassVar[tuple[str, ...]] = ("classify", "restore")

    layers: int = 6
    width: int | None = None
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.layers >= 1, "layers", "an integer >= 1", self.layers)
        check(self.width is None or self.width >= 1, "width", "an integer >= 1 or null", self.width)
        check(
            self.activation in ACTIVATIONS, "activation", f"one of {', '.join(ACTIVATIONS)}", self.activation
        )

    def network(self, channels: int, size: int, classes: int) -> nn.Module:
        """Make the network that classifies, (B, C, H, W) -> (B, K)."""
        widths = self._widths(channels * size * size, "hidden")
        return DenseResidualModule(widths, self.activation, nn.Linear(widths[-1], classes))

    def restorer(self, channels: int, size: int) -> nn.Module:
        """Make the network that restores, (B, C, H, W) -> (B, C, H, W)."""
        widths = self._widths(channels * size * size, "image")
        return DenseResidualModule(widths, self.activation, nn.Unflatten(1, (channels, size, size)))

    def _widths(self, pixels: int, last: Literal["hidden", "image"]) -> list[int]:
        hidden = self.width or pixels
        return [pixels, *[hidden] * (self.layers - 1), pixels if last == "image" else hidden]

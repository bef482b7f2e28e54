"""Fourier neural operator as a classifier: Roith's thesis, section 1.4.1; Kabri et al. 2023, arXiv:2304.01227."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from torch import Tensor, nn

from attacks.base import check
from robustbench_sparse.models.base import ModelSpec, he_init
from robustbench_sparse.models.cnn import check_features, classifier
from robustbench_sparse.models.mlp import ACTIVATIONS, Activation
from robustbench_sparse.models.spectral import Parameters, SpectralConv2d


class OperatorLayer(nn.Module):
    """sigma(W u + K u + b), equations (1.33) and (1.34): K a spectral convolution, W the same matrix at every pixel.

    Args:
        spectral: u -> K u + b.
        residual: u -> W u; None for none.
        activation: sigma.
    """

    def __init__(self, spectral: SpectralConv2d, residual: nn.Module | None, activation: nn.Module) -> None:
        super().__init__()
        self.spectral, self.residual, self.activation = spectral, residual, activation

    def forward(self, u: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, after, H, W)."""
        out = self.spectral(u)
        out = out if self.residual is None else out + self.residual(u)
        total: Tensor = self.activation(out)
        return total


@dataclass(frozen=True, kw_only=True)
class FNO(ModelSpec):
    """Spectral convolutions with an activation each, average over pool x pool parts, linear; takes images of any size.

    Only the activations tell one resolution from another: between them, a finer image gives the same features on a
    finer grid. With ``parameters: space`` and images of odd size N = ``modes`` it is, on these, the circular ``cnn`` of
    the same weights (lemma 1.29). Spectral weights are not counted in sparsities and macs; see ``SpectralConv2d``.

    Args:
        widths: channels of the spectral layers.
        modes: Fourier coefficients along each axis, odd, at most the images' size; null for as many as it allows.
        parameters: train the coefficients (``frequency``), or kernels in space that they are made of (``space``). Both
            start as the same kind of network; by lemma 1.30 a step of gradient descent is |J_M| = modes^2 times as long
            for kernels as for coefficients.
        kernel_size: side of the kernels in pixels of a grid of modes x modes, odd; null for modes. Coefficients start
            as those of such kernels.
        residual: add W u in every layer.
        activation: sigma, after every spectral layer.
        pool: side of the map that features are averaged to.
    """

    key: ClassVar[str] = "fno"

    widths: tuple[int, ...] = (16, 16)
    modes: int | None = None
    parameters: Parameters = "frequency"
    kernel_size: int | None = 5
    residual: bool = False
    activation: Activation = "relu"
    pool: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_features(self.widths, self.activation, self.pool)
        check(
            self.modes is None or (self.modes >= 1 and self.modes % 2 == 1),
            "modes",
            "an odd number >= 1 or null",
            self.modes,
        )
        known = get_args(Parameters)
        check(self.parameters in known, "parameters", " or ".join(known), self.parameters)
        size = self.kernel_size
        check(
            size is None or (size >= 1 and size % 2 == 1), "kernel_size", "an odd number >= 1 or null", size
        )

    def network(self, channels: int, size: int, classes: int) -> nn.Module:
        """Make the network, (B, C, H, W) -> (B, K), for training on images of ``size``. He initialisation.

        Raises:
            ValueError: for more modes than pixels, or kernels larger than modes.
        """
        most = size - (size + 1) % 2
        modes = most if self.modes is None else self.modes
        check(modes <= most, "modes", f"at most {most} on images of {size} x {size} pixels", modes)
        side = modes if self.kernel_size is None else self.kernel_size
        check(side <= modes, "kernel_size", f"at most the {modes} modes", side)
        layers: list[nn.Module] = []
        before = channels
        for width in self.widths:
            spectral = SpectralConv2d(before, width, modes, parameters=self.parameters, kernel_size=side)
            residual = nn.Conv2d(before, width, 1, bias=False) if self.residual else None
            layers.append(OperatorLayer(spectral, residual, ACTIVATIONS[self.activation]()))
            before = width
        network = nn.Sequential(*layers, *classifier(before, self.pool, classes))
        he_init(network, "fan_in")
        return network

"""A layer's weights as a picture; Dinh's thesis, figures 4.1, A.1 and A.2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.figures.base import Drawing, check
from robustbench_sparse.reporting.figures.finding import as_text, titles
from robustbench_sparse.reporting.figures.networks import Array, Layer, chosen, layers_of
from robustbench_sparse.reporting.figures.style import largest, mark_zeros, panels, show_signed
from robustbench_sparse.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = 32  # kernels along an axis, up to which lines part them
_SIDE = 5.0  # inches


@dataclass(frozen=True, kw_only=True)
class LayerPicture(Drawing):
    """One layer's weights as a picture, kernel by kernel, in one scale for all runs; zeros in a colour of their own.

    Args:
        layer: the layer's name, one.
        first: only so many outputs and inputs, the first; by default all.
        zoom: the largest magnitude of the colour scale; by default that of the layer.
    """

    published: ClassVar[str] = "Dinh, thesis, figures 4.1, A.1 and A.2"
    most: ClassVar[int] = 12

    layer: tuple[str, ...] = ()
    first: int | None = None
    zoom: float | None = None

    def __post_init__(self) -> None:
        check(self.first is None or self.first >= 1, "first", "a whole number >= 1", self.first)
        check(self.zoom is None or self.zoom > 0, "zoom", "a number > 0", self.zoom)
        check(len(self.layer) <= 1, "layer", "one layer", ", ".join(self.layer))

    def draw(self, figure: Figure, runs: Sequence[RunFolder]) -> None:
        """A panel per run."""
        if not self.layer:
            known = ", ".join(layer.name for layer in layers_of(runs[0]))
            raise UserError(f"--layer: expected the name of a layer; there are: {known}")
        layers = [chosen(layers_of(run), self.layer, run)[0] for run in runs]
        parts = [layer.kernels()[: self.first, : self.first] for layer in layers]
        reach = self.zoom or largest(parts)
        axes = panels(figure, len(runs), (_SIDE, _SIDE + 0.6), columns=3)
        for ax, title, layer, part in zip(axes, titles(runs), layers, parts, strict=True):
            extent = (-0.5, part.shape[1] - 0.5, part.shape[0] - 0.5, -0.5)  # the numbers are in the middles
            drawn = show_signed(ax, mosaic(part), reach, extent=extent, aspect=_aspect(part))
            self._describe(ax, title, layer, part)
        figure.colorbar(drawn, ax=axes, label="weight", shrink=0.8)
        mark_zeros(figure, "exactly zero")

    def _describe(self, ax: Axes, title: str, layer: Layer, part: Array) -> None:
        zeros = 100 * float((layer.weight == 0).mean())
        shape = " x ".join(map(str, layer.weight.shape))
        ax.set_title(f"{title}\n{as_text(layer.name)}: {shape}, {zeros:.4g} % zeros", fontsize="medium")
        ax.set(xlabel="input", ylabel="output")
        if part.shape[2] * part.shape[3] > 1 and max(part.shape[:2]) <= _LINES:
            for ticks, line in ((part.shape[1], ax.axvline), (part.shape[0], ax.axhline)):
                for place in range(1, ticks):
                    line(place - 0.5, color="black", linewidth=0.3)


def mosaic(kernels: Array) -> Array:
    """Kernels (out, in, height, width) beside each other: (out * height, in * width), outputs downwards."""
    out, inputs, height, width = kernels.shape
    picture: Array = kernels.transpose(0, 2, 1, 3).reshape(out * height, inputs * width)
    return picture


def _aspect(part: Array) -> str | float:
    """Square weights, unless the picture would be a thin strip."""
    out, inputs, height, width = part.shape
    ratio = out * height / (inputs * width)
    return (height / width if width else 1.0) if 1 / 4 <= ratio <= 4 else "auto"

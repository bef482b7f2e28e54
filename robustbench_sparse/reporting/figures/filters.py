"""A layer's filters at several epochs of a training; after BREG-I (Bungert et al., arXiv:2105.04319), figure 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.figures.base import Drawing, check
from robustbench_sparse.reporting.figures.finding import as_text, titles
from robustbench_sparse.reporting.figures.networks import (
    Array,
    Layer,
    chosen,
    layers_of,
    moment_text,
    snapshots_of,
)
from robustbench_sparse.reporting.figures.style import largest, mark_zeros, panels, show_signed
from robustbench_sparse.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Filters(Drawing):
    """The filters of a layer at the epochs that a run kept its network, in one scale; zeros in a colour of their own.

    The kernels of a filter stand beside each other; the neurons of a linear layer are squares where their inputs are a
    square number, as those of grey images. Epochs are kept by the training setting ``snapshots``.

    Args:
        layer: the layer's name; by default the first convolution, or the first layer where there is none.
        epochs: networks kept after so many epochs; by default all that were kept.
        first: only so many filters, the first; by default all.
        zoom: the largest magnitude of the colour scale; by default that of the weights drawn.
    """

    published: ClassVar[str] = "Bungert et al. 2022 (BREG-I), figure 1"
    most: ClassVar[int] = 8

    layer: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()
    first: int | None = None
    zoom: float | None = None

    def __post_init__(self) -> None:
        check(len(self.layer) <= 1, "layer", "one layer", ", ".join(self.layer))
        check(self.first is None or self.first >= 1, "first", "a whole number >= 1", self.first)
        check(self.zoom is None or self.zoom > 0, "zoom", "a number > 0", self.zoom)

    def draw(self, figure: Figure, runs: Sequence[RunFolder]) -> None:
        """A panel per network kept, run after run."""
        moments = [snapshots_of(run, self.epochs) for run in runs]
        drawn: list[tuple[str, Array]] = []
        for run, name, kept in zip(runs, titles(runs), moments, strict=True):
            stages = len({stage for stage, _ in run.snapshots()})
            for at in kept:
                layer = one_layer(layers_of(run, run.snapshot(*at)), self.layer, run)
                above = f"{name}, layer {as_text(layer.name)}: " if len(runs) > 1 else ""
                active = f"{int(layer.active().sum())} of {len(layer.weight)} active"
                drawn.append(
                    (f"{above}{moment_text(at, stages)}\n{active}", sheet(layer.weight[: self.first]))
                )
        reach = self.zoom or largest([picture for _, picture in drawn])
        # One row per run, where runs kept as many networks as each other.
        same = len({len(kept) for kept in moments}) == 1
        axes = panels(figure, len(drawn), (3.2, 3.5), columns=min(6, len(moments[0])) if same else 4)
        for ax, (title, picture) in zip(axes, drawn, strict=True):
            image = show_signed(ax, picture, reach)
            ax.set_title(title, fontsize="small")
            ax.set_axis_off()
        if len(runs) == 1:
            figure.suptitle(f"{titles(runs)[0]}, layer {as_text(layer.name)}", fontsize="medium")
        figure.colorbar(image, ax=axes, label="weight", shrink=0.8)
        mark_zeros(figure, "exactly zero")


def one_layer(layers: Sequence[Layer], wanted: Sequence[str], run: RunFolder) -> Layer:
    """The layer of this name; else the first convolution, or the first layer where there is none."""
    if wanted:
        return chosen(layers, wanted, run)[0]
    return next((layer for layer in layers if layer.is_convolution), layers[0])


def sheet(weight: Array) -> Array:
    """Filters (out, in, ...) or neurons (out, in) in a nearly square arrangement, a pixel apart; nan in between.

    Raises:
        UserError: there are more pixels than a figure can show.
    """
    cells = _cells(weight)
    count, height, width = cells.shape
    columns = max(1, min(count, round(math.sqrt(count * (height + 1) / (width + 1)))))
    rows = math.ceil(count / columns)
    if rows * columns * height * width > 50_000_000:
        raise UserError(f"--first: {count} filters of {height} x {width} are too many for a figure")
    out = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for number, cell in enumerate(cells):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        out[top : top + height, left : left + width] = cell
    return out


def _cells(weight: Array) -> Array:
    """What is drawn of each output, (out, height, width)."""
    if weight.ndim == 2:
        side = math.isqrt(weight.shape[1])
        return weight.reshape(len(weight), *((side, side) if side**2 == weight.shape[1] else (1, -1)))
    height = weight.shape[2] if weight.ndim > 3 else 1
    kernels = weight.reshape(*weight.shape[:2], height, -1)
    cells: Array = kernels.transpose(0, 2, 1, 3).reshape(len(weight), height, -1)
    return cells

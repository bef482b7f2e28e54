"""Layer widths over runs; Bungert et al. 2021 (BREG-II, arXiv:2106.02479), figures 2 and 3, top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.figures.base import Drawing
from robustbench_sparse.reporting.figures.finding import by_row
from robustbench_sparse.reporting.figures.networks import Array, layers_of
from robustbench_sparse.reporting.figures.style import COLOURS, layer_ticks, panels
from robustbench_sparse.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Widths(Drawing):
    """How many neurons (or filters) of each layer are active, as box plots over the seeds, a panel per row.

    A neuron is active where any of its weights is not zero. The size of the input stands before the layers. Boxes go
    from the lower to the upper quartile, whiskers to the smallest and largest value, the line is the median.
    """

    published: ClassVar[str] = "Bungert et al. 2021 (BREG-II), figures 2 and 3 (top)"
    most: ClassVar[int] = 10_000

    def draw(self, figure: Figure, runs: Sequence[RunFolder]) -> None:
        """A panel per row of the benchmark."""
        from matplotlib.lines import Line2D

        rows = by_row(runs)
        axes = panels(figure, len(rows), (5.2, 3.8), columns=3)
        for ax, (title, seeds) in zip(axes, rows.items(), strict=True):
            self._panel(ax, *widths_of(seeds))
            ax.set_title(f"{title} ({len(seeds)} run{'s' * (len(seeds) > 1)})", fontsize="medium")
        median = Line2D([], [], color=COLOURS[1], linewidth=2)
        there = Line2D([], [], color="black", marker="_", markersize=14, linestyle="")
        texts = ["active (median)", "all there are"]
        figure.legend([median, there], texts, loc="outside lower center", ncols=2, fontsize="small")

    def _panel(self, ax: Axes, active: Array, whole: Array) -> None:
        place = np.arange(active.shape[1])
        ax.boxplot(
            active,
            positions=place,
            whis=(0, 100),
            widths=0.5,
            patch_artist=True,
            boxprops={"facecolor": "#d6e6f2", "edgecolor": COLOURS[0]},
            whiskerprops={"color": COLOURS[0]},
            capprops={"color": COLOURS[0]},
            medianprops={"color": COLOURS[1], "linewidth": 2},
        )
        ax.hlines(whole, place - 0.4, place + 0.4, color="black", linewidth=1)
        ax.set(xlabel="layer (0: the input)", ylabel="active neurons or filters", ylim=(0, None))
        layer_ticks(ax, place)


def widths_of(runs: Sequence[RunFolder]) -> tuple[Array, Array]:
    """Active outputs of every layer, (runs, 1 + layers), and all of them, (1 + layers,); the input's size first.

    Raises:
        UserError: the runs' networks are not alike.
    """
    active, whole = [], []
    for run in runs:
        layers = layers_of(run)
        inputs = layers[0].weight.shape[1] * layers[0].groups
        active.append([inputs, *(int(layer.active().sum()) for layer in layers)])
        whole.append([inputs, *(len(layer.weight) for layer in layers)])
    if any(w != whole[0] for w in whole):
        raise UserError(
            f"{runs[0].path.parent}: the seeds of {runs[0].label} have networks of different widths"
        )
    return np.array(active, dtype=float), np.array(whole[0])

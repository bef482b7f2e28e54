"""Norms of input channels; Dinh's thesis, figure 4.5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from defenses.base import ZERO_CHANNEL
from robustbench_sparse.reporting.figures.base import Drawing, check
from robustbench_sparse.reporting.figures.finding import titles
from robustbench_sparse.reporting.figures.networks import Array
from robustbench_sparse.reporting.figures.style import largest, look, outline, panels
from robustbench_sparse.reporting.figures.weights import pooled
from robustbench_sparse.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Channels(Drawing):
    """l2 norms of the input channels W[:, g] of all convolutions: a histogram, or sorted.

    A norm below 1e-15 is a zero, as in every channel sparsity; the legend counts them.

    Args:
        layer: only these layers, a panel each.
        per_layer: a panel for every convolution; else one for all together.
        sorted: the norms in falling order, in place of a histogram.
        log: a logarithmic scale, of the counts or of the sorted norms, on which zeros are not to be seen.
        bins: bins of equal width.
        zoom: norms up to this are drawn, as in 2e-7; by default all.
    """

    published: ClassVar[str] = "Dinh, thesis, figure 4.5"
    most: ClassVar[int] = 28

    layer: tuple[str, ...] = ()
    per_layer: bool = False
    sorted: bool = False
    log: bool = False
    bins: int = 50
    zoom: float | None = None

    def __post_init__(self) -> None:
        check(1 <= self.bins <= 10_000, "bins", "a whole number >= 1", self.bins)
        check(self.zoom is None or self.zoom > 0, "zoom", "a number > 0", self.zoom)

    def draw(self, figure: Figure, runs: Sequence[RunFolder]) -> None:
        """One panel, or one per convolution."""
        names = titles(runs)
        pools = pooled(runs, names, self.layer, self.per_layer, convolutions=True)
        axes = panels(figure, len(pools), (6.4, 4.4) if len(pools) == 1 else (4.2, 3.2))
        for ax, (title, of_run) in zip(axes, pools.items(), strict=True):
            norms = {name: np.concatenate([w.channel_norms() for w in part]) for name, part in of_run.items()}
            (self._ranked if self.sorted else self._histogram)(ax, norms, names)
            if self.log:
                ax.set_yscale("log")
            ax.set_title(title, fontsize="medium")
            ax.legend(fontsize="small")

    def _histogram(self, ax: Axes, norms: Mapping[str, Array], names: Sequence[str]) -> None:
        edges = np.linspace(0, self.zoom or largest([*norms.values()]), self.bins + 1)
        for name, values in norms.items():
            counts = np.histogram(values, edges)[0]
            filled = len(norms) <= 2 and not self.log
            outline(ax, counts, edges, names.index(name), _label(name, values), filled=filled)
        ax.set(xlabel="l2 norm of an input channel", ylabel="channels", xlim=(edges[0], edges[-1]))
        if not self.log:
            ax.set_ylim(bottom=0)

    def _ranked(self, ax: Axes, norms: Mapping[str, Array], names: Sequence[str]) -> None:
        for name, values in norms.items():
            falling = np.sort(values)[::-1]
            place = np.arange(1, len(falling) + 1)
            if self.log:
                falling = np.where(falling < ZERO_CHANNEL, np.nan, falling)
            ax.plot(place, falling, label=_label(name, values), **look(names.index(name)))
        ax.set(xlabel="channel, the largest first", ylabel="l2 norm of an input channel")
        if self.zoom is not None:
            ax.set_ylim(0 if not self.log else None, self.zoom)
        elif not self.log:
            ax.set_ylim(bottom=0)


def _label(name: str, norms: Array) -> str:
    return f"{name} ({int((norms < ZERO_CHANNEL).sum())} of {len(norms)} zero)"

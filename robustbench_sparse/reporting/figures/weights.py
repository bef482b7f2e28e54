"""Histogram of weights; Dinh's thesis, figures 1.2 and 4.2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.figures.base import Drawing, check
from robustbench_sparse.reporting.figures.finding import as_text, titles
from robustbench_sparse.reporting.figures.networks import Array, Layer, chosen, layers_of
from robustbench_sparse.reporting.figures.style import largest, outline, panels
from robustbench_sparse.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_DRAWN = 0.999  # of a network's weights, at least, on a linear scale


@dataclass(frozen=True, kw_only=True)
class Weights(Drawing):
    """How large the weights are: histograms of one or more networks over each other.

    Shares are of all weights of the panel, those beyond the picture included; zeros count in the middle bin, and the
    legend says how many there are.

    Args:
        layer: only these layers, a panel each.
        per_layer: a panel for every layer; else one for all together.
        log: a logarithmic scale for the shares.
        bins: bins of equal width, an odd number, so that one has zero in its middle.
        zoom: weights of magnitude up to this are drawn; by default all with ``log``, else as far as to leave out no
            more than one in a thousand.
    """

    published: ClassVar[str] = "Dinh, thesis, figures 1.2 and 4.2"
    most: ClassVar[int] = 28

    layer: tuple[str, ...] = ()
    per_layer: bool = False
    log: bool = False
    bins: int = 101
    zoom: float | None = None

    def __post_init__(self) -> None:
        check(3 <= self.bins <= 10_001 and self.bins % 2 == 1, "bins", "an odd number >= 3", self.bins)
        check(self.zoom is None or self.zoom > 0, "zoom", "a number > 0", self.zoom)

    def draw(self, figure: Figure, runs: Sequence[RunFolder]) -> None:
        """One panel, or one per layer."""
        names = titles(runs)
        pools = pooled(runs, names, self.layer, self.per_layer)
        single = len(pools) == 1
        axes = panels(figure, len(pools), (6.4, 4.4) if single else (4.2, 3.2))
        for ax, (title, of_run) in zip(axes, pools.items(), strict=True):
            values = {name: np.concatenate([w.weight.ravel() for w in part]) for name, part in of_run.items()}
            self._panel(ax, values, names)
            ax.set_title(title, fontsize="medium")

    def _panel(self, ax: Axes, values: Mapping[str, Array], names: Sequence[str]) -> None:
        share = 1.0 if self.log else _DRAWN
        reach = self.zoom or largest(
            [np.quantile(np.abs(w), share, method="higher") for w in values.values()]
        )
        edges = np.linspace(-reach, reach, self.bins + 1)
        for name, weights in values.items():
            shares = 100 * np.histogram(weights, edges)[0] / len(weights)
            zeros = 100 * float(np.mean(weights == 0))
            label = f"{name} ({zeros:.4g} % zeros)"
            outline(ax, shares, edges, names.index(name), label, filled=len(values) <= 2 and not self.log)
        ax.set(xlabel="weight", ylabel="weights in %", xlim=(-reach, reach))
        if self.log:
            ax.set_yscale("log")
        else:
            ax.set_ylim(
                0, ax.get_ylim()[1] * (1 + 0.1 * len(values))
            )  # the legend stands above the peak at zero
        ax.legend(fontsize="small")


def pooled(
    runs: Sequence[RunFolder],
    names: Sequence[str],
    wanted: Sequence[str],
    per_layer: bool,
    convolutions: bool = False,
) -> dict[str, dict[str, list[Layer]]]:
    """The layers that go into each panel, by the panel's title and the run's name.

    Args:
        runs, names: what is drawn, and what each is called.
        wanted: names of layers, a panel each.
        per_layer: a panel for every layer.
        convolutions: leave out layers that are none.

    Raises:
        UserError: a run has no such layer.
    """
    out: dict[str, dict[str, list[Layer]]] = {}
    for run, name in zip(runs, names, strict=True):
        layers = [x for x in layers_of(run) if x.is_convolution or not convolutions]
        if not layers:
            raise UserError(f"{run.path}: its network has no convolution, and so no channels")
        for layer in chosen(layers, wanted, run):
            what = "all convolutions" if convolutions else "all layers"
            title = f"layer {as_text(layer.name)}" if wanted or per_layer else what
            out.setdefault(title, {}).setdefault(name, []).append(layer)
    return out

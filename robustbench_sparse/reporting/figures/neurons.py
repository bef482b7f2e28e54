"""Active neurons over the epochs; BREG-I (Bungert et al., arXiv:2105.04319), figure 4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.figures.base import Drawing, check
from robustbench_sparse.reporting.figures.finding import by_row
from robustbench_sparse.reporting.figures.networks import course_of
from robustbench_sparse.reporting.figures.style import layer_ticks, panels
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # epochs; the last one always


@dataclass(frozen=True, kw_only=True)
class Neurons(Drawing):
    """How many neurons (or filters) of each layer are active after some epochs, darker for later ones.

    Means over the seeds, a panel per row of the benchmark.

    Args:
        epochs: epochs passed, over all stages, from 1; by default 1, 2, 5, 10, 20, 50, ... and the last one.
    """

    published: ClassVar[str] = "Bungert et al. 2022 (BREG-I), figure 4"
    most: ClassVar[int] = 10_000

    epochs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check(all(e >= 1 for e in self.epochs), "epochs", "whole numbers >= 1", self.epochs)

    def draw(self, figure: Figure, runs: Sequence[RunFolder]) -> None:
        """A panel per row."""
        from matplotlib import colormaps

        rows = by_row(runs)
        axes = panels(figure, len(rows), (5.6, 4.0), columns=3)
        for ax, (title, seeds) in zip(axes, rows.items(), strict=True):
            table = active_over_epochs(seeds)
            passed = self._chosen(table, seeds[0])
            shades = colormaps["Blues"](np.linspace(0.3, 1.0, len(passed)))
            place = np.arange(1, table.shape[1] + 1)
            for epoch, shade in zip(passed, shades, strict=True):
                label = f"epoch {epoch}"
                ax.plot(place, table.loc[epoch], "o-", color=shade, label=label, markersize=4, linewidth=1.6)
            seed = f" ({len(seeds)} runs)" if len(seeds) > 1 else ""
            ax.set_title(f"{title}{seed}", fontsize="medium")
            ax.set(xlabel="layer", ylabel="active neurons or filters")
            ax.set_ylim(0, 1.05 * float(table.loc[passed].to_numpy().max()) or 1)
            layer_ticks(ax, place)
            ax.legend(fontsize="small")

    def _chosen(self, table: pd.DataFrame, run: RunFolder) -> list[int]:
        there = [int(e) for e in table.index]
        for epoch in self.epochs:
            if epoch not in there:
                raise UserError(f"--epochs {epoch}: {run.path.name} was trained for {max(there)} epochs")
        wanted = sorted(set(self.epochs)) or [e for e in _SHOWN if e < max(there)] + [max(there)]
        return [e for e in wanted if e in there]


def active_over_epochs(runs: Sequence[RunFolder]) -> pd.DataFrame:
    """Outputs with a weight that is not zero, the mean over runs: a row per epoch passed, a column per layer.

    Raises:
        UserError: rows were not counted when the run was trained, or the runs have not as many epochs or layers.
    """
    tables = []
    for run in runs:
        table = course_of(run)
        if table.empty:
            raise UserError(f"{run.path}: its network has no layer with weights")
        if "rows" not in table:
            raise UserError(f"{run.path}: no rows in its {names.LAYERS}: nothing can be said of its neurons")
        table["active"] = table["rows"] - table["zero_rows"]
        order = table["name"].drop_duplicates()
        tables.append(table.pivot_table(index="passed", columns="name", values="active")[order])
    if any(t.shape != tables[0].shape or (t.columns != tables[0].columns).any() for t in tables):
        raise UserError(
            f"{runs[0].path.parent}: the seeds of {runs[0].label} have not as many epochs and layers"
        )
    mean: pd.DataFrame = sum(tables[1:], tables[0]) / len(tables)
    return mean

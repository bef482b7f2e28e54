"""Two runs on the same images: how many flip under each attack, and which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.reporting.comparison import compare_runs
from robustbench_sparse.reporting.figures.base import Drawing
from robustbench_sparse.reporting.figures.finding import as_text, titles
from robustbench_sparse.reporting.figures.style import COLOURS, panels
from robustbench_sparse.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIRST, SECOND = COLOURS[1], COLOURS[0]


@dataclass(frozen=True, kw_only=True)
class Flips(Drawing):
    """Images that only one of two runs has right, a line a column: how many, and which.

    To the right of 0 stand those that only the first run has right, to the left those that only the second has; the
    point is the difference with its paired 95 % interval, as ``compare`` gives it. Beside it each of these images is a
    mark at its position in the data set.

    Args:
        attack: columns: attacks' labels, ``clean``, ``worst``; by default all that both runs have.
    """

    published: ClassVar[str] = "none"
    fewest: ClassVar[int] = 2
    most: ClassVar[int] = 2
    attack: tuple[str, ...] = ()

    def draw(self, figure: Figure, runs: Sequence[RunFolder]) -> None:
        """Bars and marks beside each other, the columns below each other."""
        table = compare_runs(runs[0].path, runs[1].path)
        known = [str(name) for name in table["attack"]]
        for name in self.attack:
            if name not in known:
                raise UserError(
                    f"--attack {name}: not judged in both{near(name, known)}; there are: {', '.join(known)}"
                )
        wanted = list(self.attack) or known
        rows = [row for name in wanted for row in table[table["attack"] == name].to_dict("records")]
        height = 1.1 + 0.28 * len(rows)
        bars, marks = panels(figure, 2, (3.4, height), columns=2)
        called = titles(runs)
        _bars(bars, rows, called)
        _marks(marks, rows)
        for ax in (bars, marks):
            ax.set_yticks(range(len(rows)), [as_text(str(row["attack"])) for row in rows])
            ax.set_ylim(len(rows) - 0.4, -0.6)
        marks.tick_params(labelleft=False)
        note = as_text(table.attrs["note"])
        figure.legend(
            loc="outside lower center", ncols=3, fontsize="small", frameon=False, title=note or None
        )


def places(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Positions of the images that only the first, and only the second run has right, of a row of ``compare_runs``."""
    signed = [] if pd.isna(row["flips"]) else str(row["flips"]).split()
    lost = [int(text[1:]) for text in signed if text.startswith("-")]
    won = [int(text[1:]) for text in signed if text.startswith("+")]
    return lost, won


def _bars(ax: Axes, rows: Sequence[dict[str, Any]], called: Sequence[str]) -> None:
    """Shares in percent of the images, and the difference over them."""
    at = range(len(rows))
    for sign, key, colour, name in ((1, "lost", FIRST, called[0]), (-1, "won", SECOND, called[1])):
        widths = [sign * 100 * row[key] / row["n"] for row in rows]
        ax.barh(at, widths, height=0.7, color=colour, alpha=0.55, label=f"only {name} right")
    middle = [row["difference"] for row in rows]
    spans = [
        [row["difference"] - row["low"] for row in rows],
        [row["high"] - row["difference"] for row in rows],
    ]
    ax.errorbar(
        middle, at, xerr=spans, fmt="o", color="black", markersize=3, elinewidth=0.8, label="difference, 95 %"
    )
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_xlabel("images, percent")


def _marks(ax: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """A mark an image: above the line's middle for the first run's, below it for the second's."""
    for at, row in enumerate(rows):
        for number, (found, colour) in enumerate(zip(places(row), (FIRST, SECOND), strict=True)):
            if found:
                ax.eventplot(
                    [found],
                    lineoffsets=at - 0.18 + 0.36 * number,
                    linelengths=0.34,
                    colors=colour,
                    linewidths=0.6,
                )
    ax.set_xlabel("position of the image")

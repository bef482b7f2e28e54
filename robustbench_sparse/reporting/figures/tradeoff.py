"""What a network withstands against what it costs: one point a row of a leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from robustbench_sparse.config.columns import COUNTS, SECONDS
from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.foundation.intervals import mean_interval
from robustbench_sparse.reporting.figures.base import TableDrawing, check
from robustbench_sparse.reporting.figures.style import COLOURS, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHEAPER = (*COUNTS, *SECONDS)  # columns in which less is better
SHAPES = "os^vPX*"  # of a row; a dense twin is a diamond
TWIN = "dense_twin"  # how the label of a dense network of a pruned one's size begins, or its last part


@dataclass(frozen=True, kw_only=True)
class TradeOff(TableDrawing):
    """Two columns of the leaderboard against each other, with intervals and the Pareto front.

    A point is a run, its coordinates the means over its seeds. Its 95 % intervals are Wilson's for one seed; for
    several, the wider of that of a mean seed and Student's over the seeds. Refuted rows are hollow and on no
    front; dense twins are diamonds.

    Args:
        x: column to the right; rates and shares of zeros grow, parameters, multiplications and seconds fall towards the
            better.
        y: column upwards; the worst case by default.
    """

    published: ClassVar[str] = "none"
    x: str = "clean"
    y: tuple[str, ...] = ("worst",)

    def __post_init__(self) -> None:
        check(len(self.y) == 1, "y", "one column", self.y)
        check(self.x != self.y[0], "x", "another column than y", self.x)

    def draw(self, figure: Figure, tables: Sequence[pd.DataFrame]) -> None:
        """One panel a table, its rows numbered, with a list of them beside it."""
        for ax, table in zip(panels(figure, len(tables), (8.6, 4.4), columns=1), tables, strict=True):
            self._panel(ax, points(table, self.x, self.y[0]), str(table["benchmark"].iloc[0]))

    def _panel(self, ax: Any, found: pd.DataFrame, title: str) -> None:
        for number, row in enumerate(found.to_dict("records")):
            colour = COLOURS[number % len(COLOURS)]
            shape = "D" if row["twin"] else SHAPES[number // len(COLOURS) % len(SHAPES)]
            spans = [[[row[c] - row[f"{c}_lo"]], [row[f"{c}_hi"] - row[c]]] for c in ("x", "y")]
            ax.errorbar(
                row["x"],
                row["y"],
                xerr=spans[0],
                yerr=spans[1],
                fmt=shape,
                color=colour,
                markersize=6,
                elinewidth=0.8,
                markerfacecolor="white" if row["refuted"] else colour,
                label=f"{number + 1}  {row['run']}{' (refuted)' if row['refuted'] else ''}",
            )
            at = (row["x"], row["y"])
            ax.annotate(str(number + 1), at, (4, 4), textcoords="offset points", fontsize=7)
        front = found[found["front"]].sort_values("x")
        ax.plot(front["x"], front["y"], color="#888888", linewidth=1, zorder=0, label="Pareto front")
        ax.set_title(title)
        ax.set_xlabel(_named(self.x))
        ax.set_ylabel(_named(self.y[0]))
        columns = 1 + (len(found) > 24)
        ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), ncols=columns, frameon=False)


def points(table: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """The points of a table in the order of its rows: ``run``, ``x``, ``y`` with ``_lo`` and ``_hi``, what they are.

    ``refuted`` where any seed is, ``twin`` for a dense twin, ``front`` where no row that is not refuted is better in
    one column and at least as good in the other.

    Raises:
        UserError: a column that the table has not got, or a table without a row that has both.
    """
    for column in (x, y):
        if column not in table.columns or not pd.api.types.is_numeric_dtype(table[column]):
            numbers = [c for c in table.columns if pd.api.types.is_numeric_dtype(table[c])]
            raise UserError(
                f"plot tradeoff: {column}: no column of numbers in this table{near(column, numbers)}"
            )
    there = table[table[x].notna() & table[y].notna()]
    if there.empty:
        raise UserError(f"plot tradeoff: no row has both {x} and {y}")
    rows = []
    for run, seeds in there.groupby("run", sort=False):
        point: dict[str, Any] = {
            "run": run,
            "refuted": bool("verdict" in seeds and (seeds["verdict"] == "refuted").any()),
            "twin": str(run).rpartition("+")[2].startswith(TWIN),
        }
        for name, column in (("x", x), ("y", y)):
            point |= {
                f"{name}{end}": v for end, v in zip(("", "_lo", "_hi"), _span(seeds, column), strict=True)
            }
        rows.append(point)
    found: pd.DataFrame = pd.DataFrame(rows)
    signs = [-1 if column in CHEAPER else 1 for column in (x, y)]
    found["front"] = [_undominated(row, found, signs) for _, row in found.iterrows()]
    return found


def _span(seeds: pd.DataFrame, column: str) -> tuple[float, float, float]:
    """Mean, and the bounds of its interval; a number without one stands for itself."""
    values = seeds[column].astype(float)
    mean = float(values.mean())
    if f"{column}_lo" not in seeds.columns:
        return mean, mean, mean
    low, high = float(seeds[f"{column}_lo"].mean()), float(seeds[f"{column}_hi"].mean())
    if len(values) > 1:
        below, above = mean_interval(values.tolist())
        low, high = min(low, max(0.0, below)), max(high, min(100.0, above))
    return mean, low, high


def _undominated(row: pd.Series[Any], found: pd.DataFrame, signs: Sequence[int]) -> bool:
    if row["refuted"]:
        return False
    gain = [sign * (found[c] - row[c]) for c, sign in zip(("x", "y"), signs, strict=True)]
    better = (gain[0] >= 0) & (gain[1] >= 0) & ((gain[0] > 0) | (gain[1] > 0)) & ~found["refuted"]
    return not bool(better.any())


def _named(column: str) -> str:
    """A column as an axis says it."""
    share = column not in CHEAPER
    return f"{column.replace('_', ' ')}{', percent' if share else ''}"

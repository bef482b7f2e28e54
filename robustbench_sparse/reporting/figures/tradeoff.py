"""What a network withstands against what it costs: one point a row of a leaderboard."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from robustbench_sparse.config.columns import COUNTS, MSE, RESTORED, SECONDS
from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.foundation.intervals import mean_interval
from robustbench_sparse.reporting.figures.base import TableDrawing, check
from robustbench_sparse.reporting.figures.finding import as_text
from robustbench_sparse.reporting.figures.placing import DISTANCES, offsets
from robustbench_sparse.reporting.figures.style import COLOURS, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHEAPER = (*COUNTS, *SECONDS)  # columns in which less is better, as in squared errors
SHARES = {f"zero_{what}s": f"{what}_sparsity" for what in ("weight", "channel", "kernel", "row")}
_LISTED = 22  # rows in a column of the list beside a panel
SHAPES = "os^vPX*"  # of a row; a dense twin is a diamond
TWIN = "dense_twin"  # how the label of a dense network of a pruned one's size begins, or its last part


@dataclass(frozen=True, kw_only=True)
class TradeOff(TableDrawing):
    """Two columns of the leaderboard against each other, with intervals and the Pareto front.

    A point is a run, its coordinates the means over its seeds. Its 95 % intervals are Wilson's for one seed; for
    several, the wider of that of a mean seed and Student's over the seeds. Refuted rows are hollow and on no
    front; dense twins are diamonds.

    Numbers of the rows stand where none hides another. A dense twin is joined to its row by a dotted line.

    Args:
        x: column to the right, ``zero_weights`` (``_channels``, ``_kernels``, ``_rows``) among them; rates and shares
            of zeros grow, parameters, multiplications, seconds and squared errors fall towards the better.
        y: column upwards; the worst case by default.
        twin: dense twins and the rows that they belong to, as in ``thin=pruned``; ``dense_twin_NAME`` is ``NAME``'s
            where there is one.
    """

    published: ClassVar[str] = "none"
    x: str = "clean"
    y: tuple[str, ...] = ("worst",)
    twin: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(len(self.y) == 1, "y", "one column", self.y)
        check(self.x != self.y[0], "x", "another column than y", self.x)
        for pair in self.twin:
            check(pair.count("=") == 1 and pair.strip("=") == pair, "twin", "TWIN=ROW", pair)

    def draw(self, figure: Figure, tables: Sequence[pd.DataFrame]) -> None:
        """One panel a table, its rows numbered, with a list of them beside it."""
        lists = [math.ceil(table["run"].nunique() / _LISTED) for table in tables]
        axes = panels(figure, len(tables), (6.4 + 2.2 * max(lists), 4.4), columns=1)
        drawn = []
        for ax, table in zip(axes, tables, strict=True):
            found = points(table, self.x, self.y[0], self.twin)
            self._panel(ax, found, as_text(str(table["benchmark"].iloc[0])))
            without = [str(run) for run in dict.fromkeys(table["run"]) if run not in set(found["run"])]
            if without:
                text = textwrap.fill(as_text(f"Without a number: {', '.join(without)}"), 150)
                ax.annotate(text, (0, -0.16), xycoords="axes fraction", fontsize=6, va="top")
            drawn.append((ax, found))
        known = {run for _, found in drawn for run in found["run"]}
        for pair in self.twin:
            if missing := [name for name in pair.split("=") if name not in known]:
                raise UserError(f"--twin {pair}: no such row{near(missing[0], known)}")
        # Only once everything has its place is it known what is near what.
        figure.draw_without_rendering()
        for ax, found in drawn:
            _number(ax, found)

    def _panel(self, ax: Axes, found: pd.DataFrame, title: str) -> None:
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
                markersize=5,
                elinewidth=0.6,
                markerfacecolor="white" if row["refuted"] else colour,
                label=as_text(f"{number + 1}  {row['run']}{' (refuted)' if row['refuted'] else ''}"),
            )
        self._lines(ax, found)
        ax.margins(0.07)
        ax.set_title(title)
        ax.set_xlabel(_named(self.x))
        ax.set_ylabel(_named(self.y[0]))
        columns = math.ceil(len(found) / _LISTED)
        ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), ncols=columns, frameon=False)

    def _lines(self, ax: Axes, found: pd.DataFrame) -> None:
        """The front, and what joins twins with their rows."""
        front = found[found["front"]].sort_values("x")
        steps = "steps-post" if _cheaper(SHARES.get(self.x, self.x)) else "steps-pre"
        look: dict[str, Any] = {"color": "#888888", "linewidth": 1, "zorder": 0}
        ax.plot(front["x"], front["y"], drawstyle=steps, label="Pareto front", **look)
        pairs = [
            found[found["run"].isin([row["run"], row["of"]])] for _, row in found.iterrows() if row["of"]
        ]
        for number, pair in enumerate(pairs):
            label = "_" if number else "a dense twin and its row"
            ax.plot(pair["x"], pair["y"], ":", color="#555555", linewidth=1, zorder=0, label=label)


def _number(ax: Axes, found: pd.DataFrame) -> None:
    """The rows' numbers beside their points, those that had to go far with a line."""
    box = ax.get_window_extent()
    inch = 72 / ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    places = (ax.transData.transform(found[["x", "y"]].to_numpy(float)) - (box.x0, box.y0)) * inch
    texts = [str(number + 1) for number in range(len(found))]
    # A digit of 7 points is 4.5 wide and 5.5 high.
    sizes = [(4.5 * len(text) + 1, 6.5) for text in texts]
    for row, text, by in zip(
        found.to_dict("records"),
        texts,
        offsets(np.asarray(places), sizes, (box.width * inch, box.height * inch)),
        strict=True,
    ):
        far = float(np.hypot(*by)) > DISTANCES[1] + 1
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": "#888888", "shrinkA": 0, "shrinkB": 2}
        ax.annotate(
            text,
            (row["x"], row["y"]),
            (float(by[0]), float(by[1])),
            textcoords="offset points",
            fontsize=7,
            ha="center",
            va="center",
            arrowprops=line if far else None,
            in_layout=False,
        )


def points(table: pd.DataFrame, x: str, y: str, twins: Sequence[str] = ()) -> pd.DataFrame:
    """The points of a table in the order of its rows: ``run``, ``x``, ``y`` with ``_lo`` and ``_hi``, what they are.

    ``refuted`` where any seed is, ``twin`` for a dense twin, ``of`` the row it belongs to or "", ``front`` where no row
    that is not refuted is better in one column and at least as good in the other. A row that lacks a number in one of
    its seeds is none.

    Args:
        table: of ``leaderboard.tabulate``, or one that was written.
        x, y: its columns.
        twins: ``TWIN=ROW``.

    Raises:
        UserError: a column that the table has not got, or a table without a row that has both.
    """
    x, y = SHARES.get(x, x), SHARES.get(y, y)
    for column in (x, y):
        if column not in table.columns or not pd.api.types.is_numeric_dtype(table[column]):
            numbers = [c for c in table.columns if pd.api.types.is_numeric_dtype(table[c])]
            raise UserError(
                f"plot tradeoff: {column}: no column of numbers in this table{near(column, numbers)}"
            )
    gaps = table[[x, y]].isna().any(axis=1)
    there = table[~table["run"].isin(table.loc[gaps, "run"])]
    if there.empty:
        raise UserError(f"plot tradeoff: no row has both {x} and {y}")
    given = dict(pair.split("=") for pair in twins)
    labels = {str(run) for run in there["run"]}
    rows = []
    for run, seeds in there.groupby("run", sort=False):
        point: dict[str, Any] = {
            "run": run,
            "refuted": bool("verdict" in seeds and (seeds["verdict"] == "refuted").any()),
            "twin": run in given or str(run).rpartition("+")[2].startswith(TWIN),
            "of": _row_of(str(run), given, labels),
        }
        for name, column in (("x", x), ("y", y)):
            point |= {
                f"{name}{end}": v for end, v in zip(("", "_lo", "_hi"), _span(seeds, column), strict=True)
            }
        rows.append(point)
    found: pd.DataFrame = pd.DataFrame(rows)
    signs = [-1 if _cheaper(column) else 1 for column in (x, y)]
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


def _row_of(run: str, given: Mapping[str, str], labels: set[str]) -> str:
    """The row that a dense twin belongs to, as far as that is known."""
    named = given.get(run, run.replace(f"{TWIN}_", "") if f"{TWIN}_" in run else "")
    return named if named in labels else ""


def _cheaper(column: str) -> bool:
    return column in CHEAPER or column == "mse" or column.endswith(MSE)


def _named(column: str) -> str:
    """A column as an axis says it."""
    share = not _cheaper(column) and column not in RESTORED
    return as_text(f"{column.replace('_', ' ')}{', percent' if share else ''}")

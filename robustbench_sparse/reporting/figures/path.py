"""Sparsity or accuracy against a setting; Dinh's thesis, figures 4.3 and 4.4."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.reporting.figures.base import Drawing, check
from robustbench_sparse.reporting.figures.finding import as_text, benchmark_of
from robustbench_sparse.reporting.figures.settings import (
    differing,
    find_setting,
    number_at,
    settings_of_run,
)
from robustbench_sparse.reporting.figures.style import look, panels
from robustbench_sparse.reporting.leaderboard import tabulate
from robustbench_sparse.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PERCENT = ("_sparsity", "_accuracy")


@dataclass(frozen=True, kw_only=True)
class SettingPath(Drawing):
    """Columns of the leaderboard against one setting: a line for the runs that differ in nothing else.

    Points are means over the seeds, bars their standard deviation (ddof = 1).

    Args:
        x: key path of a setting that is a number, or the end of one: ``defenses.rgsm.lam``, ``lam``.
        y: columns of the leaderboard, a panel each, such as ``channel_sparsity``, ``clean`` or an attack's label.
        log: a logarithmic scale for the setting.
    """

    published: ClassVar[str] = "Dinh, thesis, figures 4.3 and 4.4"
    fewest: ClassVar[int] = 2
    most: ClassVar[int] = 10_000

    x: str = ""
    y: tuple[str, ...] = ("weight_sparsity",)
    log: bool = False

    def __post_init__(self) -> None:
        check(self.x != "", "x", "a setting's key path, such as lam", self.x)

    def draw(self, figure: Figure, runs: Sequence[RunFolder]) -> None:
        """A panel per column."""
        points, path = self._points(runs)
        axes = panels(figure, len(self.y), (6.0, 4.2) if len(self.y) == 1 else (4.6, 3.8), columns=3)
        for ax, column in zip(axes, self.y, strict=True):
            for number, (line, part) in enumerate(points.groupby("line", sort=False)):
                self._line(ax, part, column, number, str(line))
            ax.set(xlabel=as_text(path), ylabel=_axis_title(column))
            if self.log:
                ax.set_xscale("log")
        if points["line"].nunique() > 1:
            axes[0].legend(fontsize="small")

    def _points(self, runs: Sequence[RunFolder]) -> tuple[pd.DataFrame, str]:
        """One row per run: ``line``, ``x`` and the columns; and the setting's whole path."""
        settings = [settings_of_run(run) for run in runs]
        path = find_setting(self.x, settings, "--x")
        x = [number_at(s, path, run, "--x") for s, run in zip(settings, runs, strict=True)]
        if self.log and min(x) <= 0:
            raise UserError(f"--log: expected values > 0 of {path}, got {min(x):g}")
        rest = [{k: v for k, v in s.items() if k not in (path, "seed")} for s in settings]
        lines = [json.dumps(r, sort_keys=True) for r in rest]
        first = dict(zip(reversed(lines), reversed(rest), strict=True))
        kinds = list(dict.fromkeys(lines))
        texts = dict(zip(kinds, differing([first[k] for k in kinds]), strict=True))
        columns = values_of(runs, self.y)
        frame: pd.DataFrame = pd.DataFrame({"line": [as_text(texts[k]) for k in lines], "x": x, **columns})
        return frame, path

    def _line(self, ax: Axes, part: pd.DataFrame, column: str, number: int, label: str) -> None:
        groups = part.groupby("x")[column]
        mean, spread = groups.mean(), groups.std(ddof=1).fillna(0)
        ax.errorbar(mean.index, mean, yerr=spread, marker="o", capsize=3, label=label, **look(number))


def values_of(runs: Sequence[RunFolder], columns: Sequence[str]) -> dict[str, list[float]]:
    """Columns of the leaderboard for each run, in their order.

    Raises:
        UserError: no such column, one without numbers, or a run that has no value there.
    """
    tables: dict[Path, Any] = {}
    for run in runs:
        home = benchmark_of(run)
        if home not in tables:
            labels = {r.label for r in runs if benchmark_of(r) == home}
            tables[home] = tabulate(home, sorted(labels)).set_index("run_id")
    out: dict[str, list[float]] = {}
    for column in columns:
        out[column] = [_value(tables[benchmark_of(run)], run, column) for run in runs]
    return out


def _value(table: Any, run: RunFolder, column: str) -> float:
    if column not in table.columns or not pd.api.types.is_numeric_dtype(table[column]):
        known = [c for c in table.columns if pd.api.types.is_numeric_dtype(table[c])]
        what = "no numbers in this column" if column in table.columns else "no such column"
        raise UserError(f"--y {column}: {what}{near(column, known)}; there are: {', '.join(known)}")
    if run.run_id not in table.index:
        raise UserError(f"{run.path}: not in its benchmark's table")
    value = table.loc[run.run_id, column]
    if pd.isna(value):
        raise UserError(f"--y {column}: {run.path.name} has no value: {table.loc[run.run_id, 'status']}")
    return float(value)


def _axis_title(column: str) -> str:
    words = as_text(column.replace("_", " "))
    if column.endswith(_PERCENT):
        return f"{words} in %"
    counts = ("parameters", "macs", "seconds", "rank", "seed", "mse", "psnr", "ssim")
    if column == "n" or any(word in column for word in counts):
        return {"psnr": "PSNR in dB", "ssim": "SSIM"}.get(column, words)
    return f"{words} accuracy in %"

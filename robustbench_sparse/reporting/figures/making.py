"""From what the command is given to a file with a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustbench_sparse.config import plugins
from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.reporting.figures import FIGURES, Drawing, Figures, TableDrawing
from robustbench_sparse.reporting.figures.finding import find_runs
from robustbench_sparse.reporting.leaderboard import tabulate_all
from robustbench_sparse.reporting.plots import letters, new_figure, save

ENDINGS = ("pdf", "png", "svg")
OUT = "-o"


def make(
    kind: str,
    targets: Sequence[str | Path],
    path: Path,
    options: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    width: str | None = None,
) -> int:
    """Draw a figure of runs and write it.

    Args:
        kind: a key of ``FIGURES``.
        targets, only: the runs, see ``finding.find_runs``.
        path: the file; its ending, one of ``ENDINGS``, is the kind of file.
        options: the figure's settings.
        width: ``one`` or ``two`` columns of a printed page, see ``plots.WIDTHS``; None: as large as it needs.

    Returns:
        How many runs it shows.

    Raises:
        UserError: an unknown figure or option, another ending, or runs that have not got what the figure shows. Nothing
            is written then.
    """
    drawing = built(kind, options or {})
    figure = new_figure(path, OUT, ENDINGS, width)
    with letters(width):
        if isinstance(drawing, TableDrawing):
            tables = [table for target in targets for table in tabulate_all(Path(target), only)]
            _check_count(kind, drawing, len(tables), "table", "name fewer")
            drawing.draw(figure, tables)
            count = sum(table["run"].nunique() for table in tables)
        else:
            assert isinstance(drawing, Drawing)
            runs = find_runs(targets, only)
            _check_count(kind, drawing, len(runs), "run", "--only LABEL picks some")
            drawing.draw(figure, runs)
            count = len(runs)
        save(figure, path, OUT)
    return count


def _check_count(kind: str, drawing: Figures, count: int, what: str, cure: str) -> None:
    least, most = drawing.fewest, drawing.most
    if not least <= count <= most:
        expected = f"{least} {what}{'s' * (least > 1)}" if least == most else f"{least} to {most} {what}s"
        raise UserError(f"plot {kind}: expected {expected}, got {count}; {cure}")


def built(kind: str, options: Mapping[str, Any]) -> Figures:
    """A figure with its settings; UserError for one that there is not, or a setting that does not fit."""
    if kind not in FIGURES:
        raise UserError(f"plot {kind}: no such figure{near(kind, FIGURES)}; there are: {', '.join(FIGURES)}")
    known = plugins.settings_with_defaults(FIGURES[kind])
    for name in options:
        if name not in known:
            there = ", ".join(map(option_of, known)) or "none"
            raise UserError(
                f"plot {kind}: {option_of(name)}: not an option of this figure; there are: {there}"
            )
    base: Any = Figures  # abstract, which mypy does not take for a type[T]
    try:
        made: Figures = plugins.build(FIGURES, {"name": kind, **options}, "figure", base)
    except plugins.SettingError as e:
        option = option_of(str(e.path[0])) if e.path else ""
        raise UserError(f"plot {kind}: {option}: {e.problem}") from None
    return made


def option_of(setting: str) -> str:
    """What a setting is called on the command line."""
    return f"--{setting.replace('_', '-')}"


def lines_of() -> list[str]:
    """What the command says without a figure: every one with a line, its options, and what was published like it."""
    out = []
    for name, cls in FIGURES.items():
        options = " ".join(map(option_of, plugins.settings_with_defaults(cls)))
        out += [f"{name}: {plugins.describe(cls)}", f"    of {_runs(cls)}; as {cls.published}"]
        out += [f"    {options}"] if options else []
    return out


def _runs(cls: type[Figures]) -> str:
    what = "table" if issubclass(cls, TableDrawing) else "run"
    many = f"{cls.fewest} to {cls.most}" if cls.most < 100 else f"{cls.fewest} or more"
    return f"1 {what}" if cls.most == 1 else f"{many} {what}s"

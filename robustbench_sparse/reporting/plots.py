"""Figures as files; matplotlib is asked for when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(path: Path, **settings: Any) -> Figure:
    """An empty figure that ``save`` can write to ``path``.

    Args:
        path: its ending is the kind of file.
        settings: of matplotlib's ``Figure``.

    Raises:
        UserError: without matplotlib, or for a kind of file it cannot write.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "--plot: needs matplotlib, which comes with the extra 'plot' of robustbench_sparse"
        ) from None
    figure = Figure(layout="constrained", **settings)
    kinds = figure.canvas.get_supported_filetypes()
    if _kind(path) not in kinds:
        raise UserError(f"--plot {path}: expected a file ending in one of .{', .'.join(sorted(kinds))}")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure, all of it or nothing; UserError where that is not possible."""
    try:
        write_atomically(path, lambda file: figure.savefig(file, format=_kind(path), dpi=150))
    except OSError as e:
        raise UserError(f"--plot {path}: cannot be written: {one_line(e)}") from None


def _kind(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()

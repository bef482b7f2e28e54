"""Figures as files; matplotlib is asked for when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Without dates, and with ids that are no random numbers: the same figure is the same file.
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
_SALT = {"svg.hashsalt": "robustbench-sparse"}


def new_figure(path: Path, option: str = "--plot", kinds: Sequence[str] = (), **settings: Any) -> Figure:
    """An empty figure that ``save`` can write to ``path``.

    Args:
        path: its ending is the kind of file.
        option: of the command that names the file, for errors.
        kinds: the endings that are taken, without the dot; all that matplotlib writes if empty.
        settings: of matplotlib's ``Figure``.

    Raises:
        UserError: without matplotlib, or for a kind of file it cannot write.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            f"{option}: needs matplotlib, which comes with the extra 'plot' of robustbench_sparse"
        ) from None
    figure = Figure(layout="constrained", **settings)
    kinds = kinds or sorted(figure.canvas.get_supported_filetypes())
    if _kind(path) not in kinds:
        raise UserError(f"{option} {path}: expected a file ending in one of .{', .'.join(kinds)}")
    return figure


def save(figure: Figure, path: Path, option: str = "--plot") -> None:
    """Write a figure, all of it or nothing; UserError where that is not possible.

    The same figure gives the same bytes as SVG, PDF and PNG, by the same version of matplotlib.
    """
    from matplotlib import rc_context

    kind = _kind(path)
    try:
        with rc_context(_SALT):
            write_atomically(
                path,
                lambda file: figure.savefig(file, format=kind, dpi=150, metadata=_UNDATED.get(kind)),
            )
    except OSError as e:
        raise UserError(f"{option} {path}: cannot be written: {one_line(e)}") from None


def _kind(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()

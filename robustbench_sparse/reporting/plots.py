"""Figures as files; matplotlib is asked for when one is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Without dates, and with ids that are no random numbers: the same figure is the same file.
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
# Type 42: publishers refuse the Type 3 fonts that matplotlib embeds otherwise.
_SETTINGS = {"svg.hashsalt": "robustbench-sparse", "pdf.fonttype": 42}
# Inches: a column, and both with the gap between them, of the usual two-column styles.
WIDTHS = {"one": 3.25, "two": 6.75}
_LOWEST = 1.8  # inches
# Letters of a figure that is printed as it is: those of a caption.
_PRINTED = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "legend.fontsize": 7.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "lines.linewidth": 1.0,
}


def new_figure(
    path: Path,
    option: str = "--plot",
    kinds: Sequence[str] = (),
    width: str | None = None,
    **settings: Any,
) -> Figure:
    """An empty figure that ``save`` can write to ``path``.

    Args:
        path: its ending is the kind of file.
        option: of the command that names the file, for errors.
        kinds: the endings that are taken, without the dot; all that matplotlib writes if empty.
        width: a key of ``WIDTHS``: the figure keeps it, whatever size it is given; None leaves it free.
        settings: of matplotlib's ``Figure``.

    Raises:
        UserError: without matplotlib, for a kind of file it cannot write, or another width.
    """
    if width is not None and width not in WIDTHS:
        raise UserError(f"--width: expected {' or '.join(WIDTHS)}, got {width!r}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            f"{option}: needs matplotlib, which comes with the extra 'plot' of robustbench_sparse"
        ) from None
    kind = Figure if width is None else _of_width(Figure, WIDTHS[width])
    figure = kind(layout="constrained", **settings)
    kinds = kinds or sorted(figure.canvas.get_supported_filetypes())
    if _kind(path) not in kinds:
        raise UserError(f"{option} {path}: expected a file ending in one of .{', .'.join(kinds)}")
    return figure


@contextmanager
def letters(width: str | None) -> Iterator[None]:
    """Letters and lines of a figure that is printed in the width of a column; as they are without a width."""
    if width is None:
        yield
        return
    from matplotlib import rc_context

    with rc_context(_PRINTED):
        yield


def _of_width(kind: type[Figure], inches: float) -> type[Figure]:
    """A figure that keeps its width: of a size that it is given only the shape counts."""

    class OfWidth(kind):  # type: ignore[misc, valid-type]
        def set_size_inches(self, w: Any, h: float | None = None, forward: bool = True) -> None:
            across, down = w if h is None else (w, h)
            super().set_size_inches(inches, max(_LOWEST, down * inches / across), forward)

    return OfWidth


def save(figure: Figure, path: Path, option: str = "--plot") -> None:
    """Write a figure, all of it or nothing; UserError where that is not possible.

    The same figure gives the same bytes as SVG, PDF and PNG, by the same version of matplotlib.
    """
    from matplotlib import rc_context

    kind = _kind(path)
    try:
        with rc_context(_SETTINGS):
            write_atomically(
                path,
                lambda file: figure.savefig(file, format=kind, dpi=150, metadata=_UNDATED.get(kind)),
            )
    except OSError as e:
        raise UserError(f"{option} {path}: cannot be written: {one_line(e)}") from None


def _kind(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()

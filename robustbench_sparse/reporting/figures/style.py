"""How figures look: colours that colour-blind readers can tell apart, panels, and histograms.

The colours of lines are those of Okabe and Ito (https://jfly.uni-koeln.de/color/). What is negative is red and what is
positive blue, as in the papers; zero weights have a colour of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robustbench_sparse.reporting.figures.networks import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
ZERO = "#b8b8b8"  # of zero weights in a picture: lighter and darker ones are weights
_TICKS = 16  # at most, of an axis
_LARGEST = 40.0  # inches, of a figure's side


def look(number: int) -> dict[str, Any]:
    """Colour and dashes of the line of a run."""
    style = STYLES[number // len(COLOURS) % len(STYLES)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": style}


def panels(figure: Figure, count: int, size: tuple[float, float], columns: int = 4) -> list[Axes]:
    """So many axes of a size in inches, in rows of at most ``columns``; the figure is made to fit."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    engine: Any = figure.get_layout_engine()
    if engine is not None:
        engine.set(w_pad=0.08, h_pad=0.06)
    figure.set_size_inches(min(_LARGEST, columns * size[0]), min(_LARGEST, rows * size[1]))
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for unused in axes[count:]:
        figure.delaxes(unused)
    return axes[:count]


def layer_ticks(ax: Axes, place: Array) -> None:
    """Numbers of layers along an axis: all of them where there are few."""
    step = 1 + (len(place) - 1) // _TICKS
    ax.set_xticks(place[::step], [str(i) for i in place[::step]])


def outline(ax: Axes, values: Array, edges: Array, number: int, label: str, *, filled: bool) -> None:
    """A histogram: its outline, and its area where nothing else has to be seen through it."""
    if filled:
        ax.stairs(values, edges, fill=True, color=look(number)["color"], alpha=0.25)
    ax.stairs(values, edges, label=label, linewidth=1.4, **look(number))


def show_signed(ax: Axes, values: Array, reach: float, **settings: Any) -> Any:
    """Draw a matrix: red, white, blue for negative, small, positive; zeros in a colour of their own, nan left white.

    Args:
        ax: where; the picture with the values is the first of its images.
        values: (rows, columns), nan where there is nothing.
        reach: the largest magnitude of the scale.
        settings: of matplotlib's ``imshow``.

    Returns:
        The picture, for a colour bar.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    nothing = np.isnan(values)
    kept = np.ma.masked_where(nothing | (values == 0), values)
    colours = colormaps["RdBu"].with_extremes(bad=ZERO)
    settings = {"interpolation": "nearest", **settings}
    picture = ax.imshow(kept, cmap=colours, vmin=-reach, vmax=reach, **settings)
    if nothing.any():
        ax.imshow(
            np.ma.masked_where(~nothing, np.zeros(values.shape)),
            cmap=ListedColormap(["white"]).with_extremes(bad="none"),
            **settings,
        )
    return picture


def mark_zeros(figure: Figure, text: str, colour: str = ZERO) -> None:
    """A legend below the figure that says what the colour of zeros means."""
    from matplotlib.patches import Patch

    patch = Patch(facecolor=colour, edgecolor="black", linewidth=0.5)
    figure.legend([patch], [text], loc="outside lower center", fontsize="small")


def largest(arrays: Sequence[Array]) -> float:
    """The largest magnitude in arrays, nan left out; 1 where all is zero, so that a scale can be made of it."""
    sizes = [float(np.nanmax(np.abs(a))) for a in arrays if a.size and not np.isnan(a).all()]
    return max(sizes, default=0.0) or 1.0

"""Small drawings that stand in a page as they are, in its own colours and without a script: bars, lines; and PNGs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from markupsafe import Markup

Array = npt.NDArray[Any]
WIDTH, HEIGHT, PAD = 260, 96, 4  # of a histogram
_LOW, _HIGH, _GAP = (213, 94, 0), (0, 114, 178), (190, 190, 190)  # below zero, above, and what is no weight


def bars(counts: Sequence[int], first: float, last: float, what: str) -> Markup:
    """A histogram: bars of equal width from ``first`` to ``last``, whose ends are written; ``what`` is said of it."""
    from markupsafe import Markup, escape

    highest = max(*counts, 1)
    step = (WIDTH - 2 * PAD) / len(counts)
    parts = [
        f'<rect x="{PAD + i * step:.1f}" y="{HEIGHT - 16 - count / highest * (HEIGHT - 20):.1f}" '
        f'width="{step * 0.9:.1f}" height="{count / highest * (HEIGHT - 20):.1f}"/>'
        for i, count in enumerate(counts)
        if count
    ]
    ends = _ends(f"{first:.3g}", f"{last:.3g}")
    return Markup(_SVG).format(escape(what), Markup("".join(parts)), Markup(ends))


def lines(series: Sequence[tuple[str, Sequence[float]]], what: str) -> Markup:
    """Courses in percent over equal steps, a line each, told apart by colour, dashes and a title on touch."""
    from markupsafe import Markup, escape

    longest = max((len(values) for _, values in series), default=1)
    parts = []
    for number, (name, values) in enumerate(series):
        points = " ".join(
            f"{PAD + i / max(longest - 1, 1) * (WIDTH - 2 * PAD):.1f},{HEIGHT - 16 - v / 100 * (HEIGHT - 20):.1f}"
            for i, v in enumerate(values)
            if v == v
        )
        parts.append(
            Markup('<polyline class="l{}" points="{}"><title>{}</title></polyline>').format(
                number % 8, points, name
            )
        )
    ends = _ends("1", str(longest)) + f'<text x="{PAD}" y="10">100</text>'
    return Markup(_SVG).format(escape(what), Markup("").join(parts), Markup(ends))


_SVG = (
    f'<svg class="drawing" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
    f'aria-label="{{}}"><line x1="{PAD}" x2="{WIDTH - PAD}" y1="{HEIGHT - 15.5}" y2="{HEIGHT - 15.5}"/>{{}}{{}}</svg>'
)


def _ends(left: str, right: str) -> str:
    return (
        f'<text x="{PAD}" y="{HEIGHT - 4}">{left}</text>'
        f'<text x="{WIDTH - PAD}" y="{HEIGHT - 4}" text-anchor="end">{right}</text>'
    )


def histogram(values: Array, bins: int = 40) -> tuple[list[int], float, float]:
    """Counts of finite values in equal bins, and the ends of their range."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return [0], 0.0, 0.0
    counts, edges = np.histogram(finite, bins=bins)
    return [int(c) for c in counts], float(edges[0]), float(edges[-1])


def signed_png(picture: Array) -> bytes:
    """Weights (height, width) as a PNG: orange below zero, blue above, white at zero, grey where none is (nan)."""
    reach = float(np.nanmax(np.abs(picture))) if np.isfinite(picture).any() else 0.0
    share = np.nan_to_num(picture / (reach or 1.0))[..., None]
    colour = np.where(share >= 0, np.array(_HIGH), np.array(_LOW))
    rgb = 255 + np.abs(share) * (colour - 255)
    rgb[np.isnan(picture)] = _GAP
    return png(rgb.round().astype(np.uint8))


def trio(clean: Array, adversarial: Array) -> bytes:
    """Clean image, adversarial one, and their difference stretched to the whole range, side by side as a PNG.

    Args:
        clean, adversarial: (C, H, W) in [0, 1].
    """
    gap = adversarial - clean
    reach = float(np.abs(gap).max()) or 1.0
    parts = [_pixels(part) for part in (clean, adversarial, 0.5 + gap / (2 * reach))]
    between = np.full((parts[0].shape[0], 1, 3), 127, dtype=np.uint8)
    return png(np.concatenate([parts[0], between, parts[1], between, parts[2]], axis=1))


def single(image: Array) -> bytes:
    """An image (C, H, W) in [0, 1] as a PNG."""
    return png(_pixels(image))


def _pixels(image: Array) -> npt.NDArray[np.uint8]:
    grey = image if image.shape[0] == 3 else np.repeat(image[:1], 3, axis=0)
    out: npt.NDArray[np.uint8] = (255 * np.clip(grey, 0, 1)).round().astype(np.uint8).transpose(1, 2, 0)
    return out


def png(rgb: npt.NDArray[np.uint8]) -> bytes:
    """Pixels (height, width, 3) as a PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(rgb).save(out, format="PNG", optimize=True)
    return out.getvalue()

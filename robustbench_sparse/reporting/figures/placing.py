"""Where the labels of points go, so that none lies on another or on a point."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from robustbench_sparse.reporting.figures.networks import Array

DISTANCES = (8.0, 12.0, 17.0, 23.0, 30.0, 38.0, 48.0)  # points (1/72 inch) from a point to its label's middle
DIRECTIONS = 16
_ON_LABEL, _ON_POINT, _OUTSIDE, _FAR = 100.0, 20.0, 50.0, 0.2


def offsets(places: Array, sizes: Sequence[tuple[float, float]], room: tuple[float, float]) -> Array:
    """From each point to the middle of its label: the nearest place that is free, or the least bad one.

    One label after the other, in the order given; equal points give equal places.

    Args:
        places: (n, 2), of the points, from the lower left corner of the panel, in 1/72 inch.
        sizes: width and height of each label.
        room: width and height of the panel.

    Returns:
        (n, 2) in 1/72 inch.
    """
    angles = [math.pi / 4 + 2 * math.pi * k / DIRECTIONS for k in range(DIRECTIONS)]
    tries = np.array([(r * math.cos(a), r * math.sin(a)) for r in DISTANCES for a in angles])
    far = np.repeat(DISTANCES, DIRECTIONS) - DISTANCES[0]
    found: Array = np.zeros((len(places), 2))
    middles: list[Array] = []
    for number, (place, size) in enumerate(zip(places, sizes, strict=True)):
        half = np.array(size) / 2
        at = place + tries
        bad = _FAR * far
        for other, middle in enumerate(middles):
            reach = half + np.array(sizes[other]) / 2
            bad = bad + _ON_LABEL * (np.abs(at - middle) < reach).all(axis=1)
        for point in places:
            bad = bad + _ON_POINT * (np.abs(at - point) < half + 3.0).all(axis=1)
        bad = bad + _OUTSIDE * ((at - half < 0) | (at + half > np.array(room))).any(axis=1)
        best = int(np.argmin(bad))
        found[number] = tries[best]
        middles.append(at[best])
    return found

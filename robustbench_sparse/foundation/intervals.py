"""Intervals for shares, so that no rate stands without what its number of images allows to be said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22: all shares
    p with |successes/n - p| <= z sqrt(p (1 - p) / n).

    Args:
        successes: how many of the n succeeded, in [0, n]; fractional when an image counts as the share of a
            random network's passes that were right. The interval then errs on the wide side.
        n: number of images, >= 0.
        level: confidence in (0, 1).

    Returns:
        The bounds as shares in [0, 1]; two nan when n is 0.

    Raises:
        ValueError: for an argument outside its range.
    """
    if n < 0:
        raise ValueError(f"n: expected a number >= 0, got {n!r}")
    if not 0 <= successes <= n:
        raise ValueError(f"successes: expected a number in [0, {n}], got {successes!r}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number in (0, 1), got {level!r}")
    if n == 0:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    # At the ends the bound is 0 or 1 in exact arithmetic; rounding must not put it beside.
    low = 0.0 if successes == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + half) / scale)
    return low, high


def difference(
    successes_1: float, n_1: int, successes_2: float, n_2: int, level: float = 0.95
) -> tuple[float, float]:
    """Newcombe's hybrid score interval for the difference of two shares, first minus second.

    Newcombe (1998), "Interval estimation for the difference between independent proportions", Statistics in
    Medicine 17, method 10: with Wilson intervals (l_i, u_i) of the shares p_i and d = p_1 - p_2, from
    d - sqrt((p_1 - l_1)^2 + (u_2 - p_2)^2) to d + sqrt((u_1 - p_1)^2 + (p_2 - l_2)^2).

    Two measurements on the same images are not independent but positively correlated, which makes this
    interval wider than it has to be, never narrower.

    Returns:
        The bounds, in [-1, 1]; two nan when either n is 0.

    Raises:
        ValueError: as for ``wilson``.
    """
    low_1, high_1 = wilson(successes_1, n_1, level)
    low_2, high_2 = wilson(successes_2, n_2, level)
    if n_1 == 0 or n_2 == 0:
        return math.nan, math.nan
    p_1, p_2 = successes_1 / n_1, successes_2 / n_2
    return (
        p_1 - p_2 - math.hypot(p_1 - low_1, high_2 - p_2),
        p_1 - p_2 + math.hypot(high_1 - p_1, p_2 - low_2),
    )


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's t interval for the mean that independent values have.

    Args:
        values: one per image.
        level: confidence in (0, 1).

    Returns:
        The bounds; two nan for fewer than two values, or values that are not all finite.
    """
    from scipy.special import stdtrit  # Student's t; slow to import

    given = np.asarray(values, dtype=np.float64)
    if len(given) < 2 or not np.isfinite(given).all():
        return math.nan, math.nan
    half = stdtrit(len(given) - 1, (1 + level) / 2) * given.std(ddof=1) / math.sqrt(len(given))
    return float(given.mean() - half), float(given.mean() + half)

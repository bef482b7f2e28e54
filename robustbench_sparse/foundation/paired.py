"""Two networks judged on the same images: the difference, its interval, McNemar's test, and which images flip.

Most images are easy or hard for both, so a comparison image by image sees differences that the intervals of two
separate rates hide, and does not take for one what is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Gap = np.ndarray[tuple[int], np.dtype[np.float64]]  # first minus second, per image
Table = np.ndarray[tuple[int, int], np.dtype[np.float64]]
RESAMPLES = 10_000
_SEED = 20_003  # of the bootstrap and the permutations: the same verdicts give the same figures
_BLOCK = 1024  # images that are compared at once; of a few hundred rows they fit a cache


@dataclass(frozen=True, kw_only=True)
class Paired:
    """What the verdicts on the same images say.

    Attributes:
        n: number of images.
        difference: mean of first minus second, in [-1, 1].
        low, high: its 95 % interval (Bonett & Price 2012).
        bootstrap: its 95 % percentile bootstrap interval over the images.
        p: two-sided probability of such a difference between equally good networks: McNemar's exact test, or,
            for verdicts that are shares of a random network's draws, a permutation of each image's two verdicts.
        lost: images the first has right and the second wrong (by majority), as positions.
        won: the other way round.
    """

    n: int
    difference: float
    low: float
    high: float
    bootstrap: tuple[float, float]
    p: float
    lost: tuple[int, ...]
    won: tuple[int, ...]


def interval(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Interval for the mean of first minus second on the same images.

    Bonett & Price (2012), "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data", Journal of Educational and Behavioral Statistics 37, 479-488: with b images right only in the
    first and c only in the second, p_b = (b + 1) / (n + 2), p_c = (c + 1) / (n + 2), the interval is
    p_b - p_c +- z sqrt((p_b + p_c - (p_b - p_c)^2) / (n + 2)). Shares count as such, which errs on the wide side.

    Args:
        first, second: verdicts of the same images, each in [0, 1].
        level: confidence in (0, 1).

    Returns:
        The bounds in [-1, 1]; two nan without images.

    Raises:
        ValueError: for different lengths or verdicts outside [0, 1].
    """
    return _interval(_gap(first, second), level)


def _interval(gap: Gap, level: float = 0.95) -> tuple[float, float]:
    n = len(gap)
    if n == 0:
        return math.nan, math.nan
    z = _z(level)
    b = (float(gap.clip(0, None).sum()) + 1) / (n + 2)
    c = (float((-gap).clip(0, None).sum()) + 1) / (n + 2)
    half = z * math.sqrt((b + c - (b - c) ** 2) / (n + 2))
    return max(-1.0, b - c - half), min(1.0, b - c + half)


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def compare(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Everything about two networks' verdicts on the same images.

    Args:
        first, second: share of draws classified right, per image, in [0, 1]; 0 or 1 for deterministic networks.

    Raises:
        ValueError: for no images, different lengths or verdicts outside [0, 1].
    """
    gap = _gap(first, second)
    if len(gap) == 0:
        raise ValueError("first: expected at least one image, got none")
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    low, high = _interval(gap)
    right_a, right_b = a > 0.5, b > 0.5
    lost, won = np.flatnonzero(right_a & ~right_b), np.flatnonzero(right_b & ~right_a)
    sharp = bool(np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all())
    return Paired(
        n=len(gap),
        difference=float(gap.mean()),
        low=low,
        high=high,
        bootstrap=_bootstrap(gap),
        p=mcnemar(len(lost), len(won)) if sharp else _permutation(gap),
        lost=tuple(lost.tolist()),
        won=tuple(won.tolist()),
    )


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p of McNemar's test: of b + c images that differ, as far from half as these, Bin(b + c, 1/2).

    McNemar (1947), Psychometrika 12, 153-157; 1 where no image differs.
    """
    if b < 0 or c < 0:
        raise ValueError(f"b, c: expected numbers of images >= 0, got {b!r}, {c!r}")
    if b + c == 0:
        return 1.0
    from scipy.stats import binomtest  # slow to import, and rarely asked for

    return float(binomtest(b, b + c, 0.5).pvalue)


def stacked(rows: Sequence[Sequence[float] | np.ndarray[Any, Any]]) -> Table:
    """All rows' verdicts, checked, as an array (rows, images)."""
    arrays = [np.asarray(row, dtype=np.float64) for row in rows]
    shape = arrays[0].shape if arrays else (0,)
    if any(a.shape != shape or a.ndim != 1 for a in arrays):
        raise ValueError(
            f"rows: expected verdicts of the same images, got {sorted({a.shape for a in arrays})}"
        )
    verdicts: Table = np.array(arrays, dtype=np.float64).reshape(len(arrays), *shape)
    if not ((verdicts >= 0) & (verdicts <= 1)).all():
        raise ValueError("rows: expected verdicts in [0, 1]")
    return verdicts


def gains_of(verdicts: Table) -> Table:
    """Entry (i, j): what row i has more than row j, summed over the images where it has more.

    Exact for verdicts of 0 and 1. Takes the images in blocks: memory for the square of the rows, and no more than a
    few blocks.
    """
    count, images = verdicts.shape
    gains = np.zeros((count, count))
    for start in range(0, images, _BLOCK):
        part = np.ascontiguousarray(verdicts[:, start : start + _BLOCK])
        if ((part == 0) | (part == 1)).all():
            gains += part @ (1 - part).T
            continue
        sums = part.sum(axis=1)
        for i, row in enumerate(part):
            larger = np.maximum(row, part[i:]).sum(axis=1)  # max(a, b) - b is what a has more
            gains[i, i:] += larger - sums[i:]
            gains[i + 1 :, i] += larger[1:] - sums[i]
    return gains


def _gap(first: Sequence[float], second: Sequence[float]) -> Gap:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"second: expected verdicts of the same {a.shape} images, got {b.shape}")
    for name, values in (("first", a), ("second", b)):
        if len(values) and not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name}: expected verdicts in [0, 1]")
    gap: Gap = a - b
    return gap


def _bootstrap(gap: Gap) -> tuple[float, float]:
    """Percentile interval of the mean over images drawn with replacement.

    The means depend on how often each value is drawn, so the few different values are drawn, not the images.
    """
    values, counts = np.unique(gap, return_counts=True)
    drawn = np.random.RandomState(_SEED).multinomial(len(gap), counts / len(gap), RESAMPLES)
    low, high = np.percentile(drawn @ values / len(gap), (2.5, 97.5))
    return float(low), float(high)


def _permutation(gap: Gap) -> float:
    """Two-sided p: the sign of each image's difference is a coin's toss between equally good networks."""
    sizes, counts = np.unique(np.abs(gap[gap != 0]), return_counts=True)
    if len(sizes) == 0:
        return 1.0
    heads = np.random.RandomState(_SEED).binomial(counts, 0.5, (RESAMPLES, len(sizes)))
    sums = np.abs((2 * heads - counts) @ sizes)
    extreme = int((sums >= abs(gap.sum()) - 1e-9).sum())
    return (extreme + 1) / (RESAMPLES + 1)

"""Ranks of many rows judged on the same images: which of all pairs differ, which ranks are possible, what can be seen.

Among many pairs some differ by chance. Holm's procedure (Holm 1979, "A simple sequentially rejective multiple test
procedure", Scandinavian Journal of Statistics 6, 65-70) keeps the probability that any pair is told apart wrongly below
the level, over all pairs together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from robustbench_sparse.foundation.paired import Table, gains_of, stacked

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]
Places = np.ndarray[tuple[int], np.dtype[np.int64]]
LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Ranking:
    """Ranks with what is not known of them.

    Attributes:
        low: of each row the smallest rank that it may have: 1 + the rows that are better by more than chance.
        high: the largest: the number of rows less those that are worse by more than chance.
        detectable: median over the rows that are neighbours by their means of the smallest difference of the two that
            would be told apart with ``POWER``, in [0, 1]; nan for a single row, or where no difference would.
    """

    low: tuple[int, ...]
    high: tuple[int, ...]
    detectable: float


def ranking(
    rows: Sequence[Sequence[float] | np.ndarray[Any, Any]],
    images: Sequence[Sequence[int] | None] | None = None,
    level: float = LEVEL,
) -> Ranking:
    """Rank rows by the mean of their verdicts.

    Of each pair, p is the larger of two: that of the paired interval (the smallest level such that ``paired.interval``,
    at 1 - level, does not reach 0), and McNemar's exact one, since far out in the tails, where Holm's procedure looks
    among many pairs, the interval's normal distribution promises too much. Pairs are told apart by Holm's procedure
    over all p. Each row's interval of ranks counts the rows from which it was told apart (Al Mohamad, Goeman, van Zwet
    2022, "Simultaneous confidence intervals for ranks with application to ranking institutions", Biometrics 78,
    238-247).

    Args:
        rows: the verdicts of each row on the same images, each in [0, 1].
        images: of each row the places of the images that its number stands on, ascending; None means all. Two rows are
            compared on the images that both stand on.
        level: of all pairs together, in (0, 1).

    Raises:
        ValueError: for different lengths, verdicts outside [0, 1] or a level outside its range.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number in (0, 1), got {level!r}")
    verdicts, count = stacked(rows), len(rows)
    on = [None if i is None else np.asarray(i, dtype=np.int64) for i in images or [None] * count]
    gains, shared = _gains(verdicts, on)
    upper = np.triu_indices(count, 1)
    apart = np.zeros((count, count), dtype=bool)
    apart[upper] = holm(p_of_pairs(gains[upper], gains.T[upper], shared[upper])) < level
    better = (apart | apart.T) & (gains > gains.T)
    means = [
        float(v.mean() if i is None else v[i].mean()) if v.size else 0.0
        for v, i in zip(verdicts, on, strict=True)
    ]
    order = np.argsort(np.nan_to_num(means), kind="stable")
    pairs = count * (count - 1) // 2
    seen = [
        detectable((gains[i, j] + gains[j, i] + 2) / (shared[i, j] + 2), int(shared[i, j]) + 2, level / pairs)
        for i, j in itertools.pairwise(order)
    ]
    return Ranking(
        low=tuple(1 + int(k) for k in better.sum(axis=0)),
        high=tuple(count - int(k) for k in better.sum(axis=1)),
        detectable=float(np.median(seen)) if seen else math.nan,
    )


def p_of_pairs(b: Vector, c: Vector, images: Vector) -> Vector:
    """Two-sided p of pairs that are told apart by their paired interval and by McNemar's exact test; see ``ranking``.

    Args:
        b, c: sums of what the first and what the second of a pair has more, over the images where it has more. For
            shares of draws the binomial distribution is continued to numbers that are not whole; as small differences
            vary less than whole ones, that errs on the wide side.
        images: n of each pair; p is 1 where it is 0.
    """
    from scipy.special import betainc, erfc  # slow to import

    first, second = (b + 1) / (images + 2), (c + 1) / (images + 2)
    gap = first - second
    wald = erfc(np.abs(gap) * np.sqrt((images + 2) / (first + second - gap**2) / 2))
    large, small = np.maximum(b, c), np.minimum(b, c)
    exact = np.minimum(1.0, 2 * betainc(np.maximum(large, 1e-300), small + 1, 0.5))
    p: Vector = np.where((images > 0) & (large > 0), np.maximum(wald, exact), 1.0)
    return p


def holm(p: Sequence[float] | Vector) -> Vector:
    """Holm's adjusted p of m tests: the k-th smallest is the largest of (m - j + 1) p_(j) over j <= k, at most 1.

    A test is rejected at a level, over all tests together, where its adjusted p lies below it.

    Raises:
        ValueError: for a p outside [0, 1].
    """
    given = np.asarray(p, dtype=np.float64)
    if not ((given >= 0) & (given <= 1)).all():
        raise ValueError("p: expected numbers in [0, 1]")
    order = np.argsort(given, kind="stable")
    scaled = given[order] * np.arange(len(given), 0, -1)
    out = np.empty_like(given)
    out[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return out


def detectable(discordant: float, images: int, level: float = LEVEL, power: float = POWER) -> float:
    """Smallest difference of two rates, on the same images, that is told from 0 with a power.

    Connor 1987, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43,
    207-211: n = (z_a sqrt(psi) + z_b sqrt(psi - delta^2))^2 / delta^2, with psi the share of images on which the two
    differ, z_a the normal quantile of 1 - level / 2 and z_b that of the power. Solved for delta,

        delta = u sqrt(psi),  u = (z_a sqrt(n) + z_b sqrt(n + z_b^2 - z_a^2)) / (n + z_b^2).

    A difference is no larger than psi; where the formula says so, psi grows with it, and delta = u^2.

    Args:
        discordant: psi, in [0, 1].
        images: n >= 1.
        level: two-sided, in (0, 1); of each comparison by itself.
        power: in (0, 1).

    Returns:
        delta in (0, 1]; nan where no difference would be told apart with so few images.

    Raises:
        ValueError: for an argument outside its range.
    """
    if not (0 <= discordant <= 1 and images >= 1 and 0 < level < 1 and 0 < power < 1):
        raise ValueError(
            "detectable: expected discordant in [0, 1], images >= 1, level and power in (0, 1), got "
            f"{discordant!r}, {images!r}, {level!r}, {power!r}"
        )
    a, b = -NormalDist().inv_cdf(level / 2), NormalDist().inv_cdf(power)
    under = images + b * b - a * a
    if under < 0:
        return math.nan
    u = (a * math.sqrt(images) + b * math.sqrt(under)) / (images + b * b)
    delta = u * max(u, math.sqrt(discordant))
    return delta if 0 < delta <= 1 else math.nan


def _gains(verdicts: Table, on: Sequence[Places | None]) -> tuple[Table, Table]:
    """What row i has more than row j, summed over the images on which both stand, and how many these are.

    Rows that stand on the same images are compared at once: there are few such sets.
    """
    count, size = verdicts.shape
    everything: Places = np.arange(size)
    kinds = {(b"" if i is None else i.tobytes()): (everything if i is None else i) for i in on}
    kind = np.array([list(kinds).index(b"" if i is None else i.tobytes()) for i in on], dtype=np.int64)
    sets = list(kinds.values())
    gains, shared = np.zeros((count, count)), np.zeros((count, count))
    common: dict[bytes, tuple[Places, list[tuple[int, int]]]] = {}
    for first in range(len(sets)):
        for second in range(first, len(sets)):
            both = np.intersect1d(sets[first], sets[second])
            common.setdefault(both.tobytes(), (both, []))[1].append((first, second))
    for both, pairs in common.values():
        rows = np.flatnonzero(np.isin(kind, [k for pair in pairs for k in pair]))
        part = gains_of(verdicts[np.ix_(rows, both)] if len(both) < size else verdicts[rows])
        for first, second in pairs:
            for i, j in {(first, second), (second, first)}:
                here = np.ix_(kind[rows] == i, kind[rows] == j)
                there = np.ix_(kind == i, kind == j)
                gains[there], shared[there] = part[here], len(both)
    return gains, shared

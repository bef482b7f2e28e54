"""Has a number fallen? On the same images, one-sided: image by image, or against the spread of retrainings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

Outcome = Literal["fell", "improved", "held"]
LEVEL = 0.05  # of a false alarm, one-sided
FEWEST_SEEDS = 3  # reference networks from which a spread is taken


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the verdicts on the same images say.

    Attributes:
        n: number of images that both numbers stand on.
        measured, reference: percent right on them.
        smallest: the smallest drop, in points, for which this comparison would have said that the number fell; nan
            where there is none on so few images.
        p: one-sided probability of such a fall between equally good networks; nan over seeds.
        p_better: the same for the other direction.
        how: what was found, in words.
        outcome: as this comparison by itself has it.
    """

    n: int
    measured: float
    reference: float
    smallest: float
    p: float
    p_better: float
    how: str
    outcome: Outcome


def paired(reference: str, measured: str, level: float = LEVEL) -> Decision:
    """McNemar's exact test, one-sided: of the images that only one has right, are too many lost?

    McNemar (1947), Psychometrika 12, 153-157. With b images lost and c won, p = P(Bin(b + c, 1/2) >= b). The smallest
    drop that is seen beside c won images is (b - c) / n for the smallest b with p < level.

    Args:
        reference, measured: a verdict per image, ``1`` right, ``0`` wrong, ``-`` none; of the same images.
        level: in (0, 1/2).

    Raises:
        ValueError: for verdicts of different lengths, or no image with both.
    """
    if len(reference) != len(measured):
        raise ValueError(f"measured: expected {len(reference)} verdicts, got {len(measured)}")
    pairs = [(a, b) for a, b in zip(reference, measured, strict=True) if "-" not in (a, b)]
    if not pairs:
        raise ValueError("measured: expected an image with a verdict in both, got none")
    lost, won = pairs.count(("1", "0")), pairs.count(("0", "1"))
    p, better = tail(lost, won), tail(won, lost)
    smallest = smallest_drop(won, len(pairs), level)
    return Decision(
        n=len(pairs),
        measured=100 * sum(b == "1" for _, b in pairs) / len(pairs),
        reference=100 * sum(a == "1" for a, _ in pairs) / len(pairs),
        smallest=smallest,
        p=p,
        p_better=better,
        how=f"{lost} lost, {won} won, McNemar's one-sided p = {p:.2g}",
        outcome="fell" if p < level else "improved" if better < level else "held",
    )


def tail(b: int, c: int) -> float:
    """P(Bin(b + c, 1/2) >= b); 1 where nothing differs."""
    if b + c == 0:
        return 1.0
    from scipy.stats import binomtest  # slow to import

    return float(binomtest(b, b + c, 0.5, alternative="greater").pvalue)


def smallest_drop(won: int, n: int, level: float = LEVEL) -> float:
    """The smallest drop in points that the test sees on n images where ``won`` of them were won; nan if none."""
    from scipy.stats import binom

    b = np.arange(won + 1, n - won + 1)
    seen = b[binom.sf(b - 1, b + won, 0.5) < level]
    return 100 * int(seen[0] - won) / n if len(seen) else math.nan


def over_seeds(reference: Sequence[str], measured: Sequence[str], level: float = LEVEL) -> Decision:
    """Whether networks trained with other seeds are worse than the spread of the reference's and the images allow for.

    With k reference networks, m measured ones and the rates' difference d on n images: the number fell where
    d < -sqrt(a^2 + s^2). a is the normal quantile times the standard error, over the images, of the difference of the
    two mean verdicts (image by image, so that hard images do not count as noise); s is Student's quantile with k - 1
    degrees of freedom times the deviation of the reference's rates times sqrt(1/k + 1/m): the prediction interval for
    the mean of m further trainings. A comparison image by image would take every retraining for another network,
    which it is.

    Args:
        reference: verdicts of at least ``FEWEST_SEEDS`` networks, as of ``paired``.
        measured: of at least one.
        level: one-sided, in (0, 1/2).

    Raises:
        ValueError: for fewer networks, different lengths, or no image that all have a verdict on.
    """
    if len(reference) < FEWEST_SEEDS or not measured:
        raise ValueError(
            f"reference: expected at least {FEWEST_SEEDS} networks, and one that is measured; got {len(reference)} and "
            f"{len(measured)}"
        )
    if len({len(v) for v in (*reference, *measured)}) != 1:
        raise ValueError("measured: expected verdicts of the same images")
    known = [i for i in range(len(reference[0])) if all(v[i] != "-" for v in (*reference, *measured))]
    if not known:
        raise ValueError("measured: expected an image with a verdict of all, got none")
    old, new = (
        np.array([[v[i] == "1" for i in known] for v in of], dtype=float) for of in (reference, measured)
    )
    gap = new.mean(axis=0) - old.mean(axis=0)
    d, n, k, m = float(gap.mean()), len(known), len(old), len(new)
    spread = float(old.mean(axis=1).std(ddof=1))
    images = float(gap.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    from scipy.stats import t as student  # slow to import

    half = math.hypot(
        NormalDist().inv_cdf(1 - level) * images,
        float(student.ppf(1 - level, k - 1)) * spread * math.sqrt(1 / k + 1 / m),
    )
    return Decision(
        n=n,
        measured=100 * float(new.mean()),
        reference=100 * float(old.mean()),
        smallest=100 * half,
        p=math.nan,
        p_better=math.nan,
        how=f"{100 * d:+.1f} points, {100 * half:.1f} allowed: {k} reference networks vary by {100 * spread:.1f}",
        outcome="fell" if d < -half else "improved" if d > half else "held",
    )

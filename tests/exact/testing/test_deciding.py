"""Whether a number fell: closed forms of the paired test, and of the interval over seeds."""

from __future__ import annotations

import math
from math import comb

import numpy as np
import pytest
from scipy.stats import t as student

from robustbench_sparse.testing.deciding import over_seeds, paired, smallest_drop, tail


def bits(*parts: tuple[str, int]) -> str:
    return "".join(bit * count for bit, count in parts)


def test_the_tail_is_that_of_fair_coins() -> None:
    for b, c in ((5, 0), (9, 2), (1, 4), (3, 3)):
        n = b + c
        assert tail(b, c) == pytest.approx(sum(comb(n, k) for k in range(b, n + 1)) / 2**n, rel=1e-12)
    assert tail(0, 0) == 1.0


def test_five_lost_of_a_hundred_are_a_fall_and_four_are_not() -> None:
    """1/2^5 < 0.05 < 1/2^4, whatever the images that both have right."""
    reference = bits(("1", 80), ("0", 20))
    four, five = (bits(("1", 80 - k), ("0", 20 + k)) for k in (4, 5))
    assert (paired(reference, four).outcome, paired(reference, five).outcome) == ("held", "fell")
    found = paired(reference, five)
    assert (found.n, found.reference, found.measured, found.p) == (100, 80.0, 75.0, 1 / 32)
    assert found.smallest == 5.0
    assert paired(five, reference).outcome == "improved"
    assert paired(reference, reference).outcome == "held"
    assert paired(reference, five, level=0.01).outcome == "held"


def test_pairs_are_images_not_rates() -> None:
    """Equal rates on other images: nothing fell; five of ten lost: neither."""
    first, second = bits(("1", 10), ("0", 10)), bits(("0", 10), ("1", 10))
    assert paired(first, second).outcome == "held"
    assert paired(first, second).how.startswith("10 lost, 10 won")


def test_images_without_a_verdict_are_left_out() -> None:
    found = paired("11110-", "0-1101")
    assert (found.n, found.how[:15]) == (4, "1 lost, 0 won, ")
    with pytest.raises(ValueError, match="expected an image with a verdict in both"):
        paired("1-", "-1")
    with pytest.raises(ValueError, match="expected 2 verdicts, got 1"):
        paired("11", "1")


def test_the_smallest_drop_is_the_first_that_falls() -> None:
    for won in (0, 3, 11):
        n = 200
        lost = next(b for b in range(won, n) if tail(b, won) < 0.05)
        assert smallest_drop(won, n) == pytest.approx(100 * (lost - won) / n)
    assert math.isnan(smallest_drop(0, 4)), "four images can never show it"


def test_over_seeds_is_the_prediction_interval() -> None:
    """Networks right on all of nested sets of images: per image and over the seeds everything can be worked out."""
    n, rates = 200, [100, 110, 120, 130]
    reference = [bits(("1", r), ("0", n - r)) for r in rates]
    measured = bits(("1", 80), ("0", n - 80))
    spread = float(np.std([r / n for r in rates], ddof=1))
    old = np.array([[b == "1" for b in row] for row in reference], dtype=float).mean(axis=0)
    gap = np.array([b == "1" for b in measured], dtype=float) - old
    half = math.hypot(
        1.6448536 * gap.std(ddof=1) / math.sqrt(n), student.ppf(0.95, 3) * spread * math.sqrt(1 + 1 / 4)
    )
    found = over_seeds(reference, [measured])
    assert found.smallest == pytest.approx(100 * half, rel=1e-6)
    assert (found.reference, found.measured) == (pytest.approx(57.5), pytest.approx(40.0))
    assert found.outcome == ("fell" if half < 0.575 - 0.4 else "held")
    assert over_seeds(reference, [bits(("1", 20), ("0", n - 20))]).outcome == "fell"
    assert over_seeds(reference, [bits(("1", 105), ("0", n - 105))]).outcome == "held"
    assert over_seeds(reference, [bits(("1", 200))]).outcome == "improved"
    several = over_seeds(reference, [measured] * 4)
    assert several.smallest < found.smallest, "a mean of several trainings is known better"


def test_too_few_networks_have_no_spread() -> None:
    with pytest.raises(ValueError, match="at least 3 networks"):
        over_seeds(["10", "11"], ["10"])
    with pytest.raises(ValueError, match="the same images"):
        over_seeds(["10", "11", "1"], ["10"])
    with pytest.raises(ValueError, match="an image with a verdict of all"):
        over_seeds(["1-", "-1", "11"], ["11"])

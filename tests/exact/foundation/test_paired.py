"""Paired comparisons: McNemar's and Bonett & Price's formulas, and what they promise in the long run."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from robustbench_sparse.foundation.paired import compare, gains_of, interval, mcnemar, stacked


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (5, 5), (3, 12), (40, 10), (900, 1100), (0, 3000)])
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    expected = 1.0 if b + c == 0 else binomtest(b, b + c, 0.5).pvalue
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert mcnemar(b, c) == mcnemar(c, b)


def test_the_interval_is_the_adjusted_wald_interval() -> None:
    a = [1.0] * 30 + [1.0] * 12 + [0.0] * 4 + [0.0] * 14  # 12 right only in the first, 4 only in the second
    b = [1.0] * 30 + [0.0] * 12 + [1.0] * 4 + [0.0] * 14
    p12, p21, n = 13 / 62, 5 / 62, 62
    half = 1.959963984540054 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / n)
    assert interval(a, b) == pytest.approx((p12 - p21 - half, p12 - p21 + half))
    low, high = interval(b, a)
    assert interval(a, b) == pytest.approx((-high, -low))
    found = compare(a, b)
    assert (found.n, found.difference) == (60, pytest.approx(8 / 60))
    assert found.lost == tuple(range(30, 42))
    assert found.won == tuple(range(42, 46))
    assert found.p == pytest.approx(binomtest(4, 16, 0.5).pvalue)


def test_coverage_and_false_alarms_are_as_promised() -> None:
    draws = np.random.RandomState(0)
    inside, alarms, boot, runs = 0, 0, 0, 400
    for _ in range(runs):
        easy = draws.rand(200)
        a, b = ((easy + 0.15 * draws.randn(200) > 0.4).astype(float) for _ in range(2))
        found = compare(a, b)
        inside += found.low <= 0 <= found.high
        boot += found.bootstrap[0] <= 0 <= found.bootstrap[1]
        alarms += found.p < 0.05
    assert inside / runs > 0.92
    assert boot / runs > 0.91
    assert alarms / runs < 0.07


def test_shares_of_random_networks_get_a_permutation_test() -> None:
    draws = np.random.RandomState(1)
    a = draws.binomial(10, 0.6, 300) / 10
    same = compare(a, np.roll(a, 1))
    better = compare(np.minimum(a + 0.1, 1), a)
    assert same.p > 0.05
    assert better.p < 0.001
    assert better.low > 0
    assert compare(a, a).p == 1.0
    assert compare(a, a).lost == ()


@pytest.mark.parametrize("draws", [1, 7])
def test_gains_of_all_pairs_are_those_of_each_pair(draws: int) -> None:
    """Over more images than are compared at once; of sharp verdicts and of shares."""
    rows = np.random.RandomState(draws).binomial(draws, 0.6, (5, 2500)) / draws
    expected = [[np.maximum(a - b, 0).sum() for b in rows] for a in rows]
    assert gains_of(stacked(rows)) == pytest.approx(np.array(expected), abs=1e-9)


def test_what_cannot_be_paired_is_refused() -> None:
    for rows in ([[1.0], [1.0, 0.0]], [[1.5], [1.0]], [[math.nan]], [[-0.1]]):
        with pytest.raises(ValueError, match="rows: expected verdicts"):
            stacked(rows)
    for a, b in (([1.0], [1.0, 0.0]), ([1.5], [1.0]), ([1.0], [math.nan])):
        with pytest.raises(ValueError, match="expected verdicts"):
            compare(a, b)
    with pytest.raises(ValueError, match="at least one image"):
        compare([], [])
    assert all(math.isnan(v) for v in interval([], []))

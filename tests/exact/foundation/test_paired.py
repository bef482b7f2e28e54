"""Paired comparisons: McNemar's and Bonett & Price's formulas, and what they promise in the long run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from robustbench_sparse.foundation import paired
from robustbench_sparse.foundation.paired import compare, interval, mcnemar, ranks


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


def test_ties_share_a_rank() -> None:
    n = 400
    good, also, bad = ([1.0] * k + [0.0] * (n - k) for k in (300, 297, 100))
    shuffled = list(np.random.RandomState(0).permutation(also))
    assert ranks([bad, good, shuffled]) == [3, 1, 1]
    assert ranks([good]) == [1]
    assert ranks([]) == []


def one_by_one(rows: list[list[float]]) -> list[int]:
    """Ranks as they are defined: every pair by itself."""
    return [
        1 + sum(interval(other, row)[0] > 0 for j, other in enumerate(rows) if j != i)
        for i, row in enumerate(rows)
    ]


@pytest.mark.parametrize("draws", [1, 3, 7, 10])
def test_ranks_are_those_of_every_pair_by_itself(draws: int) -> None:
    random = np.random.RandomState(draws)
    for images in (0, 1, 2, 30, 200, 2500):
        for count in (1, 2, 6):
            rows = [(random.binomial(draws, p, images) / draws).tolist() for p in random.rand(count)]
            rows.append(list(rows[0]))  # a tie
            assert ranks(rows) == one_by_one(rows)


def test_ranks_of_random_and_sharp_rows_together() -> None:
    random = np.random.RandomState(0)
    rows = [random.rand(1500).round(1).tolist() for _ in range(3)]
    rows += [[0.3] * 1500, [1.0] * 1500, [0.0] * 1500, (random.rand(1500) < 0.4).astype(float).tolist()]
    assert ranks(rows) == one_by_one(rows)
    assert len({*ranks(rows)}) > 2


def test_what_is_too_close_to_call_is_called_by_the_interval_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of shares depend on their order: at the border only the definition's own sum decides."""
    random = np.random.RandomState(3)
    rows = [(random.binomial(10, p, 300) / 10).tolist() for p in (0.4, 0.42, 0.44, 0.5)]
    low = interval(rows[3], rows[0])[0]
    assert low > 0
    asked = []

    def shifted(gap: Any) -> tuple[float, float]:
        asked.append(gap)
        return -1.0, 1.0  # the opposite of what the matrix says

    monkeypatch.setattr(paired, "_interval", shifted)
    assert ranks(rows)[0] > 1
    assert asked == []
    monkeypatch.setattr(paired, "_ROUNDING", 2.0)
    assert ranks(rows) == [1] * 4
    assert len(asked) == 16


def test_every_row_is_read_once_however_many_there_are() -> None:
    reads = []

    class Row(list[float]):
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
            reads.append(id(self))
            return np.array([float(v) for v in self], dtype=dtype)

    rows = [Row([float(i < k) for i in range(40)]) for k in (5, 20, 35)]
    assert ranks(rows) == [3, 2, 1]
    assert sorted(reads) == sorted(id(row) for row in rows)


def test_what_cannot_be_paired_is_refused() -> None:
    for rows in ([[1.0], [1.0, 0.0]], [[1.5], [1.0]], [[math.nan]], [[-0.1]]):
        with pytest.raises(ValueError, match="rows: expected verdicts"):
            ranks(rows)
    for a, b in (([1.0], [1.0, 0.0]), ([1.5], [1.0]), ([1.0], [math.nan])):
        with pytest.raises(ValueError, match="expected verdicts"):
            compare(a, b)
    with pytest.raises(ValueError, match="at least one image"):
        compare([], [])
    assert all(math.isnan(v) for v in interval([], []))

"""Ranks of many rows: Holm's procedure by hand, intervals of ranks, and what a comparison can detect."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from robustbench_sparse.foundation.paired import interval, mcnemar
from robustbench_sparse.foundation.ranking import detectable, holm, p_of_pairs, ranking


def verdicts(right: int, images: int, first: int = 0) -> list[float]:
    """Right on so many images from the given one on."""
    return [float(first <= i < first + right) for i in range(images)]


# Holm -----------------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    """0.01 x 4 = 0.04; 0.02 x 3 = 0.06; 0.03 x 2 = 0.06; 0.04 x 1 = 0.04, raised to 0.06."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.01, 0.04]) == pytest.approx([0.02, 0.04])
    assert holm([0.7, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == pytest.approx([0.2])
    assert holm([]).tolist() == []
    with pytest.raises(ValueError, match="p: expected numbers"):
        holm([0.5, 1.5])


def step_down(p: list[float], level: float) -> list[bool]:
    """The procedure as it is described: from the smallest p on, until one is not below level / (those left)."""
    rejected = [False] * len(p)
    for k, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if not p[i] < level / (len(p) - k):
            break
        rejected[i] = True
    return rejected


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_adjusted_p_reject_what_the_procedure_rejects(count: int) -> None:
    draws = np.random.RandomState(count)
    for _ in range(50):
        p = (draws.rand(count) ** 4).tolist()
        for level in (0.01, 0.05, 0.3):
            assert (holm(p) < level).tolist() == step_down(p, level)


# One pair -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (6, 0), (5, 5), (3, 12), (40, 10), (900, 1100)])
@pytest.mark.parametrize("images", [2001, 10_000])
def test_the_p_of_a_pair_is_the_larger_of_two(b: int, c: int, images: int) -> None:
    first, second = (b + 1) / (images + 2), (c + 1) / (images + 2)
    error = math.sqrt((first + second - (first - second) ** 2) / (images + 2))
    wald = 2 * norm.sf(abs(first - second) / error)
    (p,) = p_of_pairs(np.array([float(b)]), np.array([float(c)]), np.array([float(images)]))
    assert p == pytest.approx(max(wald, mcnemar(b, c)), rel=1e-9)
    rows = verdicts(b, images), verdicts(c, images, b)
    low, high = interval(*rows, level=1 - 0.999 * wald)
    assert low <= 0 <= high
    low, high = interval(*rows, level=1 - min(1.001 * wald, 0.999))
    assert wald > 0.9 or not low <= 0 <= high


@pytest.mark.parametrize("images", [20, 100])
@pytest.mark.parametrize("discordant", [0.3, 0.7, 1.0])
def test_no_level_is_exceeded_however_small_it_is(images: int, discordant: float) -> None:
    """All outcomes of two equally good rows, each with its probability."""
    total = np.arange(images + 1)
    shares = [math.comb(images, d) * discordant**d * (1 - discordant) ** (images - d) for d in total]
    for level in (0.05, 0.001, 1e-5):
        wrong = 0.0
        for d, share in enumerate(shares):
            b = np.arange(d + 1.0)
            p = p_of_pairs(b, d - b, np.full(d + 1, float(images)))
            wrong += share * sum(math.comb(d, int(k)) / 2**d for k in b[p < level])
        assert wrong <= level


# Ranks ----------------------------------------------------------------------------------------------------


def by_pairs(rows: list[list[float]], level: float = 0.05) -> tuple[list[int], list[int]]:
    """Ranks from every pair by itself."""
    pairs = list(itertools.combinations(range(len(rows)), 2))
    p, gap = [], {}
    for i, j in pairs:
        difference = np.array(rows[i]) - np.array(rows[j])
        n, b, c = len(difference), int((difference > 0).sum()), int((difference < 0).sum())
        first, second = (b + 1) / (n + 2), (c + 1) / (n + 2)
        z = (first - second) / math.sqrt((first + second - (first - second) ** 2) / (n + 2))
        exact = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
        p.append(max(2 * norm.sf(abs(z)), exact))
        gap[i, j] = b - c
    low, high = [1] * len(rows), [len(rows)] * len(rows)
    for (i, j), rejected in zip(pairs, step_down(p, level), strict=True):
        if rejected:
            better, worse = (i, j) if gap[i, j] > 0 else (j, i)
            low[worse] += 1
            high[better] -= 1
    return low, high


def test_rank_intervals_of_constructed_rows() -> None:
    """One that is far ahead, two that cannot be told apart, one far behind."""
    n = 400
    rows = [verdicts(200, n), verdicts(390, n), verdicts(197, n), verdicts(20, n)]
    found = ranking(rows)
    assert found.low == (2, 1, 2, 4)
    assert found.high == (3, 1, 3, 4)


def test_a_chain_has_overlapping_intervals() -> None:
    """Neighbours cannot be told apart, the first and the last can."""
    rows = [verdicts(k, 200) for k in (100, 96, 92)]
    found = ranking(rows)
    assert (found.low, found.high) == ((1, 1, 2), (2, 3, 3))


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_ranks_are_those_of_every_pair_by_itself(count: int) -> None:
    draws = np.random.RandomState(count)
    for images in (1, 30, 200, 1500):
        rows = [(draws.rand(images) < p).astype(float).tolist() for p in draws.rand(count)]
        rows.append(list(rows[0]))  # a tie
        found = ranking(rows)
        assert (list(found.low), list(found.high)) == by_pairs(rows)


def test_many_pairs_need_more_than_one() -> None:
    """Ten against two discordant images: by itself a difference, among many pairs none."""
    a, b = verdicts(10, 300), verdicts(2, 300, 290)
    assert ranking([a, b]).low == (1, 2)
    others = [verdicts(3 * k, 300, 10) for k in range(1, 3)]
    assert ranking([a, b, *others] + [a] * 12).low[:2] == (1, 1)


def test_one_row_none_and_rows_that_are_alike() -> None:
    assert ranking([]).low == ()
    one = ranking([[1.0, 0.0]])
    assert (one.low, one.high) == ((1,), (1,))
    assert math.isnan(one.detectable)
    same = ranking([[1.0, 0.0] * 50] * 3)
    assert (same.low, same.high) == ((1, 1, 1), (3, 3, 3))
    empty = ranking([[], []])
    assert (empty.low, empty.high) == ((1, 1), (2, 2))


def test_rows_are_compared_on_the_images_that_both_stand_on() -> None:
    n = 600
    part = list(range(0, n, 6))
    weak = np.zeros(n)
    weak[[i for i in range(n) if i % 6]] = 1.0  # right on every image but those that its number stands on
    half = np.array(verdicts(300, n))
    strong = np.ones(n)
    found = ranking([weak, half, strong], [part, None, None])
    assert (found.low, found.high) == ((3, 2, 1), (3, 2, 1))
    on_part = ranking([row[part] for row in (weak, half, strong)])
    assert (found.low, found.high) == (on_part.low, on_part.high)
    everywhere = ranking([weak, half, strong])
    assert everywhere.low == (2, 3, 1)
    apart = ranking([weak, half], [part, [1, 2, 3]])
    assert (apart.low, apart.high) == ((1, 1), (2, 2))  # no image in common


def test_shares_of_draws_are_ranked_too() -> None:
    draws = np.random.RandomState(0)
    rows = [(draws.binomial(10, p, 400) / 10).tolist() for p in (0.2, 0.5, 0.5, 0.9)]
    found = ranking(rows)
    assert (found.low, found.high) == ((4, 2, 2, 1), (4, 3, 3, 1))


def test_every_row_is_read_once_however_many_there_are() -> None:
    reads = []

    class Row(list[float]):
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
            reads.append(id(self))
            return np.array([float(v) for v in self], dtype=dtype)

    rows = [Row([float(i < k) for i in range(40)]) for k in (5, 20, 35)]
    assert ranking(rows).low == (3, 2, 1)
    assert sorted(reads) == sorted(id(row) for row in rows)


def test_all_pairs_together_keep_the_level() -> None:
    """Twelve equally good rows: in at most about 5 % of the tables any two are told apart."""
    draws = np.random.RandomState(0)
    tables = 300
    wrong = 0
    for _ in range(tables):
        easy = draws.rand(200)
        rows = [(easy + 0.2 * draws.randn(200) > 0.5).astype(float) for _ in range(12)]
        wrong += max(ranking(rows).low) > 1
    assert wrong / tables <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / tables)


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ValueError, match="rows: expected verdicts"):
        ranking([[1.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="level: expected"):
        ranking([[1.0]], level=0.0)


# What can be detected -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("discordant", "images", "pairs"), [(0.1, 500, 1), (0.1, 500, 45), (0.2, 2000, 45), (0.1, 10_000, 1000)]
)
def test_the_detectable_difference_is_detected_in_eight_of_ten_tables(
    discordant: float, images: int, pairs: int
) -> None:
    delta = detectable(discordant, images, 0.05 / pairs)
    assert 0 < delta < discordant
    shares = [(discordant + delta) / 2, (discordant - delta) / 2, 1 - discordant]
    b, c, _ = np.random.RandomState(0).multinomial(images, shares, 20_000).T.astype(float)
    power = float((p_of_pairs(b, c, np.full(len(b), float(images))) < 0.05 / pairs).mean())
    assert power == pytest.approx(0.8, abs=0.05)


def test_the_detectable_difference_solves_connors_equation() -> None:
    a, b = norm.isf(0.025), norm.ppf(0.8)
    for psi, n in ((0.3, 100), (0.1, 1000), (1.0, 50)):
        d = detectable(psi, n)
        assert n == pytest.approx(((a * math.sqrt(psi) + b * math.sqrt(psi - d * d)) / d) ** 2)
    # So few differ that the difference itself makes them more: all of them in one direction.
    d = detectable(0.0, 200)
    assert pytest.approx(((a * math.sqrt(d) + b * math.sqrt(d - d * d)) / d) ** 2) == 200
    assert math.isnan(detectable(0.5, 2, 0.001))
    for wrong in ((1.5, 10, 0.05), (0.5, 0, 0.05), (0.5, 10, 0.0)):
        with pytest.raises(ValueError, match="detectable: expected"):
            detectable(*wrong)


def test_a_tables_detectable_difference_is_that_of_its_neighbours() -> None:
    n = 500
    rows = [verdicts(400, n), verdicts(100, n), verdicts(120, n)]
    seen = [detectable((20 + 2) / (n + 2), n + 2, 0.05 / 3), detectable((280 + 2) / (n + 2), n + 2, 0.05 / 3)]
    assert ranking(rows).detectable == pytest.approx(float(np.median(seen)))

"""Intervals against the examples printed in the papers that propose or compare them."""

from __future__ import annotations

import math

import pytest

from robustbench_sparse.foundation.intervals import difference, wilson


# Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3 (score).
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


# Newcombe (1998), Statistics in Medicine 17, 873-890, table II, method 10.
@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_difference_gives_the_published_intervals(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    assert difference(*first, *second) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "n"), [(3, 7), (52.25, 100), (999, 1000), (0.3, 10)])
def test_wilson_bounds_solve_the_score_equation(successes: float, n: int, level: float) -> None:
    z = {0.5: 0.6744897501960817, 0.95: 1.959963984540054, 0.99: 2.5758293035489}[level]
    for p in wilson(successes, n, level):
        assert abs(successes / n - p) == pytest.approx(z * math.sqrt(p * (1 - p) / n), rel=1e-9)


def test_the_ends_are_exact() -> None:
    for n in (1, 3, 7, 1000):
        assert wilson(0, n)[0] == 0.0
        assert wilson(n, n)[1] == 1.0


def test_no_images_give_no_interval() -> None:
    assert all(math.isnan(v) for v in wilson(0, 0))
    assert all(math.isnan(v) for v in difference(0, 0, 1, 2))
    assert all(math.isnan(v) for v in difference(1, 2, 0, 0))


def test_the_two_bounds_mirror_each_other() -> None:
    low, high = wilson(13, 40)
    assert wilson(27, 40) == pytest.approx((1 - high, 1 - low))
    low, high = difference(13, 40, 5, 30)
    assert difference(5, 30, 13, 40) == pytest.approx((-high, -low))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((11, 10), "successes"), ((-1, 10), "successes"), ((0, -1), "n"), ((1, 2, 1.0), "level")],
)
def test_arguments_outside_their_range_are_refused(arguments: tuple[float, ...], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        wilson(*arguments)  # type: ignore[arg-type]

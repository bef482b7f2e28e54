from __future__ import annotations

from typing import Any

from robustbench_sparse.pages.charts import front_of


def points(*places: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"x": x, "y": y} for x, y in places]


def test_the_front_holds_what_no_other_point_dominates() -> None:
    some = points((1, 5), (2, 4), (2, 5), (3, 1), (0, 5), (3, 0))
    assert front_of(some, True, True) == [2, 3]


def test_fewer_is_better_where_it_costs() -> None:
    some = points((1, 5), (2, 6), (3, 6), (0.5, 1))
    assert front_of(some, False, True) == [3, 0, 1]


def test_a_refuted_point_is_on_no_front_and_dominates_none() -> None:
    some = points((1, 1), (2, 2))
    some[1]["out"] = True
    assert front_of(some, True, True) == [0]

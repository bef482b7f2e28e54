"""When a leaderboard no longer holds what a reference states."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustbench_sparse.errors import UserError
from robustbench_sparse.leaderboard import aggregate
from robustbench_sparse.reference import check, text_of
from robustbench_sparse.stats import difference, wilson


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A leaderboard's columns as far as they are compared."""
    base = {"benchmark": "b", "run": "a", "seed": 0, "dataset": "d", "model": "", "defenses": "", "n": 1000}
    rates = {"clean": 90.0, "clean_lo": 0.0, "clean_hi": 100.0, "pgd": 40.0, "pgd_lo": 0.0, "pgd_hi": 100.0}
    rest = {
        "weight_sparsity": 80.0,
        "parameters": 10,
        "nonzero_parameters": 2,
        "macs": 5,
        "train_seconds": 1.0,
    }
    out = pd.DataFrame(
        [{**base, **rates, **rest, "status": "ok", "run_id": "x", "commit": "c", **r} for r in rows]
    )
    return out.astype({"seed": "Int64", "n": "Int64"})


MEASURED = table([{}, {"seed": 1, "pgd": 42.0}, {"run": "b", "pgd": 10.0}])


def problems(measured: pd.DataFrame, reference: pd.DataFrame) -> list[tuple[str, str]]:
    return [(d.run, d.column) for d in check(measured, reference)]


def test_a_table_agrees_with_itself_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "reference.csv"
    MEASURED.to_csv(path, index=False)
    assert check(MEASURED, path) == []
    assert check(path, path) == []


def test_the_boundary_of_the_joint_interval() -> None:
    """400 against x of 1000: the rate differs exactly when Newcombe's interval excludes 0."""
    inside = min(x for x in range(300, 400) if difference(400, 1000, x, 1000)[0] <= 0)
    assert 340 < inside < 380
    assert problems(MEASURED, table([{"pgd": inside / 10}])) == []
    assert problems(MEASURED, table([{"pgd": (inside - 1) / 10}])) == [("a (seed 0)", "pgd")]


def test_both_directions_count() -> None:
    assert problems(MEASURED, table([{"pgd": 45.0}])) == [("a (seed 0)", "pgd")]
    assert problems(MEASURED, table([{"pgd": 35.0}])) == [("a (seed 0)", "pgd")]
    assert problems(MEASURED, table([{"pgd": 43.0}])) == []


def test_fewer_images_allow_more() -> None:
    assert problems(MEASURED, table([{"pgd": 45.0, "n": 100}])) == []
    assert problems(MEASURED, table([{"pgd": 45.0, "n": 10_000}])) == [("a (seed 0)", "pgd")]


def test_without_n_the_reference_is_exact() -> None:
    low, high = (100 * share for share in wilson(400, 1000))
    for value, expected in (
        (low + 0.01, []),
        (low - 0.01, ["pgd"]),
        (high - 0.01, []),
        (high + 0.01, ["pgd"]),
    ):
        reference = pd.DataFrame([{"run": "a", "seed": 0, "pgd": value}])
        assert [d.column for d in check(MEASURED, reference)] == expected


def test_without_seeds_the_mean_is_compared() -> None:
    assert problems(MEASURED, pd.DataFrame([{"run": "a", "pgd": 41.0, "n": 10**7}])) == []
    assert problems(MEASURED, pd.DataFrame([{"run": "a", "pgd": 37.0, "n": 10**7}])) == [("a", "pgd")]
    gap = table([{}, {"seed": 1, "pgd": math.nan, "status": "pgd: crashed: boom"}])
    (found,) = check(gap, pd.DataFrame([{"run": "a", "pgd": 41.0, "n": 1000}]))
    assert found.problem == "the cell is empty (pgd: crashed: boom)"


def test_a_table_over_seeds_is_a_reference(tmp_path: Path) -> None:
    path = tmp_path / "leaderboard_seeds.csv"
    aggregate(MEASURED).to_csv(path, index=False)
    assert check(MEASURED, path) == []
    assert check(path, path) == []
    worse = table([{"pgd": 30.0}, {"seed": 1, "pgd": 31.0}, {"run": "b", "pgd": 10.0}])
    assert problems(worse, pd.read_csv(path)) == [("a", "pgd")]


def test_what_is_gone_differs() -> None:
    reference = table([{}, {"run": "c"}])
    assert [(d.run, d.column, d.problem) for d in check(MEASURED, reference)] == [
        ("c (seed 0)", "", "the row is gone")
    ]
    fewer = MEASURED.drop(columns=["pgd", "pgd_lo", "pgd_hi"])
    assert [(d.column, d.problem) for d in check(fewer, table([{}]))] == [("pgd", "the column is gone")]
    empty = table([{"pgd": math.nan, "weight_sparsity": math.nan, "status": "pgd: crashed: boom"}])
    assert [(d.column, d.problem) for d in check(empty, table([{}]))] == [
        ("pgd", "the cell is empty (pgd: crashed: boom)"),
        ("weight_sparsity", "the cell is empty (pgd: crashed: boom)"),
    ]


def test_what_is_new_or_was_empty_does_not() -> None:
    reference = table([{"pgd": math.nan}]).drop(columns=["clean", "clean_lo", "clean_hi"])
    assert check(MEASURED, reference) == []


def test_sparsity_has_a_tolerance_and_counts_have_none() -> None:
    assert problems(MEASURED, table([{"weight_sparsity": 80.1}])) == []
    assert problems(MEASURED, table([{"weight_sparsity": 79.9}])) == []
    assert problems(MEASURED, table([{"weight_sparsity": 80.11}])) == [("a (seed 0)", "weight_sparsity")]
    assert problems(MEASURED, table([{"macs": 6, "parameters": 11, "nonzero_parameters": 7}])) == [
        ("a (seed 0)", "parameters"),
        ("a (seed 0)", "macs"),
    ]


def test_times_and_names_are_not_compared() -> None:
    other = {
        "train_seconds": 99.0,
        "commit": "z",
        "run_id": "q",
        "model": "m",
        "dataset": "e",
        "status": "old",
    }
    assert check(MEASURED, table([other])) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed,pgd\n0,1\n", "expected a column 'run'"),
        ("run,seed\na,0\n", "states no rate and no sparsity"),
        ("run,pgd\n", "states no rate and no sparsity"),
        ("run,pgd\na,4o\n", "column 'pgd': expected numbers, got '4o'"),
        ("run,pgd\na,140\n", r"column 'pgd': expected percentages in \[0, 100\]"),
        ("", "cannot be read as CSV"),
    ],
)
def test_references_that_state_nothing_to_compare(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        check(MEASURED, path)
    with pytest.raises(UserError, match="cannot be read"):
        check(MEASURED, tmp_path / "none.csv")


def test_the_table_of_differences() -> None:
    lines = text_of(check(MEASURED, table([{"pgd": 60.0}, {"run": "gone"}]))).splitlines()
    assert lines[0].split() == ["run", "column", "reference", "measured", "problem"]
    low, high = (100 * v for v in difference(400, 1000, 600, 1000))
    assert lines[1].split(maxsplit=5) == [
        *("a", "(seed", "0)", "pgd", "60.00"),
        f"40.00  95 % interval of the difference: {low:+.2f} to {high:+.2f}",
    ]
    assert lines[2].endswith("the row is gone")
    assert (
        len({line.index("the row") if "the row" in line else line.index("95 %") for line in lines[1:]}) == 1
    )

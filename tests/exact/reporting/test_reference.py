"""When a leaderboard no longer holds what a reference states."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.intervals import difference, wilson
from robustbench_sparse.reporting.leaderboard import aggregate
from robustbench_sparse.reporting.reference import check, text_of


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as CSV: "),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe" * 40, "cannot be read as CSV: "),
        (b"\x1f\x8b\x08\x00damaged", "cannot be read as CSV: "),
        (b"run,pgd\na,40,1\nb,40,1\n", "rows have more cells than the heading"),
        (b"run,pgd\na,40,1\n" * 2, "cannot be read as CSV: "),
        (b"name;pgd\na;40\n", "expected a column 'run'"),
        (b"run,pgd\n,40\n", "column 'run': expected a name in every row"),
        (b"run,pgd\na," + b"x" * 100_000, "column 'pgd': expected numbers, got 'xxx"),
        (b"run,pgd\na,1e9\n", "expected percentages in [0, 100], got 1000000000.0"),
        (b"run,pgd\na,40\na,41\n", "the row 'a' stands there twice"),
        (b"run,seed,pgd\na,0,40\na,0.0,41\n", "the row 'a (seed 0)' stands there twice"),
        (b"run,pgd\n" + 2 * (b"x" * 100_000 + b",40\n"), " stands there twice"),
        (b"run,pgd,pgd_mean\na,40,40\n", "column 'pgd' stands there twice"),
        (b"run,seed,pgd\na,half,40\n", "column 'seed': expected numbers, got 'half'"),
        (b"run,seed,pgd\na,0.5,40\n", "column 'seed': expected whole numbers, got 0.5"),
        (b"run,n,pgd\na,many,40\n", "column 'n': expected numbers, got 'many'"),
        (b"run,n,pgd\na,0,40\n", "column 'n': expected numbers of images >= 1, got 0"),
        (b"run,n,pgd\na,inf,40\n", "column 'n': expected numbers of images >= 1, got inf"),
    ],
)
def test_damaged_files_are_named_in_one_short_line(tmp_path: Path, content: bytes, message: str) -> None:
    """As the reference and as the measured table."""
    path = tmp_path / "r.csv"
    path.write_bytes(content)
    for measured, reference in ((MEASURED, path), (path, table([{}]).drop(columns="seed"))):
        with pytest.raises(UserError) as caught:
            check(measured, reference)
        line = str(caught.value)
        assert line.startswith(f"{path}: ")
        assert message in line
        assert len(line) <= 500
        assert line.isprintable()


@pytest.mark.parametrize("ending", ["gz", "zip", "bz2", "xz"])
def test_a_damaged_archive_is_no_csv(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"r.csv.{ending}"
    path.write_bytes(b"\x1f\x8b\x08\x00damaged")
    with pytest.raises(UserError, match="cannot be read as CSV"):
        check(MEASURED, path)


def test_a_folder_and_no_file_are_named(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "no benchmark here"), (tmp_path / "none.csv", "cannot be read as CSV")):
        for measured, reference in ((MEASURED, path), (path, MEASURED)):
            with pytest.raises(UserError, match=message) as caught:
                check(measured, reference)
            assert str(caught.value).startswith(f"{path}: ")
            assert str(caught.value).count(str(path)) == 1


def test_texts_in_the_measured_numbers_are_refused_and_a_missing_n_differs(tmp_path: Path) -> None:
    path = tmp_path / "measured.csv"
    path.write_text("run,seed,pgd\na,0,4o\n")
    with pytest.raises(UserError, match=r"measured.csv: column 'pgd': expected numbers, got '4o'"):
        check(path, table([{}]))
    path.write_text("run,pgd\na,40\n")
    with pytest.raises(UserError, match=r"measured.csv: expected a column 'seed', as reference has one"):
        check(path, table([{}]))
    path.write_text("run," + "p" * 100_000 + "\na,140\n")  # a column may have a huge name, too
    with pytest.raises(UserError, match=r"^.{1,500}$"):
        check(MEASURED, path)
    path.write_text("run,seed,pgd\na,0,40\n")
    (found,) = check(path, table([{}])[["run", "seed", "n", "pgd"]])
    assert found.problem == "the measured row has no n"


def test_the_same_run_of_two_benchmarks_is_no_row_twice() -> None:
    both = table([{}, {"benchmark": "other"}])
    assert check(both, both) == []


def test_another_protocol_is_a_difference_and_leaves_what_knows_no_attack() -> None:
    ours = table([{"protocol": "standard-1+quick-2", "clean": 50.0}])
    theirs = table([{"protocol": "standard-1+quick-1", "pgd": 90.0, "weight_sparsity": 60.0}])
    found = check(ours, theirs)
    assert [(d.run, d.column) for d in found] == [
        ("a (seed 0)", "protocol"),
        ("a (seed 0)", "clean"),
        ("a (seed 0)", "weight_sparsity"),
    ]
    assert found[0].problem == (
        "judged by standard-1+quick-2, the reference by standard-1+quick-1: not compared under attack"
    )
    same = table([{"protocol": "standard-1+quick-2", "pgd": 90.0, "clean": 50.0}])
    assert problems(ours, same) == [("a (seed 0)", "pgd")]
    silent = table([{"protocol": None, "pgd": 90.0, "clean": 50.0}])  # a reference of before
    assert problems(ours, silent) == [("a (seed 0)", "pgd")]
    assert problems(ours, table([{"pgd": 90.0, "clean": 50.0}])) == [("a (seed 0)", "pgd")]
    only_clean = theirs.drop(columns=["pgd", "pgd_lo", "pgd_hi", "weight_sparsity"])
    assert problems(table([{"protocol": "p"}]), only_clean) == []


def test_a_worst_case_counts_the_images_that_it_stands_on() -> None:
    """55 against 40: a difference on 1000 images, none where the first is of 40 images."""
    rows = [{"worst": 40.0, "worst_n": n} for n in (1000, 40)]
    many, few = (table([row]) for row in rows)
    wanted = table([{"worst": 55.0, "worst_n": 1000}])
    assert problems(many, wanted) == [("a (seed 0)", "worst")]
    assert problems(few, wanted) == []
    assert problems(wanted, few) == []
    assert problems(many, wanted.drop(columns="worst_n")) == [("a (seed 0)", "worst")]


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

"""The leaderboard's formats show what was measured, and nothing is cut off."""

from __future__ import annotations

import csv
import io
import math
import re
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.leaderboard import aggregate
from robustbench_sparse.reporting.tables import columns_of, show, sort_by, text_of, to_latex, to_markdown

RUNS = ("natural", "pgd_at", "pgd_at+rvsm", "pgd_at+rgsm", "clip", "pgd_at+enresnet+rgsm")
LABELS = ("fgsm", "ifgsm20", "cw", "nattack")


def leaderboard(runs: tuple[str, ...] = RUNS, seeds: tuple[int, ...] = (0,), **changes: Any) -> pd.DataFrame:
    """A leaderboard of the columns of ``tabulate``, with rates that differ from row to row."""
    rows = []
    for i, run in enumerate(runs):
        for seed in seeds:
            row: dict[str, Any] = {"benchmark": "tiny", "run": run, "seed": seed, "dataset": "digits"}
            row |= {"model": "mlp(width=3)", "defenses": run, "n": 1000}
            for j, name in enumerate(("clean", *LABELS, "worst")):
                value = 90.0 - 3 * i - 10 * j + seed
                row |= {name: value, f"{name}_lo": value - 2.5, f"{name}_hi": value + 2.5}
            row |= {"weight_sparsity": 10.0 * i, "channel_sparsity": 12.5, "kernel_sparsity": 15.0}
            row |= {"row_sparsity": math.nan, "parameters": 10, "nonzero_parameters": 9, "macs": 7}
            row |= {"published_clean": 76.07 if run == "pgd_at" else math.nan, "train_seconds": 1.0}
            row |= {"eval_seconds": 2.0, "status": "ok", "run_id": f"{run}-{seed}", "commit": "c"}
            rows.append(row)
    table = pd.DataFrame(rows).assign(**changes)
    return table.astype({"seed": "Int64", "n": "Int64"})


def shown(*tables: pd.DataFrame, width: int = 100) -> str:
    out = io.StringIO()
    show(Console(file=out, width=width, force_terminal=True, color_system=None), tables)
    return out.getvalue()


# The terminal -------------------------------------------------------------------------------------------


def test_six_runs_and_four_attacks_fit_a_hundred_and_twenty_columns() -> None:
    lines = shown(leaderboard(), width=120).splitlines()
    assert max(map(len, lines)) <= 120
    header = next(line for line in lines if line.startswith("run"))
    assert header.split() == ["run", "clean", *LABELS, "worst", "zeros", "zeros", "zeros"]
    (row,) = (line for line in lines if line.startswith("pgd_at "))
    assert row.split() == ["pgd_at", "87.0", "77.0", "67.0", "57.0", "47.0", "37.0", "10.0", "12.5", "15.0"]
    below = lines[lines.index(row) + 1]
    assert below.split()[:2] == ["84.5-89.5", "74.5-79.5"]
    assert lines[lines.index(row) + 2].split() == ["(76.1)"]


@pytest.mark.parametrize("width", [40, 80, 100])
def test_narrow_terminals_get_more_blocks_and_lose_no_number(width: int) -> None:
    wide, narrow = shown(leaderboard(), width=400), shown(leaderboard(), width=width)
    numbers = re.compile(r"\d+\.\d(?:-\d+\.\d)?")
    assert sorted(numbers.findall(wide)) == sorted(numbers.findall(narrow))
    blocks = [line for line in narrow.splitlines() if line.startswith("run")]
    assert len(blocks) > (width < 100)
    table_lines = [line for line in narrow.splitlines() if re.match(r"run|-+$|natural|pgd_at|clip| ", line)]
    assert max(map(len, table_lines)) <= width


def test_numbers_stand_below_their_titles() -> None:
    lines = shown(leaderboard(), width=200).splitlines()
    header = next(line for line in lines if line.startswith("run"))
    row = next(line for line in lines if line.startswith("clip"))
    for label, value in {"fgsm": "68.0", "nattack": "38.0", "worst": "28.0"}.items():
        assert header.index(label) + len(label) == row.index(value) + len(value)


def test_empty_columns_are_left_out_and_seeds_are_shown_when_there_are_several() -> None:
    titles = [c.title for c in columns_of(leaderboard())]
    assert titles == ["run", "clean", *LABELS, "worst", "weight zeros", "channel zeros", "kernel zeros"]
    assert "seed" in [c.title for c in columns_of(leaderboard(seeds=(0, 1)))]


def test_troubles_are_said_below_the_table() -> None:
    table = leaderboard(("a", "b"))
    table.loc[1, ["cw", "cw_lo", "cw_hi", "worst", "worst_lo", "worst_hi"]] = math.nan
    table.loc[1, "status"] = "cw: crashed: [red]out of memory[/red]"
    text = shown(table)
    assert "b (seed 0): cw: crashed: [red]out of memory[/red]" in text
    row = next(line for line in text.splitlines() if line.startswith("b "))
    assert row.split()[4:7] == ["-", "47.0", "-"]


def test_over_seeds_the_deviation_takes_the_intervals_place() -> None:
    text = shown(aggregate(leaderboard(seeds=(0, 1, 2))), width=120)
    lines = text.splitlines()
    row = next(line for line in lines if line.startswith("natural"))
    assert row.split()[:3] == ["natural", "3", "91.0"]
    assert lines[lines.index(row) + 1].split()[:2] == ["±", "1.0"]
    assert "mean and standard deviation over seeds" in text


def test_every_benchmark_has_its_own_table() -> None:
    text = shown(leaderboard(benchmark="one"), leaderboard(benchmark="two", n=50))
    assert (
        text.index("one") < text.index("1000 images of digits") < text.index("two") < text.index("50 images")
    )


# Machine formats ----------------------------------------------------------------------------------------


def test_csv_is_the_whole_table_without_decoration() -> None:
    table = leaderboard()
    rows = list(csv.DictReader(io.StringIO(text_of([table], "csv"))))
    assert list(rows[0]) == list(table.columns)
    assert [row["run"] for row in rows] == list(RUNS)
    assert (rows[1]["published_clean"], rows[0]["published_clean"], rows[0]["row_sparsity"]) == (
        "76.07",
        "",
        "",
    )


def test_csv_of_several_benchmarks_has_the_columns_of_all() -> None:
    other = leaderboard(("x",), benchmark="two").rename(columns=lambda c: c.replace("cw", "spsa"))
    rows = list(csv.DictReader(io.StringIO(text_of([leaderboard(("a",)), other], "csv"))))
    assert [(r["benchmark"], r["cw"], r["spsa"]) for r in rows] == [("tiny", "60.0", ""), ("two", "", "60.0")]
    assert [r["n"] for r in rows] == ["1000", "1000"]


def test_markdown_has_one_cell_per_column() -> None:
    table = leaderboard()
    table.loc[0, "status"] = "cw: crashed: a | b"
    lines = to_markdown([table]).splitlines()
    assert lines[0] == "## tiny"
    rows = [line for line in lines if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
    assert len(rows) == 2 + len(RUNS)
    assert len({len(c) for c in cells}) == 1
    first = dict(zip([c.strip() for c in cells[0]], [c.strip() for c in cells[2]], strict=True))
    assert first["clean"] == "90.0 [87.5, 92.5]"
    assert first["status"] == r"cw: crashed: a \| b"
    assert first["model"] == "mlp(width=3)"
    second = dict(zip([c.strip() for c in cells[0]], [c.strip() for c in cells[3]], strict=True))
    assert second["clean"] == "87.0 [84.5, 89.5] (published 76.1)"
    assert "row zeros" not in first


def test_latex_is_a_booktabs_table_with_escaped_names() -> None:
    table = leaderboard(("a_b%", "c"))
    table.loc[1, "status"] = "diverged: 100 % nan"
    lines = to_latex([table]).splitlines()
    assert lines[0] == "% c (seed 0): diverged: 100 % nan"
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"):
        assert lines.count(part) == 1
    columns = re.fullmatch(r"\\begin\{tabular\}\{(l r*)\}", lines[2].replace("{l", "{l "))
    assert columns is not None
    rows = [line for line in lines if line.endswith(r" \\")]
    assert {row.count(" & ") for row in rows} == {columns[1].count("r")}
    assert rows[1].startswith(r"a\_b\% & 90.0 [87.5, 92.5] & ")
    over_seeds = to_latex([aggregate(leaderboard(seeds=(0, 1)))])
    assert r"90.5 $\pm$ 0.7" in over_seeds
    assert "±" not in over_seeds


# Sorting ------------------------------------------------------------------------------------------------


def test_sorting_puts_large_numbers_first_and_gaps_last() -> None:
    table = leaderboard(("a", "b", "c"), worst=[3.0, math.nan, 7.0])
    assert list(sort_by(table, "worst")["run"]) == ["c", "a", "b"]
    assert list(sort_by(table, None)["run"]) == ["a", "b", "c"]
    assert list(sort_by(table, "run")["run"]) == ["a", "b", "c"]
    assert list(sort_by(table, "n")["run"]) == ["a", "b", "c"]  # ties stay in order


def test_sorting_over_seeds_goes_by_the_mean() -> None:
    table = aggregate(leaderboard(("a", "b"), seeds=(0, 1), clean=[1.0, 2.0, 3.0, 4.0]))
    assert list(sort_by(table, "clean")["run"]) == ["b", "a"]


def test_sorting_by_an_unknown_column_names_near_ones() -> None:
    with pytest.raises(UserError, match=r"no column 'wrost' \(did you mean 'worst'"):
        sort_by(leaderboard(), "wrost")

"""Leaderboards as they were written: a CSV read back with the texts and numbers that it was made of."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_sparse.config.columns import COUNTS, RANKS
from robustbench_sparse.foundation.errors import UserError, near, one_line, shown
from robustbench_sparse.foundation.texts import csv_text
from robustbench_sparse.runs import names

_TEXTS = ("benchmark", "run", "dataset", "model", "defenses", "precision", "verdict", "flags", "protocol", "asked",
          "status", "run_id", "commit")  # fmt: skip
_WHOLE = ("seed", "seeds", "n", "worst_n", *RANKS, *COUNTS)
_NEEDED = ("benchmark", "run", "dataset", "n", "status")
_AMONG_ALL = ("rank", "detectable")  # how the columns begin that say something of all rows together


def is_stored(path: Path) -> bool:
    """Whether a path is a leaderboard as it was written: a CSV, or a folder with one and nothing to count it from."""
    if path.is_dir():
        return (path / names.LEADERBOARD).is_file() and not (path / names.BENCHMARK).is_file()
    return path.suffix == ".csv" and path.is_file()


def read_leaderboard(path: Path, only: Sequence[str] = ()) -> pd.DataFrame:
    """A leaderboard that was written, with the columns it has, as ``leaderboard.tabulate`` gives them.

    Args:
        path: a ``leaderboard.csv`` or ``leaderboard_seeds.csv``, or a folder with the former.
        only: labels of runs, in which ``*`` and ``?`` stand for other characters; all runs if empty. Ranks among some
            cannot be told without each image's verdict, and are left out.

    Raises:
        UserError: a file that cannot be read, or is no leaderboard, or no such run.
    """
    file = path / names.LEADERBOARD if path.is_dir() else path
    table = read_csv(file)
    missing = [c for c in _NEEDED if c not in table.columns]
    if missing or not {"seed", "seeds"} & {*table.columns}:
        raise UserError(f"{file}: no leaderboard: expected a column {shown((missing or ['seed'])[0])}")
    for column in table.columns:
        if column in _TEXTS:
            table[column] = [_text(cell, column) for cell in table[column]]
        else:
            table[column] = numbers_in(table[column], str(file))
            if column in _WHOLE:
                bad = table[column][table[column].notna() & (table[column] % 1 != 0)]
                if len(bad):
                    raise UserError(f"{file}: column {shown(column)}: expected whole numbers")
                table[column] = table[column].astype("Int64")
    if not only:
        return table
    labels = list(dict.fromkeys(table["run"]))
    for pattern in only:
        if not fnmatch.filter(labels, pattern):
            raise UserError(
                f"--only {pattern}: no such run in {file}{near(pattern, labels)}; there are: {', '.join(labels)}"
            )
    chosen = [any(fnmatch.fnmatchcase(run, pattern) for pattern in only) for run in table["run"]]
    ranks = [c for c in table.columns if c.startswith(_AMONG_ALL)]
    some: pd.DataFrame = table[chosen].drop(columns=ranks).reset_index(drop=True)
    return some


def _text(cell: Any, column: str) -> str:
    """A cell's text; ``read_csv`` has those of runs already."""
    if pd.isna(cell):
        return ""
    return str(cell) if column == "run" else csv_text(str(cell))


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV, its column ``run`` and its columns' names with the texts as they were before they were made cells.

    Raises:
        UserError: for a file that cannot be read as one.
    """
    try:
        # As it is: what a damaged archive raises is of many kinds.
        table = pd.read_csv(path, dtype={"run": str}, low_memory=False, compression=None)
    except (OSError, ValueError) as e:
        problem = e.strerror if isinstance(e, OSError) else None
        raise UserError(f"{path}: cannot be read as CSV: {one_line(problem or e)[:200]}") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise UserError(f"{path}: cannot be read as CSV: rows have more cells than the heading")
    table.columns = pd.Index([csv_text(str(column)) for column in table.columns])
    if "run" in table.columns:
        table["run"] = table["run"].map(csv_text, na_action="ignore")
    out: pd.DataFrame = table
    return out


def numbers_in(
    cells: pd.Series[Any], name: str, bounds: tuple[float, float] | None = None, what: str = ""
) -> pd.Series[float]:
    """A column of numbers, some of which may be missing; UserError for anything else, or outside the bounds."""
    numbers: pd.Series[float] = pd.to_numeric(cells, errors="coerce").astype("float64")
    bad = cells[numbers.isna() & cells.notna()]
    if len(bad):
        raise UserError(f"{name}: column {shown(cells.name)}: expected numbers, got {shown(bad.tolist()[0])}")
    bad = cells[~(numbers.isna() | numbers.between(*bounds))] if bounds else bad
    if len(bad):
        raise UserError(f"{name}: column {shown(cells.name)}: expected {what}, got {shown(bad.tolist()[0])}")
    return numbers

"""Columns that a reader asks for by name, in that order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from robustbench_sparse.foundation.errors import UserError, near

ALWAYS = ("benchmark", "run", "seed", "seeds")  # of a leaderboard: without them a row has no name
ENDS = ("_mean", "_std", "_lo", "_hi")  # a number brings its interval, or its deviation


def names_of(text: str | None, option: str = "--columns") -> list[str]:
    """Names with commas between, each once; UserError where there is none.

    Args:
        text: as in ``clean,pgd,weight_sparsity``; None for nothing asked.
        option: who asked, for the error.
    """
    if text is None:
        return []
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise UserError(f"{option}: expected names of columns such as clean,worst, got {text!r}")
    return names


def check_columns(names: Sequence[str], known: Iterable[str], option: str = "--columns") -> None:
    """UserError for a name that is not among the known ones, with the nearest and all there are."""
    there = list(dict.fromkeys(known))
    for name in names:
        if name not in there:
            raise UserError(f"{option}: no column {name!r}{near(name, there)}; there are: {', '.join(there)}")


def known_columns(tables: Sequence[pd.DataFrame]) -> list[str]:
    """What may be asked for in leaderboards: their columns, a number's mean, deviation and bounds under its name."""
    known: dict[str, None] = {}
    for table in tables:
        there = set(table.columns)
        for column in table.columns:
            end = next((e for e in ENDS if column.endswith(e)), "")
            name = column.removesuffix(end) if end else column
            known[name if not end or {name, f"{name}_mean"} & there else column] = None
    return list(known)


def pick(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """A leaderboard with these columns alone, as a CSV gives it: whose row it is first, then what was asked for.

    Args:
        table: of ``leaderboard.tabulate`` or ``leaderboard.aggregate``.
        names: of ``known_columns``; all columns if empty. A rate comes with its interval, a mean with its deviation;
            those that the table has not got are left out.
    """
    if not names:
        return table
    wanted = [c for c in ALWAYS if c in table.columns]
    for name in names:
        wanted += [c for c in (name, *(f"{name}{end}" for end in ENDS)) if c in table.columns]
    out: pd.DataFrame = table[list(dict.fromkeys(wanted))]
    return out

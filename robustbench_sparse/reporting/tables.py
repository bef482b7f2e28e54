"""The leaderboard's formats: for the terminal, CSV, Markdown, and LaTeX with booktabs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from robustbench_sparse.config.columns import MSE, PUBLISHED, SECONDS, SPARSITIES, TRAIN
from robustbench_sparse.foundation import texts
from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.foundation.files import write_text
from robustbench_sparse.foundation.texts import markdown, printable
from robustbench_sparse.reporting import render
from robustbench_sparse.reporting.choosing import pick
from robustbench_sparse.reporting.leaderboard import aggregate, rates_of, tabulate
from robustbench_sparse.reporting.ranks import notes_of
from robustbench_sparse.reporting.render import Column
from robustbench_sparse.runs import names

FORMATS = ("table", "csv", "markdown", "latex")
MEANS, INTERVALS = "mean and standard deviation over seeds", "95 % Wilson interval"
ERRORS = "Mean squared error (mse, pixels in [0, 1]), PSNR in dB and SSIM"
ERROR_INTERVALS = "95 % t interval of the mean over the images"


def sort_by(table: pd.DataFrame, column: str | None) -> pd.DataFrame:
    """Rows by a column: numbers from large to small, texts from a to z, empty cells last; ties stay in order.

    In a table over seeds the name of a rate or sparsity means its mean.

    Raises:
        UserError: when there is no such column.
    """
    if column is None:
        return table
    name = f"{column}_mean" if f"{column}_mean" in table.columns else column
    if name not in table.columns:
        known = [c.removesuffix("_mean") for c in table.columns]
        raise UserError(f"--sort: no column {column!r}{near(column, known)}; there are: {', '.join(known)}")
    numbers = pd.api.types.is_numeric_dtype(table[name])
    out: pd.DataFrame = table.sort_values(name, ascending=not numbers, kind="stable", na_position="last")
    return out


def text_of(tables: Sequence[pd.DataFrame], form: str, names: Sequence[str] = ()) -> str:
    """All tables as ``csv``, ``markdown`` or ``latex``, ending in a line end; ``names``: see ``columns_of``."""
    makers = {"csv": to_csv_text, "markdown": to_markdown, "latex": to_latex}
    return makers[form](tables, names)


def to_csv_text(tables: Sequence[pd.DataFrame], names: Sequence[str] = ()) -> str:
    """One CSV over all benchmarks; columns that a benchmark does not have are empty there."""
    tables = [pick(t, names) for t in tables]
    filled = [t.dropna(axis="columns", how="all") for t in tables]
    columns = list(dict.fromkeys(c for t in tables for c in t.columns))
    return to_csv(pd.concat(filled, ignore_index=True).reindex(columns=columns))


def to_markdown(tables: Sequence[pd.DataFrame], names: Sequence[str] = ()) -> str:
    """One Markdown table per benchmark under its name."""
    parts = []
    for table in tables:
        columns = columns_of(table, full=True, document=True, names=names)
        if not names:
            columns.append(_plain(table, "status", False))
        name, caption = title_of(table)
        notes = "".join(f"\n{markdown(note)}\n" for note in notes_of(table))
        parts.append(f"## {markdown(name)}\n\n{markdown(caption)}\n\n{render.to_markdown(columns)}\n{notes}")
    return "\n".join(parts)


def to_latex(tables: Sequence[pd.DataFrame], names: Sequence[str] = ()) -> str:
    """One ``tabular`` per benchmark, for booktabs."""
    parts = []
    for table in tables:
        name, caption = title_of(table)
        needs = f"{name}: {caption} Needs \\usepackage{{booktabs}}."
        notes = [*troubles_of(table), needs, *notes_of(table)]
        tabular = render.to_latex(columns_of(table, document=True, names=names))
        parts.append("\n".join([*(f"% {note}" for note in notes), tabular, ""]))
    return "\n".join(parts)


def show(console: Console, tables: Sequence[pd.DataFrame], names: Sequence[str] = ()) -> None:
    """Print tables for people: number, spread and published value stand in lines below each other.

    What does not fit the width goes to a further block that begins with the run again; no number is ever cut.
    """
    for table in tables:
        name, caption = title_of(table)
        columns = columns_of(table, names=names)
        front = sum(c.title in ("run", "seed", "seeds") for c in columns[:2])
        body = render.lines(columns, console.width if console.is_terminal else 120, front)
        troubles = [Text(line, "yellow") for line in troubles_of(table)]
        notes = [Text(line, "dim") for line in notes_of(table)]
        for line in [Text(name, "bold"), Text(caption, "dim"), Text(), *body, Text(), *notes, *troubles]:
            console.print(line, soft_wrap=True)


def title_of(table: pd.DataFrame) -> tuple[str, str]:
    """A table's name, and what its numbers are; printable."""
    if table.empty:
        return "", "no runs"
    spread = MEANS if "seeds" in table.columns else INTERVALS
    datasets = ", ".join(dict.fromkeys(str(d) for d in table["dataset"] if d))
    sizes = sorted(set(table["n"].dropna()))
    images = f"{' or '.join(str(n) for n in sizes)} images of {datasets}" if sizes else datasets
    published = any(c.startswith(PUBLISHED) for c in table.columns)
    note = "; published values in parentheses" if published else ""
    what = f"Percent correct on {images}"
    if restores(table):
        what = f"{ERRORS} on {images}, degraded; shares of zeros in percent"
        spread = spread.replace(INTERVALS, ERROR_INTERVALS)
    return printable(table["benchmark"].iloc[0]), printable(f"{what}; {spread}{note}.")


def restores(table: pd.DataFrame) -> bool:
    """Whether it is a table of restoration networks."""
    return "mse" in table.columns or "mse_mean" in table.columns


def troubles_of(table: pd.DataFrame) -> list[str]:
    """One printable line for every row whose status is not plainly ok."""
    lines = []
    for _, row in table.iterrows():
        if row["status"] != "ok":
            seed = "" if "seeds" in table.columns else f" (seed {row['seed']})"
            lines.append(printable(f"{row['run']}{seed}: {row['status']}"))
    return lines


def columns_of(
    table: pd.DataFrame, full: bool = False, document: bool = False, names: Sequence[str] = ()
) -> list[Column]:
    """The columns worth showing: run, seed, rates, sparsities; empty ones are left out.

    Args:
        table: of ``leaderboard.tabulate`` or ``leaderboard.aggregate``.
        full: network and defenses too.
        document: with the words of a text, ``52.3 [49.1, 55.4] (published 57.9)``, not of the terminal.
        names: these columns instead, in this order, behind whose row it is; as far as the table has them.
    """
    if names:
        return _asked_for(table, names, document)
    over_seeds = "seeds" in table.columns
    seed = "seeds" if over_seeds else "seed"
    columns = [_plain(table, "run", False)]
    if full or table[seed].nunique() > 1 or over_seeds:
        columns.append(_plain(table, seed, True))
    if full:
        columns += [_plain(table, name, False) for name in ("model", "defenses")]
    rates = [c.removesuffix("_mean") for c in table.columns if c.endswith("_mean")]
    if not over_seeds:
        rates = [*rates_of(table), *(c for c in SPARSITIES if c in table.columns)]
    for name in rates:
        cells = [_cell(row, name, over_seeds, document) for _, row in table.iterrows()]
        columns.append(Column(name.replace("_sparsity", " zeros") if name in SPARSITIES else name, cells))
    if "rank" in table.columns:
        columns.append(Column("rank", [_ranks(row, document) for _, row in table.iterrows()]))
    protocols = ["protocol"] if "protocol" in table.columns and table["protocol"].nunique() > 1 else []
    believed = [c for c in ("verdict", "flags", *protocols) if c in table.columns]
    columns += [_plain(table, name, False) for name in believed]
    return [c for c in columns if any(any(cell) for cell in c.cells)]


def _asked_for(table: pd.DataFrame, names: Sequence[str], document: bool) -> list[Column]:
    """Columns by their names, empty ones too: whoever asks wants to see that they are."""
    over_seeds = "seeds" in table.columns
    front = [
        "run",
        *(["seeds" if over_seeds else "seed"] if over_seeds or table["seed"].nunique() > 1 else []),
    ]
    columns = [_plain(table, name, name != "run") for name in front]
    rates = {*rates_of(table), *SPARSITIES, *TRAIN}
    for name in (n for n in names if n not in front):
        if f"{name}_mean" in table.columns or (name in rates and name in table.columns):
            cells = [
                _cell(row, name, f"{name}_mean" in table.columns, document) for _, row in table.iterrows()
            ]
            columns.append(Column(name.replace("_sparsity", " zeros") if name in SPARSITIES else name, cells))
        elif name == "rank" and name in table.columns:
            columns.append(Column("rank", [_ranks(row, document) for _, row in table.iterrows()]))
        elif name in table.columns:
            number = pd.api.types.is_numeric_dtype(table[name])
            columns.append(_plain(rounded(table[[name]]), name, number))
    return columns


def _plain(table: pd.DataFrame, name: str, number: bool) -> Column:
    return Column(name, [("" if pd.isna(v) else str(v),) for v in table[name]], number)


def _ranks(row: pd.Series[Any], document: bool) -> tuple[str, str]:
    """A rank, and from which to which it may be, where that is not known; "" for what is missing."""
    low, high = row["rank"], row.get("rank_high")
    if pd.isna(low):
        return "", ""
    if high is None or pd.isna(high) or high == low:
        return str(low), ""
    return str(low), f"[{low}, {high}]" if document else f"{low}-{high}"


def _cell(row: pd.Series[Any], name: str, over_seeds: bool, document: bool) -> tuple[str, str, str, str]:
    """A number, its spread, what was published, and on how many images it stands alone; "" for what is missing."""
    number = partial(_number, form=FORMS.get(_kind(name), ".1f"))
    value = number(row[f"{name}_mean" if over_seeds else name])
    published, spread = number(row.get(f"{PUBLISHED}{name}")), ""
    if over_seeds and value:
        deviation = number(row[f"{name}_std"])
        spread = f"± {deviation}" if deviation else ""
    elif value and f"{name}_lo" in row:
        low, high = number(row[f"{name}_lo"]), number(row[f"{name}_hi"])
        spread = f"[{low}, {high}]" if document else f"{low}-{high}"
    if published:
        published = f"(published {published})" if document else f"({published})"
    n, counted = row.get("n"), row.get("worst_n") if name == "worst" else None
    few = counted is not None and not pd.isna(counted) and not pd.isna(n) and counted != n
    counts = (f"of {counted} images" if document else f"of {counted}") if few else ""
    return value, spread, *((published, counts) if published else (counts, ""))


def _number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else f"{value:{form}}"


# How errors are shown, and their decimals in leaderboard.csv; all else are percentages.
FORMS = {"mse": ".3g", "ssim": ".3f"}
ERROR_DECIMALS = {"mse": 9, "ssim": 6}
# Decimals of leaderboard.csv, by kind of column: percentages, and seconds of wall-clock time.
PERCENT_DECIMALS, SECONDS_DECIMALS = 4, 1


def _kind(column: str) -> str:
    """``mse`` or ``ssim`` for a column of such numbers, whatever stands before and behind; else empty."""
    name = column.removeprefix(PUBLISHED)
    for end in ("_lo", "_hi", "_mean", "_std"):
        name = name.removesuffix(end)
    return "mse" if name.endswith(MSE) else name if name in ERROR_DECIMALS else ""


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """The table as it is written: percentages to 4 decimals, squared errors to 9, SSIM to 6, seconds to 1."""
    floats = table.select_dtypes("float64").columns
    decimals = {c: SECONDS_DECIMALS if c in SECONDS else PERCENT_DECIMALS for c in floats}
    decimals |= {c: ERROR_DECIMALS[_kind(c)] for c in floats if _kind(c)}
    out: pd.DataFrame = table.round(decimals)
    return out


def to_csv(table: pd.DataFrame) -> str:
    """A table as CSV text: fixed rounding, empty cells for what is missing, ``\\n`` line ends; see ``texts.to_csv``."""
    return texts.to_csv(rounded(table))


def write(folder: Path) -> pd.DataFrame:
    """Fold and write ``leaderboard.csv``, ``leaderboard_seeds.csv`` (over seeds) and ``leaderboard.md``.

    Returns:
        The leaderboard, as ``tabulate`` gives it.
    """
    table = tabulate(folder)
    write_text(folder / names.LEADERBOARD, to_csv(table))
    write_text(folder / names.LEADERBOARD_SEEDS, to_csv(aggregate(table)))
    write_text(folder / names.LEADERBOARD_TEXT, to_markdown([table]))
    return table

"""The leaderboard's formats: for the terminal, CSV, Markdown, and LaTeX with booktabs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from robustbench_sparse.config.columns import BELIEF, PUBLISHED, SECONDS, SPARSITIES
from robustbench_sparse.foundation import texts
from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.foundation.files import write_text
from robustbench_sparse.foundation.texts import latex, markdown, printable
from robustbench_sparse.reporting.leaderboard import aggregate, fold, rates_of

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("table", "csv", "markdown", "latex")
GAP = 2  # spaces between columns in the terminal
MEANS, INTERVALS = "mean and standard deviation over seeds", "95 % Wilson interval"


@dataclass(frozen=True)
class Cell:
    """What a table shows of one number: itself, its spread, what was published; texts, "" for nothing."""

    value: str = ""
    spread: str = ""
    published: str = ""


@dataclass(frozen=True)
class Column:
    """A column as it is shown."""

    title: str
    cells: list[Cell]
    number: bool = True


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


def text_of(tables: Sequence[pd.DataFrame], form: str) -> str:
    """All tables as ``csv``, ``markdown`` or ``latex``, ending in a line end."""
    makers = {"csv": to_csv_text, "markdown": to_markdown, "latex": to_latex}
    return makers[form](tables)


def to_csv_text(tables: Sequence[pd.DataFrame]) -> str:
    """One CSV over all benchmarks; columns that a benchmark does not have are empty there."""
    filled = [t.dropna(axis="columns", how="all") for t in tables]
    columns = list(dict.fromkeys(c for t in tables for c in t.columns))
    return to_csv(pd.concat(filled, ignore_index=True).reindex(columns=columns))


def to_markdown(tables: Sequence[pd.DataFrame]) -> str:
    """One Markdown table per benchmark under its name."""
    parts = []
    for table in tables:
        columns = [*columns_of(table, full=True), _status(table)]
        head = "| " + " | ".join(markdown(c.title) for c in columns) + " |"
        rule = "|" + "|".join(" ---: " if c.number else " --- " for c in columns) + "|"
        rows = [
            "| " + " | ".join(_markdown(c.cells[i], c) for c in columns) + " |" for i in range(len(table))
        ]
        name, caption = title_of(table)
        parts.append("\n".join([f"## {markdown(name)}", "", markdown(caption), "", head, rule, *rows, ""]))
    return "\n".join(parts)


def to_latex(tables: Sequence[pd.DataFrame]) -> str:
    """One ``tabular`` per benchmark, for booktabs."""
    parts = []
    for table in tables:
        columns = columns_of(table)
        name, caption = title_of(table)
        align = "".join("r" if c.number else "l" for c in columns)
        lines = [
            f"% {name}: {caption} Needs \\usepackage{{booktabs}}.",
            f"\\begin{{tabular}}{{{align}}}",
            "\\toprule",
            " & ".join(latex(c.title) for c in columns) + " \\\\",
            "\\midrule",
            *(" & ".join(latex(_joined(c.cells[i])) for c in columns) + " \\\\" for i in range(len(table))),
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
        parts.append("\n".join([*(f"% {line}" for line in troubles_of(table)), *lines]))
    return "\n".join(parts)


def show(console: Console, tables: Sequence[pd.DataFrame]) -> None:
    """Print tables for people: number, spread and published value stand in lines below each other.

    What does not fit the width goes to a further block that begins with the run again; no number is ever cut.
    """
    for table in tables:
        name, caption = title_of(table)
        lines = [(name, "bold"), (caption, "dim"), ("", "")]
        for block in _blocks(columns_of(table), console.width if console.is_terminal else 120):
            lines += [*_block_lines(block, len(table)), ("", "")]
        lines += [(line, "yellow") for line in troubles_of(table)]
        for text, style in lines:
            console.print(text, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)


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
    return printable(table["benchmark"].iloc[0]), printable(f"Percent correct on {images}; {spread}{note}.")


def troubles_of(table: pd.DataFrame) -> list[str]:
    """One printable line for every row whose status is not plainly ok."""
    lines = []
    for _, row in table.iterrows():
        if row["status"] != "ok":
            seed = "" if "seeds" in table.columns else f" (seed {row['seed']})"
            lines.append(printable(f"{row['run']}{seed}: {row['status']}"))
    return lines


def columns_of(table: pd.DataFrame, full: bool = False) -> list[Column]:
    """The columns worth showing: run, seed, rates, sparsities; empty ones are left out.

    Args:
        table: of ``leaderboard.fold`` or ``leaderboard.aggregate``.
        full: network and defenses too.
    """
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
        cells = [_cell(row, name, over_seeds) for _, row in table.iterrows()]
        title = name.replace("_sparsity", " zeros") if name in SPARSITIES else name
        columns.append(Column(printable(title), cells))
    believed = [c for c in BELIEF if c in table.columns and c != "rank_seeds"]
    columns += [_plain(table, name, name == "rank") for name in believed]
    return [c for c in columns if any(cell != Cell() for cell in c.cells)]


def _plain(table: pd.DataFrame, name: str, number: bool) -> Column:
    return Column(name, [Cell("" if pd.isna(v) else printable(v)) for v in table[name]], number)


def _status(table: pd.DataFrame) -> Column:
    return _plain(table, "status", False)


def _cell(row: pd.Series[Any], name: str, over_seeds: bool) -> Cell:
    published = _number(row.get(f"{PUBLISHED}{name}"))
    value = _number(row[f"{name}_mean" if over_seeds else name])
    spread = ""
    if over_seeds and value:
        deviation = _number(row[f"{name}_std"])
        spread = f"± {deviation}" if deviation else ""
    elif value and f"{name}_lo" in row:
        spread = f"{_number(row[f'{name}_lo'])}-{_number(row[f'{name}_hi'])}"
    return Cell(value, spread, published)


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.1f}"


def _joined(cell: Cell) -> str:
    """A cell on one line: ``52.3 [49.1, 55.4] (published 57.9)``."""
    spread = cell.spread if cell.spread.startswith("±") else cell.spread.replace("-", ", ").join("[]")
    parts = [
        cell.value,
        spread if cell.spread else "",
        f"(published {cell.published})" if cell.published else "",
    ]
    return " ".join(part for part in parts if part)


def _markdown(cell: Cell, column: Column) -> str:
    # The brackets around an interval are no link's.
    return _joined(cell) if column.number else markdown(_joined(cell))


def _lines(cell: Cell, column: Column) -> list[str]:
    """A cell's lines in the terminal."""
    lines = [cell.value or ("-" if column.number else "")]
    if cell.spread or cell.published:
        lines.append(cell.spread)
    if cell.published:
        lines.append(f"({cell.published})")
    return lines


def _width(column: Column) -> int:
    texts = [line for cell in column.cells for line in _lines(cell, column)]
    return max(len(text) for text in [*texts, *column.title.split(" ")])


def _blocks(columns: Sequence[Column], width: int) -> list[list[Column]]:
    """Split columns into parts, led by run and seed, that are at most so wide where single columns are."""
    front = [c for c in columns if c.title in ("run", "seed", "seeds")]
    blocks = [list(front)]
    for column in columns[len(front) :]:
        needed = sum(_width(c) + GAP for c in [*blocks[-1], column]) - GAP
        if needed > width and len(blocks[-1]) > len(front):
            blocks.append(list(front))
        blocks[-1].append(column)
    return blocks


def _block_lines(columns: Sequence[Column], rows: int) -> list[tuple[str, str]]:
    """A block's lines, each with its style."""
    widths = [_width(c) for c in columns]

    def line(texts: Sequence[str]) -> str:
        aligned = [
            text.rjust(width) if column.number else text.ljust(width)
            for text, width, column in zip(texts, widths, columns, strict=True)
        ]
        return (" " * GAP).join(aligned).rstrip()

    heads = [c.title.split(" ") for c in columns]
    depth = max(len(h) for h in heads)
    heads = [[""] * (depth - len(h)) + h for h in heads]
    out = [(line([h[k] for h in heads]), "bold") for k in range(depth)]
    out.append(("-" * (sum(widths) + GAP * (len(widths) - 1)), "dim"))
    for i in range(rows):
        cells = [_lines(c.cells[i], c) for c in columns]
        for k in range(max(len(c) for c in cells)):
            out.append((line([c[k] if k < len(c) else "" for c in cells]), "dim" if k else ""))
    return out


# Decimals of leaderboard.csv, by kind of column: percentages, and seconds of wall-clock time.
PERCENT_DECIMALS, SECONDS_DECIMALS = 4, 1


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """The table as it is written: percentages to 4 decimals, seconds to 1."""
    floats = table.select_dtypes("float64").columns
    decimals = {c: SECONDS_DECIMALS if c in SECONDS else PERCENT_DECIMALS for c in floats}
    out: pd.DataFrame = table.round(decimals)
    return out


def to_csv(table: pd.DataFrame) -> str:
    """A table as CSV text: fixed rounding, empty cells for what is missing, ``\\n`` line ends; see ``texts.to_csv``."""
    return texts.to_csv(rounded(table))


def write(folder: Path) -> pd.DataFrame:
    """Fold and write ``leaderboard.csv``, ``leaderboard_seeds.csv`` (over seeds) and ``leaderboard.md``.

    Returns:
        The leaderboard, as ``fold`` gives it.
    """
    table = fold(folder)
    write_text(folder / "leaderboard.csv", to_csv(table))
    write_text(folder / "leaderboard_seeds.csv", to_csv(aggregate(table)))
    write_text(folder / "leaderboard.md", to_markdown([table]))
    return table

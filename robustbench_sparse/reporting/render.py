"""Tables as they go out: lines for the terminal, plain text, Markdown, and LaTeX with booktabs.

Whatever a column holds goes out as text: rich gets no markup to read, see ``foundation.texts``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from io import StringIO

from rich.box import MARKDOWN, Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robustbench_sparse.foundation.texts import latex, markdown, printable

GAP = 2  # spaces between columns in the terminal
_RULE = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)  # one line below the titles
# Wider than any table, as rich cuts or folds what does not fit. With a height, since it takes a console that has none
# for 80 columns wide under TERM=dumb.
_CONSOLE = Console(file=StringIO(), width=sys.maxsize, height=1)
_INTERVAL = re.compile(r"\\\[([-\d.]*, [-\d.]*)\\\](?!\()")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its words stand below each other in the terminal.
        cells: the lines of every cell; in Markdown and LaTeX they follow each other.
        number: stands to the right, and an empty cell is ``-`` in the terminal.
    """

    title: str
    cells: Sequence[Sequence[str]]
    number: bool = True


def from_rows(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: Collection[str]) -> list[Column]:
    """Columns of rows whose cells have one line each; those with titles in ``texts`` hold no numbers."""
    return [Column(head, [(row[i],) for row in rows], head not in texts) for i, head in enumerate(heads)]


def lines(
    columns: Sequence[Column], width: int = sys.maxsize, front: int = 1, rule: bool = True
) -> list[Text]:
    """A table for the terminal: bold titles, the further lines of a cell dim, and nothing cut or folded.

    Args:
        columns: all of as many cells.
        width: columns that do not fit go to further blocks; a single one may be wider.
        front: so many columns begin every block.
        rule: draw a line below the titles.
    """
    sizes = [_CONSOLE.measure(_table([column])).maximum + GAP for column in columns]
    blocks, used = [[*columns[:front]]], sum(sizes[:front])
    for column, size in zip(columns[front:], sizes[front:], strict=True):
        if used + size - GAP > width and len(blocks[-1]) > front:
            blocks.append([*columns[:front]])
            used = sum(sizes[:front])
        blocks[-1].append(column)
        used += size
    out: list[Text] = []
    for block in blocks:
        out += [*([Text()] if out else []), *_lines_of(_table(block, rule))]
    return out


def to_text(columns: Sequence[Column], rule: bool = True) -> str:
    """A table as plain text, in one block."""
    return "\n".join(line.plain for line in lines(columns, rule=rule))


def to_markdown(columns: Sequence[Column]) -> str:
    """A table for GitHub's Markdown."""
    head, *rows = _rows(columns, _markdown)
    # rich's own rule says nothing of alignment.
    rule = "|" + "|".join(" ---: " if c.number else " --- " for c in columns) + "|"
    return "\n".join([_markdown_row(head), rule, *map(_markdown_row, rows)])


def to_latex(columns: Sequence[Column]) -> str:
    """A table as ``tabular``, for booktabs."""
    align = "".join("r" if c.number else "l" for c in columns)
    head, *rows = (" & ".join(row) + " \\\\" for row in _rows(columns, lambda text, _: latex(text)))
    begin, end = [f"\\begin{{tabular}}{{{align}}}", "\\toprule"], ["\\bottomrule", "\\end{tabular}"]
    return "\n".join([*begin, head, "\\midrule", *rows, *end])


def _table(columns: Sequence[Column], rule: bool = True) -> Table:
    # Between columns a box has one blank of its own.
    padding = (0, GAP - 1 if rule else GAP, 0, 0)
    table = Table(
        box=_RULE if rule else None, padding=padding, pad_edge=False, show_edge=False, border_style="dim"
    )
    heads = [printable(c.title).split(" ") for c in columns]
    depth = max(map(len, heads), default=0)
    for head, column in zip(heads, columns, strict=True):
        title = Text("\n".join([""] * (depth - len(head)) + head))
        # Not with overflow="ignore": newer versions of rich set nothing to the right then.
        table.add_column(title, justify="right" if column.number else "left", no_wrap=True)
    for cells in zip(*(c.cells for c in columns), strict=True):
        table.add_row(*(_text(cell, c.number) for cell, c in zip(cells, columns, strict=True)))
    return table


def _text(cell: Sequence[str], number: bool) -> Text:
    first, *more = (printable(line) for line in cell)
    text = Text(first or "-" * number)
    for line in more:
        text.append(f"\n{line}", "dim")
    text.rstrip()
    return text


def _lines_of(table: Table) -> list[Text]:
    out = []
    for segments in _CONSOLE.render_lines(table, pad=False):
        line = Text.assemble(*((s.text, s.style or "") for s in segments))
        line.rstrip()
        out.append(line)
    return out


def _rows(columns: Sequence[Column], escape: Callable[[str, bool], str]) -> list[tuple[str, ...]]:
    """The rows of a document, the titles first, every cell on one line."""
    parts = [
        [escape(" ".join(filter(None, cell)), c.number) for cell in [(c.title,), *c.cells]] for c in columns
    ]
    return list(zip(*parts, strict=True)) or [()]


def _markdown(text: str, number: bool) -> str:
    # The brackets around an interval are no link's.
    return _INTERVAL.sub(r"[\1]", markdown(text)) if number else markdown(text)


def _markdown_row(cells: Sequence[str]) -> str:
    # By itself and thus as wide as its own texts: one longer cell is to change no other line of a file.
    table = Table(box=MARKDOWN, show_header=False)
    for cell in cells:
        # rich takes a letter for none behind some that join letters, and leaves it out where there is no place.
        table.add_column(min_width=len(cell[:1]))
    table.add_row(*(Text(cell, no_wrap=True) for cell in cells))
    _, line, _ = _lines_of(table)
    return line.plain

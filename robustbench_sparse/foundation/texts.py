"""Texts on their way out: to a terminal, into CSV, Markdown and LaTeX.

Labels, layers' names and reasons of crashes may hold anything. Where they go out, none may steer a terminal, run in a
spreadsheet or pass for markup.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# Controls of a terminal (C0, C1), of a line's direction (bidi), and halves of characters, which no encoding takes.
_BREAKS = re.compile("[\t-\r\x1c-\x1f\x85\u2028\u2029]+")
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What makes a cell a formula, also behind blanks and quotes and in full width; ";" parts cells in many countries.
_FORMULA = "[\\s\"'\u200b\ufeff]*[-=+@\uff1d\uff0b\uff0d\uff20]"
_RUNS, _KEPT = re.compile(f"(^|;)(?={_FORMULA})"), re.compile(f"(^|;)'(?={_FORMULA})")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{c: f"\\{c}" for c in ("\\", "|", "`", "[", "]")}}
)
_LATEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": "\\textbackslash{}",
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
        "<": "\\textless{}",
        ">": "\\textgreater{}",
        "|": "\\textbar{}",
        "±": "$\\pm$",
    }
)


def printable(text: object) -> str:
    """A text on one line that no terminal obeys: breaks and tabs are blanks, other controls are seen as ``\\x1b``."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], _BREAKS.sub(" ", str(text)))


def printable_lines(text: str) -> str:
    """Every line of a text as ``printable`` gives it."""
    return "\n".join(printable(line) for line in text.split("\n"))


def markdown(text: object) -> str:
    """A text as a cell of a Markdown table: no markup, no HTML, no link."""
    return printable(text).translate(_MARKDOWN)


def latex(text: object) -> str:
    """A text as a cell of a LaTeX table."""
    out = printable(text).translate(_LATEX)
    # Behind the \\ of the line before, these two would be that command's option.
    return f"{{{out[0]}}}{out[1:]}" if out.startswith(("[", "*")) else out


def csv_cell(text: str) -> str:
    """A text as a cell of a CSV: one that a spreadsheet would run gets an apostrophe in front (OWASP's rule).

    Numbers stay as they are, negative ones too. ``csv_text`` takes the apostrophe away again.
    """
    line = printable(text)
    return line if _NUMBER.fullmatch(line) else _RUNS.sub(r"\1'", line)


def csv_text(cell: str) -> str:
    """The text that ``csv_cell`` made a cell of."""
    return _KEPT.sub(r"\1", cell)


def csv_safe(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose texts, its columns' names too, can go into a CSV; numbers are left alone."""
    import pandas as pd

    out: pd.DataFrame = table.set_axis([csv_cell(str(name)) for name in table.columns], axis="columns")
    for place in range(table.shape[1]):
        column = table.iloc[:, place]
        if not pd.api.types.is_numeric_dtype(column):
            cells = [csv_cell(v) if isinstance(v, str) else v for v in column]
            out.isetitem(place, pd.Series(cells, index=table.index, dtype=object))
    return out


def to_csv(table: pd.DataFrame, float_format: str | None = None) -> str:
    """A table as CSV that no spreadsheet runs: without its index, with ``\\n`` as line ends."""
    return str(csv_safe(table).to_csv(index=False, lineterminator="\n", float_format=float_format))

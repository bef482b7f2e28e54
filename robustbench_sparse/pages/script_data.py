"""What the page's script works with: the rows' cells and values as JSON within a script's file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from robustbench_sparse.pages.columns import Column
from robustbench_sparse.pages.rows import FACETS, Row

_SEARCHED = ("run", "benchmark", "dataset", "model", "defenses", "flags", "verdict", "protocol")


def as_script(name: str, value: Any) -> str:
    """``window.NAME = value``: JSON that no end of a script, no comment and no line's end can be in."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return f"window.{name}={text.replace('<', chr(92) + 'u003c').replace('>', chr(92) + 'u003e')};\n"


def report_data(
    columns: Sequence[Column], rows: Sequence[Row], rendered: Callable[[Row, int], str]
) -> dict[str, Any]:
    """Columns, facets and rows; of every row the cells' HTML, what they are sorted by, and what is downloaded.

    Args:
        columns: of the page.
        rows: in their first order.
        rendered: HTML of a row's cell at a place.
    """
    return {
        "columns": [
            {
                "key": c.key, "title": c.title, "group": c.group, "kind": c.kind, "help": c.help, "shown": c.shown,
                "descending": c.descending,
            }
            for c in columns
        ],
        "facets": [{"key": key, "title": title} for key, (title, _) in FACETS.items()],
        "rows": [
            {
                "id": row.id,
                "html": [rendered(row, place) for place in range(len(columns))],
                "sort": [cell.value for cell in row.cells],
                "data": [_raw(c, row, cell.value) for c, cell in zip(columns, row.cells, strict=True)],
                "ends": [_ends(column, row) for column in columns],
                "facets": [list(row.facets[key]) for key in FACETS],
                "whole": row.complete,
                "text": " ".join(str(row.entry.row.get(key, "")) for key in _SEARCHED).lower(),
            }
            for row in rows
        ],
    }  # fmt: skip


def _raw(column: Column, row: Row, value: float | str | None) -> Any:
    """The plain value of a cell: a verdict's text in place of what it is sorted by."""
    return row.entry.row.get(column.key) if column.kind == "verdict" else value


def _ends(column: Column, row: Row) -> list[float] | None:
    """Ends of a rate's interval."""
    low, high = row.entry.row.get(f"{column.key}_lo"), row.entry.row.get(f"{column.key}_hi")
    return None if low is None or high is None else [low, high]

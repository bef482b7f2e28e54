"""Published values that a benchmark shows beside its own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from robustbench_sparse.foundation.errors import UserError, one_line


def read_published(path: Path) -> dict[str, dict[str, float]]:
    """Read a CSV with a column ``run`` and one column per leaderboard column; empty cells are left out.

    Raises:
        UserError: when the file cannot be read, has no column ``run``, a run twice or a cell without number.
    """
    try:
        if not path.is_file():  # a pipe or a device would block, or never end
            raise FileNotFoundError(f"{'no regular' if path.exists() else 'no such'} file")
        table = pd.read_csv(path, dtype={"run": str})
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read as CSV: {one_line(e)}") from None
    if "run" not in table.columns:
        raise UserError(f"{path} has no column 'run'")
    if table["run"].duplicated().any():
        raise UserError(
            f"{path} has two rows for the run {table['run'][table['run'].duplicated()].iloc[0]!r}"
        )
    try:
        rows = table.set_index("run").astype(float)
    except ValueError as e:
        raise UserError(f"{path} holds something that is no number: {one_line(e)}") from None
    return {
        str(run): {str(column): float(value) for column, value in row.items() if pd.notna(value)}
        for run, row in rows.iterrows()
    }

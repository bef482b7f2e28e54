"""Folders written by hand get the record that a real run would have."""

from __future__ import annotations

from pathlib import Path

from robustbench_sparse.runs.seals import seal


def sealed(folder: Path) -> Path:
    """A benchmark's folder with every file of its runs in their records, as it is now."""
    for run in (folder / "runs").glob("*"):
        seal(run)
    return folder

"""Folders and rows that one process holds; the system frees them when the process ends, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from robustbench_sparse.foundation.errors import Busy, UserError, one_line
from robustbench_sparse.foundation.files import TEMPORARY

LOCK, LOCKS = ".lock", ".locks"  # of the folder itself; the folder of its rows' locks


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder and all that is in it; what a killed process left of its writing is removed.

    Raises:
        Busy: another process holds it.
        UserError: the folder cannot be made or written.
    """
    with _held(folder / LOCK, wait=False) as mine:
        if not mine:
            raise Busy(f"{folder}: another process is working here; wait for it or choose another --out")
        remove_leftovers(folder, deep=False)
        remove_leftovers(folder / "runs")
        yield


@contextlib.contextmanager
def table_locked(folder: Path) -> Iterator[None]:
    """Hold what the rows of a benchmark's folder share, for as long as writing it takes; waits for another process.

    Raises:
        UserError: the folder cannot be made or written.
    """
    with _held(folder / LOCK, wait=True):
        remove_leftovers(folder, deep=False)
        yield


@contextlib.contextmanager
def row_locked(folder: Path, row: str, *, wait: bool, waits: Callable[[], None]) -> Iterator[bool]:
    """Hold one row of a benchmark's folder; gives False, without waiting, where another process has it.

    Args:
        folder: the benchmark's.
        row: a name of the row, or of a part of its work.
        wait: until it is free.
        waits: called once before it waits.

    Raises:
        UserError: the folder cannot be written.
    """
    path = folder / LOCKS / f"{row}.lock"
    with _held(path, wait=False) as mine:
        if mine or not wait:
            yield mine
            return
    waits()
    with _held(path, wait=True):
        yield True


def check_idle(folder: Path) -> None:
    """Raise Busy if any process works on a row of the folder."""
    for path in sorted((folder / LOCKS).glob("*.lock")):
        with _held(path, wait=False) as mine:
            if not mine:
                raise Busy(f"{folder}: another process is working on {path.stem}: its table stays as it is")


def remove_leftovers(folder: Path, *, deep: bool = True) -> None:
    """Remove what a process that was killed while it wrote has left in a folder, and in those within it if ``deep``."""
    pattern = f"{TEMPORARY}*.tmp"
    for leftover in folder.rglob(pattern) if deep else folder.glob(pattern):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(path: Path, *, wait: bool) -> Iterator[bool]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        lock.acquire(timeout=-1 if wait else 0)
    except filelock.Timeout:
        yield False
        return
    except OSError as e:
        raise UserError(f"{path.parent}: cannot be written: {one_line(e.strerror or e)}") from None
    try:
        yield True
    finally:
        lock.release()

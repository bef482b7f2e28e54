"""Folders and rows that one process holds; the system frees them when the process ends, however it ends.

These are locks of one machine. Where several hosts write a folder, leases take their place (``leases``), for every
process that works in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from robustbench_sparse.foundation import leases
from robustbench_sparse.foundation.errors import Busy, UserError, one_line
from robustbench_sparse.foundation.files import TEMPORARY

LOCK, LOCKS = ".lock", ".locks"  # of the folder itself; the folder of its rows' locks
TABLE = "table"  # the lease of what rows share


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
    with _shared(folder, folder / LOCK, TABLE, folder, wait=True, waits=lambda: None):
        remove_leftovers(folder, deep=False)
        yield


@contextlib.contextmanager
def row_locked(
    folder: Path, row: str, *, wait: bool, waits: Callable[[], None], changes: Path | None = None
) -> Iterator[bool]:
    """Hold one row of a benchmark's folder; gives False, without waiting, where another process has it.

    It is a lock of this machine, or a lease (``leases``) in a folder that several hosts work in.

    Args:
        folder: the benchmark's.
        row: a name of the row, or of a part of its work.
        wait: until it is free.
        waits: called once before it waits.
        changes: the folder that is written to; by default the benchmark's.

    Raises:
        UserError: the folder cannot be written.
        LeaseLost: another process has taken the row over.
    """
    lock = folder / LOCKS / f"{row}.lock"
    with _shared(folder, lock, row, changes or folder, wait=wait, waits=waits) as mine:
        yield mine


@contextlib.contextmanager
def _shared(
    folder: Path, lock: Path, name: str, changes: Path, *, wait: bool, waits: Callable[[], None]
) -> Iterator[bool]:
    """Hold a lock of this machine; or a lease, where leases are in use.

    Whoever brings leases into use looks at the locks afterwards (``begin_leases``), and whoever has a lock looks for
    leases afterwards: so one of the two sees the other.
    """
    if leases.expiry_of(folder) is None:
        with _locked(lock, wait=wait, waits=waits) as mine:
            if not mine or leases.expiry_of(folder) is None:
                yield mine
                return
    expiry = leases.expiry_of(folder) or leases.EXPIRY_S
    with leases.held(folder, name, changes=changes, wait=wait, waits=waits, expiry=expiry) as mine:
        yield mine


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool, waits: Callable[[], None]) -> Iterator[bool]:
    with _held(path, wait=False) as mine:
        if mine or not wait:
            yield mine
            return
    waits()
    with _held(path, wait=True):
        yield True


def begin_leases(folder: Path, expiry: float = leases.EXPIRY_S) -> None:
    """Let everything that works in a benchmark's folder take leases from now on, in place of locks.

    Raises:
        Busy: a process of this machine is at work with a lock; from its next row on it takes leases, too.
        UserError: the folder cannot be written.
    """
    try:
        leases.start(folder, expiry)
    except OSError as e:
        raise UserError(f"{folder}: cannot be written: {one_line(e.strerror or e)}") from None
    row = _locked_row(folder)
    if row is not None:
        raise Busy(f"{folder}: a process of this machine is working on {row}; wait for it, or end it")


def check_idle(folder: Path) -> None:
    """Raise Busy if any process works on a row of the folder."""
    row = _locked_row(folder) or _leased_row(folder)
    if row is not None:
        raise Busy(f"{folder}: another process is working on {row}: its table stays as it is")


def _locked_row(folder: Path) -> str | None:
    for path in sorted((folder / LOCKS).glob("*.lock")):
        with _held(path, wait=False) as mine:
            if not mine:
                return path.stem
    return None


def _leased_row(folder: Path) -> str | None:
    expiry = leases.expiry_of(folder)
    if expiry is None:
        return None
    found = [path.name for path in sorted((folder / leases.LEASES).iterdir()) if path.is_dir()]
    rows = [name for name in found if not name.startswith(".") and name != TABLE]
    return next((name for name in rows if not leases.Lease(folder, name, expiry).gives_no_sign()), None)


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

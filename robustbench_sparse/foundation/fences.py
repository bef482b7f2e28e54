"""Changes of a folder that fail once it is another process's: each is one rename from, or into, an owner's own place.

An owner has a private folder, its *place*, for as long as it holds what it changes. A file is written there and renamed
to where it belongs; what is to go is renamed into it and removed there. Who takes over removes the place first
(``leases``). From then on every change of the former owner fails, whenever it wakes up: a rename needs both folders.
So a takeover is to it what a kill is: what it had changed before is there, and nothing comes after.

Without a fence around a path, files are written beside it and removed where they lie.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from robustbench_sparse.foundation.errors import UserError

VARIABLE = "RBS_FENCES"  # hands the fences to processes that this one starts: JSON, folder -> place


class LeaseLost(UserError):
    """What this process worked on was taken over by another one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder}: taken over by another process, as this one gave no sign of life for too long; "
            "nothing that was stored is lost"
        )


def _inherited() -> dict[Path, list[Path]]:
    return {Path(k): [Path(v)] for k, v in json.loads(os.environ.get(VARIABLE) or "{}").items()}


_fences = _inherited()  # folder -> places, the last of them counts
_guard = threading.Lock()


@contextlib.contextmanager
def fenced(folder: Path, place: Path) -> Iterator[None]:
    """Let every change below ``folder`` within this block go by way of ``place``, in all threads of this process."""
    folder, place = folder.absolute(), place.absolute()
    with _guard:
        _fences.setdefault(folder, []).append(place)
    try:
        yield
    finally:
        with _guard:
            _fences[folder].remove(place)
            if not _fences[folder]:
                del _fences[folder]


def exported() -> dict[str, str]:
    """The environment that hands the fences to another process."""
    with _guard:
        now = {str(folder): str(places[-1]) for folder, places in _fences.items()}
    return {VARIABLE: json.dumps(now)} if now else {}


def place_of(path: Path) -> Path | None:
    """The place that changes of a path go by; None where no fence stands around it."""
    if not _fences:
        return None
    path = path.absolute()
    with _guard:
        return next((_fences[p][-1] for p in (path, *path.parents) if p in _fences), None)


def check_held(path: Path, place: Path | None) -> None:
    """Raise LeaseLost where the place that changes of a path go by is gone."""
    if place is not None and not place.is_dir():
        raise LeaseLost(path.parent)


def move(source: Path, target: Path, place: Path | None) -> None:
    """Rename a file that was written in the place, if there is one, to where it belongs.

    Raises:
        LeaseLost: the place is gone.
        OSError: it cannot be renamed.
    """
    try:
        source.replace(target)
    except OSError:
        check_held(target, place)
        # A server may carry a rename out, lose its answer, and find nothing to rename when it is asked again.
        if place is None or source.exists() or not target.exists():
            raise


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        LeaseLost: it belongs to another process by now.
    """
    place = place_of(path)
    if place is None:
        path.unlink(missing_ok=True)
        return
    gone = _taken(path, place)
    if gone is not None:
        gone.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder and all that is in it, as far as that can be done.

    Raises:
        LeaseLost: it belongs to another process by now.
    """
    place = place_of(path)
    gone = path if place is None else _taken(path, place)
    if gone is not None:
        shutil.rmtree(gone, ignore_errors=True)


def _taken(path: Path, place: Path) -> Path | None:
    """Where a path has been moved to within the place; None where there was nothing."""
    gone = place / f"gone-{uuid.uuid4().hex[:12]}"
    try:
        path.rename(gone)
    except FileNotFoundError:
        check_held(path, place)
        return gone if gone.exists() else None
    return gone

"""A run's record of its own files: which of them count, and the hash of each.

``files.json`` decides. A file that it does not name is not there, whatever lies on the disk; one that it names and
whose bytes have another hash has been changed since it was stored. To renew files, their names are taken out first,
then the files are written, then the names come back: a kill in between leaves files that do not count, never one that
passes for another. It guards against accidents and against edits of single files, not against somebody who rewrites
the record as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import read_json, sha256, write_json
from robustbench_sparse.runs.names import RECORD


class Seals:
    """The record of one run's folder.

    Args:
        folder: the run's. Names are relative to it, with ``/`` between.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / RECORD

    def hashes(self) -> dict[str, str]:
        """Name of each file that counts -> its SHA-256; empty where there is no record.

        Raises:
            UserError: the record is damaged.
        """
        if not self.path.is_file():
            return {}
        known = read_json(self.path)
        fine = isinstance(known, dict) and all(isinstance(v, str) and _is_inside(k) for k, v in known.items())
        if not fine:
            raise UserError(f"{self.path}: damaged: expected file names with hashes")
        return dict(known)

    def has(self, *names: str) -> bool:
        """Whether files count, all of them; they may have been changed since, see ``check``."""
        known = self.hashes()
        return all(name in known for name in names)

    def check(self, *names: str) -> None:
        """Compare files with the record; without names all that it knows.

        Raises:
            UserError: naming the first file that does not count, is missing, or has been changed.
        """
        known = self.hashes()
        for name in names or known:
            path = self.folder / name
            if name not in known:
                raise UserError(
                    f"{path}: not in {RECORD}: it was not stored to the end; run the same command again"
                )
            try:
                changed = sha256(path) != known[name]
            except FileNotFoundError:
                raise UserError(f"{path}: missing, though {RECORD} names it") from None
            except OSError as e:
                raise UserError(f"{path}: cannot be read: {one_line(e.strerror or e)}") from None
            if changed:
                raise UserError(f"{path}: changed since it was stored (its hash is not that in {RECORD})")

    def holds(self, *names: str) -> bool:
        """Whether files count and are as they were stored."""
        known = self.hashes()
        try:
            return all(n in known and sha256(self.folder / n) == known[n] for n in names)
        except OSError:
            return False

    @contextlib.contextmanager
    def renewing(self, *names: str) -> Iterator[None]:
        """Write files within this block; they count when it has ended without an exception.

        A file that is not there at its end does not count.
        """
        known = self.hashes()
        if any(name in known for name in names):
            write_json(self.path, {k: v for k, v in known.items() if k not in names})
        yield
        written = {n: sha256(self.folder / n) for n in names if (self.folder / n).is_file()}
        write_json(self.path, {**{k: v for k, v in self.hashes().items() if k not in names}, **written})


def seal(folder: Path) -> None:
    """Let every file of a folder count as it is now, but for hidden ones; for folders that are written by hand."""
    found = (p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file())
    names = [p for p in found if p.as_posix() != RECORD and not any(part.startswith(".") for part in p.parts)]
    write_json(folder / RECORD, {p.as_posix(): sha256(folder / p) for p in names})


def _is_inside(name: str) -> bool:
    """Whether a name stays inside the folder."""
    return not name.startswith("/") and ".." not in name.split("/")

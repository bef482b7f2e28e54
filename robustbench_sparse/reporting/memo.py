"""Rows that are asked for again and again, as pages of a running benchmark do: read anew only where a file changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass
class Memo:
    """Rows by their run's folder, each with what it was read from.

    A row is handed out again only while every file below its folder has the name, size, time of change (ns) and inode
    that it had *before* the row was read, and the benchmark's manifest says the same, but for its other runs. A table
    that is kept on disk is read without one: seals compare contents, this compares what the file system says of them.
    """

    _rows: dict[Path, tuple[Stamp, str, Row]] = field(default_factory=dict)

    def row(
        self, home: Path, manifest: Mapping[str, Any], entry: Mapping[str, Any], read: Callable[[], Row]
    ) -> Row:
        """A run's row: the known one, or what ``read`` says.

        Args:
            home: the run's folder.
            manifest: of its benchmark.
            entry: the run's own part of the manifest.
            read: reads the row.
        """
        stamp = stamp_of(p for p in home.rglob("*") if not p.is_dir())
        said = repr(({**manifest, "runs": None}, entry))
        known = self._rows.get(home)
        if known is not None and known[:2] == (stamp, said):
            return dict(known[2])
        row = read()
        self._rows[home] = stamp, said, row
        return dict(row)  # ranks are written into it, which depend on the other rows


def stamp_of(paths: Iterable[Path]) -> Stamp:
    """What the file system says of files, in the order of their names; one that vanishes meanwhile has sizes of -1."""
    found = []
    for path in sorted(paths):
        try:
            facts = path.stat()
        except OSError:
            found.append((str(path), -1, -1, -1))
        else:
            found.append((str(path), facts.st_size, facts.st_mtime_ns, facts.st_ino))
    return tuple(found)

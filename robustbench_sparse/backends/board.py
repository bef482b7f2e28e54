"""Progress of units that run elsewhere: a small file each, written now and then, and read where the command runs."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from robustbench_sparse.foundation.progress import Progress, Task

EVERY_S = 2.0  # between two writings of a unit's progress, and two readings of all
MOST_BARS = 16  # units whose bars are shown; more would fill the terminal
_NOTES = 50  # the last notes of a unit


class FolderProgress:
    """Progress that goes into a file; nothing is written in a unit's first seconds, so short ones cost nothing."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._bars: dict[int, dict[str, Any]] = {}
        self._notes: list[str] = []
        self._count, self._said = 0, 0.0

    def begin(self, path: Path) -> None:
        """Another unit, with another file."""
        self._path, self._bars, self._notes = path, {}, []
        self._said = time.monotonic()

    def start(self, title: str, total: int, unit: str, done: int = 0) -> Task:
        """A new bar."""
        self._count += 1
        self._bars[self._count] = {"title": title, "total": total, "unit": unit, "done": done, "info": ""}
        self._say()
        return _FolderBar(self, self._count)

    def note(self, text: str) -> None:
        """A line that stays."""
        self._notes.append(text)
        self._say(now=True)

    def moved(self, bar: int, amount: int, info: str) -> None:
        """A bar has gone on."""
        facts = self._bars[bar]
        facts["done"], facts["info"] = facts["done"] + amount, info or facts["info"]
        self._say()

    def ended(self, bar: int) -> None:
        """A bar is over."""
        self._bars.pop(bar, None)
        self._say()

    def _say(self, *, now: bool = False) -> None:
        if self._path is None or not (now or time.monotonic() - self._said > EVERY_S):
            return
        self._said = time.monotonic()
        whole = {"bars": {str(k): v for k, v in self._bars.items()}, "notes": self._notes[-_NOTES:]}
        aside = self._path.with_suffix(".new")
        with contextlib.suppress(
            OSError
        ):  # nobody looks at it any more, or the disk is full: the work goes on
            aside.write_text(json.dumps({**whole, "said": len(self._notes)}))
            aside.replace(self._path)


class _FolderBar:
    def __init__(self, board: FolderProgress, number: int) -> None:
        self._board, self._number = board, number

    def advance(self, amount: int, info: str = "") -> None:
        """So many more units are done."""
        self._board.moved(self._number, amount, info)

    def close(self) -> None:
        """The bar's work is over."""
        self._board.ended(self._number)


class Board:
    """What the command shows of units elsewhere.

    Args:
        folder: of the units' files, which are called by the units' ids.
        show: where progress goes.
    """

    def __init__(self, folder: Path, show: Progress) -> None:
        self._folder, self._show = folder, show
        self._bars: dict[tuple[str, str], tuple[Task, int]] = {}
        self._said: dict[str, int] = {}
        self._looked = time.monotonic()

    def look(self, units: Iterable[str]) -> None:
        """Show how far these units are, the first of them; does nothing where it has just looked."""
        if time.monotonic() - self._looked < EVERY_S:
            return
        seen: set[tuple[str, str]] = set()
        for unit, _ in zip(units, range(MOST_BARS), strict=False):
            facts = self._read(unit)
            seen |= {(unit, bar) for bar in facts.get("bars", {})}
            self._draw(unit, facts)
        for key in [key for key in self._bars if key not in seen]:
            self._bars.pop(key)[0].close()
        self._looked = time.monotonic()

    def last_look(self, unit: str) -> None:
        """Show the notes of a unit that has ended."""
        self._notes(unit, self._read(unit))
        for key in [key for key in self._bars if key[0] == unit]:
            self._bars.pop(key)[0].close()
        self._said.pop(unit, None)

    def close(self) -> None:
        """No more bars."""
        for task, _ in self._bars.values():
            task.close()
        self._bars.clear()

    def _read(self, unit: str) -> dict[str, Any]:
        try:
            found = json.loads((self._folder / f"{unit}.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _draw(self, unit: str, facts: Mapping[str, Any]) -> None:
        self._notes(unit, facts)
        for bar, f in facts.get("bars", {}).items():
            if (unit, bar) not in self._bars:
                task = self._show.start(f["title"], int(f["total"]), f["unit"], int(f["done"]))
                self._bars[unit, bar] = task, int(f["done"])
            task, done = self._bars[unit, bar]
            task.advance(int(f["done"]) - done, f["info"])
            self._bars[unit, bar] = task, int(f["done"])

    def _notes(self, unit: str, facts: Mapping[str, Any]) -> None:
        said, known = int(facts.get("said", 0)), self._said.get(unit, 0)
        if said > known:
            for text in facts["notes"][known - said :]:
                self._show.note(str(text))
            self._said[unit] = said

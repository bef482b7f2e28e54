"""Units given to an engine in the order of their needs, as many at a time as it takes, until all are done.

Nothing heavy is imported here: this loop is what a command with many units does all the time.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from robustbench_sparse.backends.base import Engine, Report, Unit
from robustbench_sparse.backends.board import Board
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.progress import Progress

HEAR_S = 1.0
LOOK_S = 2.0  # between two looks whether a unit that others need has been trained


class Course:
    """What is left to do, and what may begin.

    Args:
        units: in the order in which they should begin.
        is_trained: whether a unit that others need has been trained.
    """

    def __init__(self, units: Iterable[Unit], is_trained: Callable[[str], bool]) -> None:
        self._is_trained = is_trained
        self._ready: deque[Unit] = deque()
        self._lacks: dict[str, set[str]] = {}  # of a unit that has to wait, what it waits for
        self._behind: dict[str, list[Unit]] = {}  # the units that wait for one
        self._looked = float("-inf")
        for unit in units:
            if unit.needs:
                self._lacks[unit.run_id] = set(unit.needs)
                for needed in unit.needs:
                    self._behind.setdefault(needed, []).append(unit)
            else:
                self._ready.append(unit)
        self.look(list(self._behind))

    def take(self, most: int) -> list[Unit]:
        """So many units at most that may begin."""
        return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]

    def look(self, running: Iterable[str]) -> None:
        """Let begin what waits for those of these units that have been trained; now and then only."""
        if self._behind and time.monotonic() - self._looked >= LOOK_S:
            for needed in [unit for unit in running if unit in self._behind]:
                if self._is_trained(needed):
                    self.trained(needed)
            self._looked = time.monotonic()

    def trained(self, needed: str) -> None:
        """A unit has been trained, or will not be."""
        for unit in self._behind.pop(needed, []):
            self._lacks[unit.run_id].discard(needed)
            if not self._lacks[unit.run_id]:
                del self._lacks[unit.run_id]
                self._ready.append(unit)


def work_off(
    units: Sequence[Unit], engine: Engine, show: Progress, board: Board, is_trained: Callable[[str], bool]
) -> Iterator[None]:
    """Give all units to an engine, as many at a time as it takes; yields after each.

    Those that another process holds come last, and wait for it then.

    Raises:
        UserError: an error within a unit, or one that process after process died of.
    """
    crew = _Crew(units, engine, is_trained)
    bar = show.start("units", len(units), "units")
    try:
        while crew.left:
            crew.send()
            for unit, report in engine.hear(HEAR_S):
                board.last_look(unit.run_id)
                if crew.came(unit, report):
                    bar.advance(1, f"{len(crew.running)} at work")
                    yield
            crew.look()
            board.look(crew.running)
    finally:
        board.close()
        bar.close()


class _Crew:
    """The units in an engine's hands, and those that are left.

    Args:
        units, engine, is_trained: see ``work_off``.
    """

    def __init__(self, units: Sequence[Unit], engine: Engine, is_trained: Callable[[str], bool]) -> None:
        self._course, self._engine, self._is_trained = Course(units, is_trained), engine, is_trained
        self.left = {unit.run_id for unit in units}
        self.running: dict[str, Unit] = {}
        self._processes: Counter[str] = Counter()  # of each unit that runs: several, where it has shards
        self._held: deque[Unit] = deque()
        self._helped = float("-inf")

    def send(self) -> None:
        """Give the engine what it has room for: fresh units, those that were held, or help for those that run."""
        free = self._engine.most - self._processes.total()
        fresh = self._course.take(free)
        late = [] if fresh else [self._held.popleft() for _ in range(min(free, len(self._held)))]
        late = late or ([] if fresh else self._to_help(free))
        for some, wait in ((fresh, False), (late, True)):
            if some:
                self.running |= {unit.run_id: unit for unit in some}
                self._processes.update(unit.run_id for unit in some)
                self._engine.submit(some, wait=wait)

    def came(self, unit: Unit, report: Report) -> bool:
        """Take note of a unit's end; whether it is done, and was not before.

        Raises:
            UserError: it cannot be done.
        """
        self._processes[unit.run_id] -= 1
        if not self._processes[unit.run_id]:
            del self._processes[unit.run_id], self.running[unit.run_id]
        if unit.run_id not in self.left:
            return False
        if not _is_done(unit, report):
            if unit.run_id not in self.running:
                self._held.append(unit)
            return False
        self.left.remove(unit.run_id)
        self._course.trained(unit.run_id)
        return True

    def look(self) -> None:
        """Let begin what waits for units that have been trained meanwhile, here or by another command."""
        self._course.look((*self.running, *(unit.run_id for unit in self._held)))

    def _to_help(self, most: int) -> list[Unit]:
        """Units that run, are trained, and have shards for more processes than they have."""
        if not most or time.monotonic() - self._helped < LOOK_S:
            return []
        self._helped = time.monotonic()
        some = [u for u in self.running.values() if u.shards > self._processes[u.run_id]]
        fit = (unit for unit in some if unit.run_id in self.left and self._is_trained(unit.run_id))
        return list(islice(fit, most))


def _is_done(unit: Unit, report: Report) -> bool:
    """Whether it is done; False where another process holds it.

    Raises:
        UserError: it cannot be done.
    """
    if report.state == "error":
        raise UserError(report.text)
    if report.state == "died":
        raise UserError(
            f"{unit.title}: process after process that worked on it ended, the last: {report.text}"
        )
    return report.state == "done"

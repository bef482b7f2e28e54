"""The processes in which rows go side by side, as the one that starts them sees them."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from robustbench_sparse.config.plan import RunPlan
from robustbench_sparse.data.bounded import available_memory
from robustbench_sparse.foundation import ahead
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.processes import WORKERS, last_words
from robustbench_sparse.foundation.progress import Progress, Task
from robustbench_sparse.runs.manifest import table_of
from robustbench_sparse.workers import Request
from robustbench_sparse.workspace import Workspace

ATTEMPTS = 3  # processes that may die of one row
FEW = 2e11  # multiplications of all trainings below which starting a process takes longer than it saves
PROCESS_BYTES = 600e6  # of a process that has done nothing yet: Python, PyTorch, pandas

Row = tuple[RunPlan, int]  # a run and its seed


def jobs_for(work: Workspace, asked: int | None = None) -> int:
    """How many rows go side by side.

    What a row takes of the machine is counted, not timed: its threads (``Workspace.threads``) and its memory. So small
    networks go side by side, one thread each, and large ones in fewer processes, or one by one.

    Args:
        work: the benchmark.
        asked: the user's own number, which may ask more of the machine than it has; None leaves it open.

    Returns:
        A number of processes, at most one per row, and shard of it (``evaluation.shards``); 1 on a GPU, or for a few
        seconds' work, unless asked.
    """
    rows = len(work.rows()) * work.plan.config.evaluation.shards
    if asked is not None:
        return min(asked, rows)
    if work.data.device.type != "cpu" or work.multiplications < FEW:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = available_memory()
    fitting = rows if free is None else int(free / (PROCESS_BYTES + work.memory))
    return max(1, min(rows, cores // work.threads, fitting))


def run_rows(work: Workspace, request: Request, jobs: int) -> Iterator[None]:
    """Work on all rows in so many processes; yields whenever one row is done.

    A process that dies, as of memory, is replaced, and its row taken up again where it stood. Rows that another command
    works on come last.

    Raises:
        UserError: what a worker raised, or a row that ``ATTEMPTS`` processes died of. The others are stopped.
    """
    start = {"request": asdict(request), "table": table_of(work.plan)}
    pool = _Pool(start, work.longest_first(), work.show, work.plan.config.evaluation.shards)
    try:
        pool.open(jobs)
        while pool.busy:
            if pool.hear():
                yield
    finally:
        pool.close()


class _Pool:
    """The processes, the rows they are at, and their bars.

    Args:
        start: what every process is told first.
        rows: to work on, in order.
        show: where progress goes.
        shards: processes at one row at most, where there is no other row left.
    """

    def __init__(
        self, start: Mapping[str, Any], rows: Iterable[Row], show: Progress, shards: int = 1
    ) -> None:
        self._start, self._show, self._shards = start, show, shards
        self._rows = iter(rows)
        self._held: list[Row] = []  # another command works on them
        self._events: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        self._workers: dict[int, _Worker] = {}  # by a number of their own, also those that replace others
        self._bars: dict[tuple[int, int], Task] = {}
        self._deaths: Counter[tuple[str, int]] = Counter()
        self._done: set[tuple[str, int]] = set()
        self.busy: dict[int, Row] = {}

    def open(self, jobs: int) -> None:
        """Start so many processes, each with a row, or to help with one."""
        for _ in range(jobs):
            row = next(self._rows, None)
            self._employ(row or self._to_help(), wait=row is None)
        ahead.drop(WORKERS)

    def close(self) -> None:
        """End every process, wherever it is."""
        for bar in self._bars.values():
            bar.close()
        for worker in self._workers.values():
            worker.stop()

    def hear(self) -> bool:
        """Wait for the next report of any process; whether a row is done.

        Raises:
            UserError: an error within a row, or a row that one process after another died of.
        """
        number, event = self._events.get()
        kind = event.pop("event")
        if kind in ("done", "held"):
            row = self.busy.pop(number)
            if kind == "held":
                self._held.append(row)
            else:
                self._done.add(_key(row))
            self._give_next(number)
        elif kind == "error":
            raise UserError(event["text"])
        elif kind == "end":
            self._replace(number, event["text"])
        else:
            self._display(number, kind, event)
        return bool(kind == "done")

    def _give_next(self, number: int) -> None:
        """Another row: a fresh one, one to wait for, or one to help with."""
        row = next(self._rows, None)
        if row is not None:
            self._give(number, row, wait=False)
        elif self._held:
            self._give(number, self._held.pop(0), wait=True)
        elif (helped := self._to_help()) is not None:
            self._give(number, helped, wait=True)

    def _to_help(self) -> Row | None:
        """A row in work that has room for another process."""
        rows = {_key(row): row for row in self.busy.values() if _key(row) not in self._done}
        counts = Counter(_key(row) for row in self.busy.values())
        free = [key for key in rows if counts[key] < self._shards]
        return rows[min(free, key=lambda key: counts[key])] if free else None

    def _employ(self, row: Row | None, *, wait: bool) -> None:
        if row is not None:
            number = len(self._workers)
            self._workers[number] = _Worker(number, self._start, self._events)
            self._give(number, row, wait=wait)

    def _give(self, number: int, row: Row, *, wait: bool) -> None:
        self.busy[number] = row
        self._workers[number].give(row, wait=wait)

    def _replace(self, number: int, words: str) -> None:
        row = self.busy.pop(number, None)
        for bar in [bar for bar in self._bars if bar[0] == number]:
            self._bars.pop(bar).close()
        if row is None:  # it was idle: nobody misses it
            return
        run, seed = row
        self._deaths[run.label, seed] += 1
        which = f"runs.{run.label}, seed {seed}"
        if self._deaths[run.label, seed] >= ATTEMPTS:
            raise UserError(f"{which}: {ATTEMPTS} processes that worked on it ended, the last: {words}")
        self._show.note(
            f"{which}: the process that worked on it ended ({words}); another one goes on with it"
        )
        self._employ(row, wait=True)

    def _display(self, number: int, kind: str, event: Mapping[str, Any]) -> None:
        if kind == "note":
            self._show.note(event["text"])
            return
        key = number, int(event["bar"])
        if kind == "start":
            self._bars[key] = self._show.start(event["title"], event["total"], event["unit"], event["done"])
        elif kind == "advance":
            self._bars[key].advance(event["amount"], event["info"])
        else:
            self._bars.pop(key).close()


def _key(row: Row) -> tuple[str, int]:
    """What tells a row from others."""
    return row[0].label, row[1]


class _Worker:
    """One process, as the one that started it sees it."""

    def __init__(
        self, number: int, start: Mapping[str, Any], events: queue.Queue[tuple[int, dict[str, Any]]]
    ) -> None:
        self.number = number
        self._started = ahead.take(WORKERS)
        self._process, self._said = self._started.process, self._started.said
        self._write(start)
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def give(self, row: Row, *, wait: bool) -> None:
        """Let it work on a row; ``wait`` for another process that does."""
        self._write({"run": row[0].label, "seed": row[1], "wait": wait})

    def stop(self) -> None:
        """End it, wherever it is: what it writes is whole or not there."""
        self._started.stop()

    def _write(self, value: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended, and ``_listen`` says so
            return

    def _listen(self, events: queue.Queue[tuple[int, dict[str, Any]]]) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                if not line.endswith("\n"):  # it was killed in the middle of a line
                    break
                events.put((self.number, json.loads(line)))
            code = self._process.wait()
            self._said.seek(0)
            said = self._said.read().decode(errors="replace")
        except ValueError:  # closed by ``stop``
            return
        events.put((self.number, {"event": "end", "text": last_words(said, code)}))

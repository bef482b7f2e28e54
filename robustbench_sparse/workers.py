"""Rows side by side: processes that each work on one row of a benchmark at a time.

``python -m robustbench_sparse.workers`` is such a process. It gets a request on its standard input, then one row after
another, and says on its standard output, in lines of JSON, how far it is. It ends as soon as its input does: with the
process that started it, however that ended. A row's numbers are the same whichever process works on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from robustbench_sparse.config.load import load, resolve
from robustbench_sparse.config.plan import Plan
from robustbench_sparse.config.plugins import trust, trusted
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.foundation.devices import choose_device, cpu_threads
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.processes import command, environment, last_words
from robustbench_sparse.foundation.progress import Progress, Task
from robustbench_sparse.runs.manifest import table_of
from robustbench_sparse.workspace import Workspace

_PAUSE_S = 0.1  # between two reports of one bar


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a worker has to know to come to the same plan.

    Attributes:
        config: the file's path, or its content.
        changes: applied to it.
        folder: the benchmark's, held by the process that starts the workers.
        only: labels of the runs that are worked on.
        certificate: the level, which the table in the folder may have raised.
        data_root, device: as for ``run_benchmark``.
        trusted: modules that stored files may name.
        locks: see ``Workspace.locks``; filled in by ``run_rows``.
    """

    config: str | dict[str, Any]
    changes: list[str]
    folder: str
    only: list[str]
    certificate: str
    data_root: str | None
    device: str
    trusted: list[str]
    locks: str = ""

    @classmethod
    def of(
        cls,
        config: str | Path | Mapping[str, Any],
        work: Workspace,
        changes: Sequence[str],
        data_root: str | Path | None,
    ) -> Request | None:
        """The request for a benchmark; None where its config cannot be handed to another process."""
        try:
            text = json.dumps(dict(config) if isinstance(config, Mapping) else str(config))
        except (TypeError, ValueError):  # objects of the caller's own
            return None
        if "__main__:" in text:  # code of a program or notebook that another process does not have
            return None
        return cls(
            config=json.loads(text),
            changes=list(changes),
            folder=str(work.folder),
            only=[run.label for run in work.chosen],
            certificate=work.plan.config.evaluation.certificate,
            data_root=None if data_root is None else str(data_root),
            device=work.data.device.type,
            trusted=trusted(),
        )

    def plan(self) -> Plan:
        """The checked config under the folder's name."""
        if isinstance(self.config, str):
            plan = load(Path(self.config), changes=self.changes)
        else:
            plan = resolve(self.config, changes=self.changes)
        evaluation = plan.config.evaluation.model_copy(update={"certificate": self.certificate})
        update = {"name": Path(self.folder).name, "evaluation": evaluation}
        return replace(plan, config=plan.config.model_copy(update=update))


def jobs_for(plan: Plan, rows: int, device: str) -> int:
    """How many rows go side by side where the user leaves it open.

    One, unless the config says how many threads a row takes: that number is part of how its sums are rounded.
    """
    threads = plan.config.threads
    if threads is None or device != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(rows, cores // threads))


def run_rows(work: Workspace, request: Request, jobs: int) -> Iterator[None]:
    """Work on all rows in so many processes; yields whenever one row is done.

    Raises:
        UserError: what a worker raised, or that it ended without a word. The others are stopped.
    """
    events: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
    rows = iter(work.longest_first())
    with tempfile.TemporaryDirectory() as locks:
        start = {"request": asdict(replace(request, locks=locks)), "table": table_of(work.plan)}
        workers: list[_Worker] = []
        bars: dict[tuple[int, int], Task] = {}
        try:
            workers += (_Worker(number, start, events) for number in range(jobs))
            busy = {w.number for w in workers if w.give(next(rows, None))}
            while busy:
                number, event = events.get()
                kind = event.pop("event")
                if kind == "done":
                    busy.discard(number)
                    yield
                    if workers[number].give(next(rows, None)):
                        busy.add(number)
                elif kind == "error":
                    raise UserError(event["text"])
                elif kind == "end":
                    raise UserError(f"{work.folder}: a process ended: {event['text']}")
                else:
                    _display(work.show, bars, number, kind, event)
        finally:
            for bar in bars.values():
                bar.close()
            for worker in workers:
                worker.stop()


def _display(
    show: Progress, bars: dict[tuple[int, int], Task], number: int, kind: str, event: Mapping[str, Any]
) -> None:
    if kind == "note":
        show.note(event["text"])
        return
    key = number, int(event["bar"])
    if kind == "start":
        bars[key] = show.start(event["title"], event["total"], event["unit"], event["done"])
    elif kind == "advance":
        bars[key].advance(event["amount"], event["info"])
    else:
        bars.pop(key).close()


class _Worker:
    """One process, as the one that started it sees it."""

    def __init__(
        self, number: int, start: Mapping[str, Any], events: queue.Queue[tuple[int, dict[str, Any]]]
    ) -> None:
        self.number = number
        self._said = tempfile.TemporaryFile("w+b")  # noqa: SIM115 (closed by ``stop``)
        self._process = subprocess.Popen(
            command("robustbench_sparse.workers"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment(),
        )
        self._write(start)
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def give(self, row: tuple[Any, int] | None) -> bool:
        """Let it work on a row; False where there is none."""
        if row is None:
            return False
        self._write({"run": row[0].label, "seed": row[1]})
        return True

    def stop(self) -> None:
        """End it, wherever it is: what it writes is whole or not there."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not yet written to a process that is gone
                    stream.close()
        self._said.close()

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
                events.put((self.number, json.loads(line)))
            code = self._process.wait()
            self._said.seek(0)
            said = self._said.read().decode(errors="replace")
        except ValueError:  # closed by ``stop``
            return
        events.put((self.number, {"event": "end", "text": last_words(said, code)}))


# In the worker ------------------------------------------------------------------------------------------


class _Piped:
    """Progress as lines of JSON."""

    def __init__(self, out: IO[str]) -> None:
        self._out, self._bars = out, 0

    def say(self, event: str, **facts: Any) -> None:
        """One line."""
        self._out.write(json.dumps({"event": event, **facts}) + "\n")
        self._out.flush()

    def start(self, title: str, total: int, unit: str, done: int = 0) -> Task:
        """A new bar, shown by the process that started this one."""
        self._bars += 1
        self.say("start", bar=self._bars, title=title, total=total, unit=unit, done=done)
        return _PipedBar(self, self._bars)

    def note(self, text: str) -> None:
        """A line that stays."""
        self.say("note", text=text)


class _PipedBar:
    def __init__(self, pipe: _Piped, number: int) -> None:
        self._pipe, self._number = pipe, number
        self._amount, self._info, self._said = 0, "", time.monotonic()

    def advance(self, amount: int, info: str = "") -> None:
        """So many more units are done; said in a while."""
        self._amount, self._info = self._amount + amount, info or self._info
        if time.monotonic() - self._said > _PAUSE_S:
            self._flush()

    def _flush(self) -> None:
        self._pipe.say("advance", bar=self._number, amount=self._amount, info=self._info)
        self._amount, self._said = 0, time.monotonic()

    def close(self) -> None:
        """The bar's work is over."""
        self._flush()
        self._pipe.say("close", bar=self._number)


def _tasks() -> queue.Queue[dict[str, Any]]:
    """Lines from standard input; at its end this process ends, whatever it is doing."""
    lines: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(json.loads(line))
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return lines


def main() -> None:
    """Work on rows until the input ends."""
    # What a plug-in prints must not pass for a report.
    pipe = _Piped(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    tasks = _tasks()
    try:
        start = tasks.get()
        request = Request(**start["request"])
        trust(request.trusted)
        plan = request.plan()
        if table_of(plan) != start["table"]:
            raise UserError(f"{request.config}: has changed since the benchmark was started")
        dataset = load_dataset(plan.dataset, request.data_root)
        data = plan.prepare(dataset, choose_device(request.device))
        by_label = {run.label: run for run in plan.runs}
        chosen = [by_label[label] for label in request.only]
        work = Workspace(Path(request.folder), plan, chosen, dataset, data, pipe, locks=Path(request.locks))
        with cpu_threads(plan.config.threads):
            while True:
                row = tasks.get()
                work.run(by_label[row["run"]], int(row["seed"]))
                pipe.say("done")
    except UserError as e:
        pipe.say("error", text=str(e))
    except Exception as e:  # a fault of ours or of a plug-in: one line is all that the other process can show
        import traceback

        traceback.print_exc()
        pipe.say("error", text=f"{type(e).__name__}: {one_line(e)}")


if __name__ == "__main__":
    main()

"""Rows side by side: processes that each work on one row of a benchmark at a time.

``python -m robustbench_sparse.workers`` is such a process. It gets a request on its standard input, then one row after
another, and says on its standard output, in lines of JSON, how far it is. It ends as soon as its input does: with the
process that started it, however that ended. A row's numbers are the same whichever process works on it.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch

from robustbench_sparse.config.dense_twins import with_widths
from robustbench_sparse.config.load import load, resolve
from robustbench_sparse.config.plan import Plan
from robustbench_sparse.config.plugins import trust, trusted
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.foundation.devices import choose_device
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.progress import Progress, Task
from robustbench_sparse.runs.manifest import table_of
from robustbench_sparse.runs.targets import images_of
from robustbench_sparse.workspace import Workspace

_PAUSE_S = 0.1  # between two reports of one bar


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a worker has to know to come to the same plan.

    Attributes:
        config: the file's path, or its content.
        changes: applied to it.
        folder: the benchmark's.
        only: labels of the runs that are worked on.
        certificate, certificate_seconds: the level, which the table in the folder may have raised, and its seconds.
        data_root, device: as for ``run_benchmark``.
        trusted: modules that stored files may name.
        threads: of the machine where the benchmark was started: how many a row takes may follow from it.
        log: kinds of logs that trainings write.
    """

    config: str | dict[str, Any]
    changes: list[str]
    folder: str
    only: list[str]
    certificate: str
    certificate_seconds: int | None
    data_root: str | None
    device: str
    trusted: list[str]
    threads: int
    log: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        config: str | Path | Mapping[str, Any],
        work: Workspace,
        changes: Sequence[str],
        data_root: str | Path | None,
        device: str | None = None,
    ) -> Request | None:
        """The request for a benchmark; None where its config cannot be handed to another process.

        ``device`` is as for ``run_benchmark``, where it is not that of this process.
        """
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
            certificate_seconds=work.plan.config.evaluation.certificate_seconds,
            data_root=None if data_root is None else str(data_root),
            device=device or work.data.device.type,
            trusted=trusted(),
            threads=torch.get_num_threads(),
            log=work.log,
        )

    def plan(self) -> Plan:
        """The checked config under the folder's name."""
        if isinstance(self.config, str):
            plan = load(Path(self.config), changes=self.changes)
        else:
            plan = resolve(self.config, changes=self.changes)
        evaluation = plan.config.evaluation.model_copy(
            update={"certificate": self.certificate, "certificate_seconds": self.certificate_seconds}
        )
        update = {"name": Path(self.folder).name, "evaluation": evaluation}
        return replace(plan, config=plan.config.model_copy(update=update))

    def workspace(self, table: Mapping[str, Any], show: Progress) -> Workspace:
        """The benchmark as the process that asks has it.

        Args:
            table: what its table is made by there.
            show: where progress goes.

        Raises:
            UserError: the config has changed since, or something that it names is not here.
        """
        trust(self.trusted)
        torch.set_num_threads(self.threads)
        plan = self.plan()
        if table_of(plan) != table:
            raise UserError(f"{self.config}: has changed since the benchmark was started")
        dataset = load_dataset(plan.dataset, self.data_root)
        plan = with_widths(plan, **images_of(dataset))
        data = plan.prepare(dataset, choose_device(self.device))
        by_label = {run.label: run for run in plan.runs}
        chosen = [by_label[label] for label in self.only]
        return Workspace(Path(self.folder), plan, chosen, dataset, data, show, tuple(self.log))


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
        work = Request(**start["request"]).workspace(start["table"], pipe)
        by_label = {run.label: run for run in work.plan.runs}
        while True:
            row = tasks.get()
            done = work.run(by_label[row["run"]], int(row["seed"]), wait=row["wait"])
            pipe.say("done" if done else "held")
    except UserError as e:
        pipe.say("error", text=str(e))
    except Exception as e:  # a fault of ours or of a plug-in: one line is all that the other process can show
        import traceback

        traceback.print_exc()
        pipe.say("error", text=f"{type(e).__name__}: {one_line(e)}")


if __name__ == "__main__":
    main()

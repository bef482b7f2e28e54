"""Outcomes on their way to the disk: batch by batch, and joined when all are there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.fences import LeaseLost, remove_tree
from robustbench_sparse.foundation.files import read_json, write_atomically, write_json
from robustbench_sparse.foundation.progress import Progress, Task
from robustbench_sparse.runs import names
from robustbench_sparse.runs.outcomes import UNDECIDED
from robustbench_sparse.runs.seals import Seals
from robustbench_sparse.runs.shards import Shards

Batch = tuple[Tensor, Tensor, Tensor]  # images, labels, their positions in the data set
Batches = Callable[[], Iterable[Batch]]  # in order, from the first on, whenever it is asked
JudgesBatch = Callable[[Tensor, Tensor, Tensor], pd.DataFrame]  # positions, images, labels -> records


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One outcome as it is to be.

    Attributes:
        label: its name in the folder.
        key: everything that determines its numbers; another key's outcome is made anew.
        facts: what else its account says, by name.
    """

    label: str
    key: dict[str, Any]
    facts: Mapping[str, Any]


class _Broken(Exception):
    """A batch of a shard cannot be made."""


@dataclass
class _Work:
    """An outcome at work: its batches' files in order, what makes them, and those that the bar has seen."""

    wanted: Wanted
    paths: list[Path]
    batches: Batches
    judge: JudgesBatch
    task: Task
    seen: set[Path]

    def make(self, path: Path, batch: Batch) -> pd.DataFrame:
        """The rows of one batch, written, with the seconds that each image took."""
        (x, y, index), began = batch, time.perf_counter()
        table = self.judge(index, x, y)
        table["seconds"] = (time.perf_counter() - began) / len(table)
        write_atomically(path, lambda f: table.to_csv(f, index=False))
        self.see(path, table)
        return table

    def see(self, path: Path, table: pd.DataFrame) -> None:
        """Move the bar on, unless it has seen this batch."""
        if path not in self.seen:
            self.seen.add(path)
            self.task.advance(len(table))


class OutcomeStore:
    """The outcomes in one run's folder.

    Args:
        run: the folder.
        batch_size: images in one batch; a killed evaluation goes on after its last whole batch.
        show: where progress goes.
        title: the bars' title.
        shards: parts of an outcome that other processes may make, see ``help``.
    """

    def __init__(self, run: Path, batch_size: int, show: Progress, title: str = "", shards: int = 1) -> None:
        self.run, self.batch_size = run, batch_size
        self.show, self.title = show, title
        self.seals = Seals(run)
        self.shards = Shards.of(run, shards)

    def is_done(self, label: str, key: Mapping[str, Any]) -> bool:
        """Whether a whole and valid outcome of this key is stored."""
        if not self.seals.holds(names.verdicts(label), names.account(label)):
            return False
        stored = read_json(self.run / names.account(label))
        return isinstance(stored, dict) and stored.get("key") == key and stored.get("status") == "ok"

    def collect(
        self,
        wanted: Wanted,
        batches: Batches,
        total: int,
        judge: JudgesBatch,
    ) -> pd.DataFrame:
        """The table of an outcome, one row per image: read if it is stored, else made and stored.

        Args:
            wanted: what it is.
            batches: gives the images in order, ``total`` together.
            total: how many.
            judge: makes the rows of one batch from positions, images and labels, with a column ``status``. What it
                raises, but for ``UserError``, ends the outcome: it is ``crashed`` then, and has the rows before.
        """
        label = wanted.label
        if self.is_done(label, wanted.key):
            self._forget(label)  # left by a process that was killed once the outcome was stored
            return read_table(self.run / names.verdicts(label))
        self._begin(wanted)
        work = self._work(wanted, batches, total, judge)
        tables: list[pd.DataFrame] = []
        reason = ""
        try:
            if self.shards is not None:
                with contextlib.suppress(_Broken):  # in order, below, it is met again
                    for wait in (False, True):  # what nobody is at; then what those that were have left
                        self._share(work, wait=wait)
            for path, batch in zip(work.paths, batches(), strict=True):
                if path.exists():
                    tables.append(read_table(path))
                    work.see(path, tables[-1])
                    continue
                try:
                    tables.append(work.make(path, batch))
                except (UserError, KeyboardInterrupt):
                    raise
                except BaseException as e:  # what an attack or a network raises is never robustness
                    reason = f"crashed: {type(e).__name__}: {one_line(e)[:200]}"
                    break
        finally:
            work.task.close()
        return self._join(wanted, tables, reason)

    def help(self, wanted: Wanted, batches: Batches, total: int, judge: JudgesBatch) -> bool:
        """Make shards of an outcome that another process collects; whether there was one that nobody was at.

        Arguments as of ``collect``. What ``judge`` raises ends the help, and is met by the other process, too.
        """
        if self.shards is None or not self.is_begun(wanted):
            return False
        work = self._work(wanted, batches, total, judge)
        try:
            return self._share(work, wait=False)
        except (_Broken, LeaseLost):
            return False
        finally:
            work.task.close()

    def is_begun(self, wanted: Wanted) -> bool:
        """Whether a process is collecting this outcome, or was when it was killed."""
        marker = self.run / names.parts(wanted.label) / "key.json"
        try:
            return marker.is_file() and bool(read_json(marker) == self._marked(wanted))
        except UserError:  # just being removed
            return False

    def _marked(self, wanted: Wanted) -> dict[str, Any]:
        return {"key": wanted.key, "batch_size": self.batch_size}

    def _work(self, wanted: Wanted, batches: Batches, total: int, judge: JudgesBatch) -> _Work:
        parts = self.run / names.parts(wanted.label)
        paths = [parts / f"{start:06d}.csv" for start in range(0, total, self.batch_size)]
        seen = {path for path in paths if path.exists()}
        done = min(len(seen) * self.batch_size, total)
        task = self.show.start(f"{self.title} {wanted.label}".strip(), total, "images", done)
        return _Work(wanted, paths, batches, judge, task, seen)

    def _share(self, work: _Work, *, wait: bool) -> bool:
        """Make every shard that no other process is at, or, on request, has left; whether there was one.

        Raises:
            _Broken: a batch cannot be made.
        """
        assert self.shards is not None
        found = False
        for number, shard in enumerate(self.shards.of_batches(work.paths)):
            if all(path.exists() for path in shard):
                continue
            with self.shards.held(work.wanted.label, number, wait=wait) as mine:
                todo = {path for path in shard if not path.exists()}
                if not (mine and todo and self.is_begun(work.wanted)):
                    continue
                found = True
                for path, batch in zip(work.paths, work.batches(), strict=True):
                    if path in todo:
                        try:
                            work.make(path, batch)
                        except (UserError, KeyboardInterrupt):
                            raise
                        except BaseException:  # what an attack or a network raises
                            raise _Broken from None
        return found

    def tidy(self) -> None:
        """Remove what a process left that was killed once an outcome was stored; all outcomes are."""
        for parts in self.run.glob(names.parts("*")):
            remove_tree(parts)

    def _begin(self, wanted: Wanted) -> None:
        """Make the folder of the batches, emptied where it holds those of another key or size."""
        parts = self.run / names.parts(wanted.label)
        marker, now = parts / "key.json", self._marked(wanted)
        if not (marker.exists() and read_json(marker) == now):
            remove_tree(parts)
            write_json(marker, now)

    def _forget(self, label: str) -> None:
        remove_tree(self.run / names.parts(label))

    def _join(self, wanted: Wanted, tables: list[pd.DataFrame], reason: str) -> pd.DataFrame:
        """Write the whole table and its account; they count once both are there."""
        table = (
            pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"status": [], "seconds": []})
        )
        lost = int((table["status"] == "nonfinite").sum())
        if bool((table["status"] == UNDECIDED).all()):  # none of them has a verdict: the outcome has none
            lost = len(table)
        if lost and not reason:
            reason = f"nonfinite: {lost} of {len(table)} images gave a value that is not finite"
        seconds = float(table.pop("seconds").sum())
        status = reason.partition(":")[0] if reason else "ok"
        account = {
            "label": wanted.label,
            "status": status,
            "reason": reason.partition(": ")[2],
            "n": len(table),
            **wanted.facts,
            "seconds": seconds,
            "flags": {k: int(v) for k, v in table["status"].value_counts().items() if k != "ok"},
            "key": wanted.key,
        }
        files = names.verdicts(wanted.label), names.account(wanted.label)
        with self.seals.renewing(*files):
            write_atomically(self.run / files[0], lambda f: table.to_csv(f, index=False))
            write_json(self.run / files[1], account)
        if status != "crashed":  # after a crash is mended, the batches judged before it still hold
            self._forget(wanted.label)
        return table


def read_table(path: Path) -> pd.DataFrame:
    """A table of verdicts as it was written; UserError where it is damaged."""
    try:
        # Python's own parser gives numbers back bit for bit: a resumed outcome equals an unbroken one.
        return pd.read_csv(path, engine="python")
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: damaged, delete it to judge again ({one_line(e)[:100]})") from None

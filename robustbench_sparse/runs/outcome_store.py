"""Outcomes on their way to the disk: batch by batch, and joined when all are there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.files import read_json, write_atomically, write_json
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.runs import names
from robustbench_sparse.runs.outcomes import UNDECIDED
from robustbench_sparse.runs.seals import Seals

Batch = tuple[Tensor, Tensor, Tensor]  # images, labels, their positions in the data set
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


class OutcomeStore:
    """The outcomes in one run's folder.

    Args:
        run: the folder.
        batch_size: images in one batch; a killed evaluation goes on after its last whole batch.
        show: where progress goes.
        title: the bars' title.
    """

    def __init__(self, run: Path, batch_size: int, show: Progress, title: str = "") -> None:
        self.run, self.batch_size = run, batch_size
        self.show, self.title = show, title
        self.seals = Seals(run)

    def is_done(self, label: str, key: Mapping[str, Any]) -> bool:
        """Whether a whole and valid outcome of this key is stored."""
        if not self.seals.holds(names.verdicts(label), names.account(label)):
            return False
        stored = read_json(self.run / names.account(label))
        return isinstance(stored, dict) and stored.get("key") == key and stored.get("status") == "ok"

    def collect(
        self,
        wanted: Wanted,
        batches: Iterable[Batch],
        total: int,
        judge: JudgesBatch,
    ) -> pd.DataFrame:
        """The table of an outcome, one row per image: read if it is stored, else made and stored.

        Args:
            wanted: what it is.
            batches: the images in order, ``total`` together.
            total: how many.
            judge: makes the rows of one batch from positions, images and labels, with a column ``status``. What it
                raises, but for ``UserError``, ends the outcome: it is ``crashed`` then, and has the rows before.
        """
        label = wanted.label
        if self.is_done(label, wanted.key):
            self._forget(label)  # left by a process that was killed once the outcome was stored
            return read_table(self.run / names.verdicts(label))
        parts = self._begin(wanted)
        done = sum(path.exists() for path in self._paths(parts, total))
        task = self.show.start(
            f"{self.title} {label}".strip(), total, "images", min(done * self.batch_size, total)
        )
        tables: list[pd.DataFrame] = []
        reason = ""
        try:
            for path, (x, y, index) in zip(self._paths(parts, total), batches, strict=True):
                if path.exists():
                    tables.append(read_table(path))
                    continue
                began = time.perf_counter()
                try:
                    table = judge(index, x, y)
                except (UserError, KeyboardInterrupt):
                    raise
                except BaseException as e:  # what an attack or a network raises is never robustness
                    reason = f"crashed: {type(e).__name__}: {one_line(e)[:200]}"
                    break
                table["seconds"] = (time.perf_counter() - began) / len(table)
                write_atomically(path, lambda f, t=table: t.to_csv(f, index=False))  # type: ignore[misc]
                tables.append(table)
                task.advance(len(table))
        finally:
            task.close()
        return self._join(wanted, tables, reason)

    def tidy(self) -> None:
        """Remove what a process left that was killed once an outcome was stored; all outcomes are."""
        for parts in self.run.glob(names.parts("*")):
            shutil.rmtree(parts, ignore_errors=True)

    def _begin(self, wanted: Wanted) -> Path:
        """The folder of the batches, emptied where it holds those of another key or size."""
        parts = self.run / names.parts(wanted.label)
        marker, now = parts / "key.json", {"key": wanted.key, "batch_size": self.batch_size}
        if not (marker.exists() and read_json(marker) == now):
            shutil.rmtree(parts, ignore_errors=True)
            write_json(marker, now)
        return parts

    def _paths(self, parts: Path, total: int) -> Iterator[Path]:
        return (parts / f"{start:06d}.csv" for start in range(0, total, self.batch_size))

    def _forget(self, label: str) -> None:
        shutil.rmtree(self.run / names.parts(label), ignore_errors=True)

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

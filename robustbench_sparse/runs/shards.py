"""Shards: parts of an outcome's batches that several processes make side by side.

Whoever judges a row collects its outcomes, and any other process may make shards of the one at work meanwhile. A shard
is held while it is made, as a row is (``foundation.locks``). What a batch gives depends on its images alone, so it does
not matter who makes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from robustbench_sparse.foundation.locks import row_locked
from robustbench_sparse.runs import names


@dataclass(frozen=True, kw_only=True)
class Shards:
    """How the outcomes in a run's folder are divided.

    Attributes:
        run: the folder, in that of a benchmark.
        count: shards of an outcome.
    """

    run: Path
    count: int

    @classmethod
    def of(cls, run: Path, count: int) -> Shards | None:
        """None where nothing is divided: for one shard, or a folder outside a benchmark's."""
        return cls(run=run, count=count) if count > 1 and run.parent.name == names.RUNS else None

    def of_batches(self, batches: Sequence[Path]) -> list[list[Path]]:
        """The batches of each shard, one behind the other; none without any."""
        size, more = divmod(len(batches), self.count)
        ends = [0]
        for number in range(min(self.count, len(batches))):
            ends.append(ends[-1] + size + (number < more))
        return [list(batches[a:b]) for a, b in itertools.pairwise(ends)]

    def held(self, label: str, number: int, *, wait: bool) -> AbstractContextManager[bool]:
        """Hold one shard of an outcome, as ``row_locked``."""
        return row_locked(
            self.run.parent.parent,
            f"{self.run.name}.{label}.{number}",
            wait=wait,
            waits=lambda: None,
            changes=self.run / names.parts(label),
        )

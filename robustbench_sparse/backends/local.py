"""This machine: rows in this process, or side by side in processes of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from robustbench_sparse.foundation import ahead
from robustbench_sparse.foundation.processes import WORKERS
from robustbench_sparse.pool import jobs_for, run_rows
from robustbench_sparse.workers import Request
from robustbench_sparse.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Local:
    """The back end ``local``.

    Attributes:
        jobs: rows side by side at most; None: as many as the cores and the memory allow for (see ``pool.jobs_for``).
    """

    jobs: int | None = None
    remote = False

    def check(self) -> None:
        """It can always be used."""

    def work(self, work: Workspace, request: Request | None) -> Iterator[None]:
        """Work on every row; yields after each. Those that another command works on come last."""
        count = jobs_for(work, self.jobs)
        if request is None or count == 1:
            ahead.drop(WORKERS)
            return _one_by_one(work)
        return run_rows(work, request, count)


def _one_by_one(work: Workspace) -> Iterator[None]:
    """Work on all rows in this process; yields after each."""
    held = []
    for run, seed in work.rows():
        if work.run(run, seed, wait=False):
            yield
        else:
            held.append((run, seed))
    for run, seed in held:
        work.run(run, seed)
        yield

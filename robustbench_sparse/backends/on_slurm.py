"""SLURM, through submitit: units as jobs of arrays; one that is preempted, or out of time, is queued again."""

from __future__ import annotations

import contextlib
import platform
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_sparse.backends.base import ATTEMPTS, Report, Unit
from robustbench_sparse.backends.units import ENTRY, Answer, call
from robustbench_sparse.foundation.errors import UserError, check_installed, cut, one_line
from robustbench_sparse.foundation.leases import give_back_all

if TYPE_CHECKING:
    from robustbench_sparse.workers import Request
    from robustbench_sparse.workspace import Workspace

LOGS = ".slurm"  # in the benchmark's folder: what jobs are given, and what they print
MOST = 1000  # jobs queued at once: many clusters allow no larger arrays
ASK_S, ASK_HERE_S = 5.0, 0.2  # between two looks at what has become of the jobs; of this machine's
JOIN_S = 1.0
TIMEOUTS = 1000  # after which a job is queued no more; each goes on where the last one stood
MINUTES = 24 * 60  # of a job, where nothing else is asked for


class Job:
    """One unit as a job: what is called there, and what is queued when the job is about to be ended."""

    def __call__(self, *arguments: Any) -> Answer:
        """Work on the unit, see ``units.call``, in a thread of its own.

        A job that is to end is told so by a signal, and submitit ends it by an exception in the first thread. Within
        the unit that would pass for an error of what it is just running.
        """
        answers: list[Answer] = []
        thread = threading.Thread(target=lambda: answers.append(call(*arguments)), daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(JOIN_S)
        return (
            answers[0] if answers else ("error", f"{platform.node()}: a unit cannot be run here; see its log")
        )

    def checkpoint(self, *arguments: Any) -> Any:
        """The same again: the unit goes on where it stands in its folder, whoever takes it up."""
        import submitit

        give_back_all()
        return submitit.helpers.DelayedSubmission(self, *arguments)


@dataclass(frozen=True, kw_only=True)
class OnSlurm:
    """The back end ``slurm``.

    Attributes:
        jobs: units in SLURM's hands at once, at most; None: ``MOST``.
        cluster: ``slurm``, or submitit's ``local``, which runs jobs on this machine.
        entry: what a unit calls, as module:function with the arguments of ``units.work_on``.
    """

    jobs: int | None = None
    cluster: str = "slurm"
    entry: str = ENTRY
    remote = True

    def check(self) -> None:
        """UserError without submitit, or where no job can be submitted."""
        check_installed(["submitit"], "slurm")
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise UserError("--backend slurm: there is no sbatch here; start it where jobs are submitted")

    def work(self, work: Workspace, request: Request | None) -> Iterator[None]:
        """Work on every row; yields after each."""
        from robustbench_sparse.backends.driver import spread

        return spread(work, request, self.opened)

    def opened(self, start: Path, units: Sequence[Unit]) -> SlurmEngine:
        """The engine.

        Args:
            start: what every unit is told first.
            units: all of them.
        """
        return SlurmEngine(start, cluster=self.cluster, jobs=self.jobs or MOST, entry=self.entry)


class SlurmEngine:
    """Units as jobs. Those that begin together and take the same are one array.

    Args:
        start: what every unit is told first; logs go to a folder beside the units'.
        cluster, jobs, entry: see ``OnSlurm``.
    """

    def __init__(self, start: Path, *, cluster: str, jobs: int, entry: str = ENTRY) -> None:
        self._start, self._entry, self._cluster = str(start), entry, cluster
        self._logs = start.parents[2] / LOGS
        self.most = jobs
        self._jobs: dict[Any, Unit] = {}
        self._deaths: Counter[str] = Counter()

    def submit(self, units: Sequence[Unit], *, wait: bool) -> None:
        """Queue units.

        Raises:
            UserError: ``sbatch`` refuses them.
        """
        kinds = defaultdict(list)
        for unit in units:
            kinds[unit.cpus, unit.gpus, unit.memory, unit.minutes, unit.slurm].append(unit)
        for some in kinds.values():
            try:
                self._queue(some, wait)
            except (
                OSError,
                ValueError,
                RuntimeError,
                AssertionError,
                NameError,
            ) as e:  # of submitit and of sbatch
                raise UserError(f"{some[0].title}: SLURM does not take it: {cut(one_line(e), 300)}") from None

    def _queue(self, units: Sequence[Unit], wait: bool) -> None:
        import submitit

        limit = {"slurm_max_num_timeout": TIMEOUTS} if self._cluster == "slurm" else {}
        executor = submitit.AutoExecutor(folder=self._logs, cluster=self._cluster, **limit)
        executor.update_parameters(**parameters_of(units[0], self._cluster, self.most))
        with executor.batch():
            jobs = [
                executor.submit(Job(), self._entry, self._start, unit.label, unit.seed, wait)
                for unit in units
            ]
        self._jobs |= dict(zip(jobs, units, strict=True))

    def hear(self, seconds: float) -> list[tuple[Unit, Report]]:
        """Units that have ended; waits so long for the first one."""
        pause = ASK_S if self._cluster == "slurm" else ASK_HERE_S
        until = time.monotonic() + max(seconds, pause)
        while not (ended := [job for job in self._jobs if job.done()]) and time.monotonic() < until:
            time.sleep(pause)
        found = []
        for job in ended:
            unit = self._jobs.pop(job)
            report = self._report(job, unit)
            if report is not None:
                found.append((unit, report))
        return found

    def close(self) -> None:
        """Take back every job that has not ended."""
        for job in self._jobs:
            with contextlib.suppress(Exception):  # it may just have ended
                job.cancel()
        self._jobs.clear()

    def _report(self, job: Any, unit: Unit) -> Report | None:
        """How a job ended; None where it died and is queued again."""
        import submitit

        try:
            state, text = job.result()
        except submitit.core.utils.FailedJobError as e:  # raised within the job, outside the unit
            return Report(
                "error", f"{unit.title}: {cut(one_line(str(e).strip().rpartition(chr(10))[2]), 300)}"
            )
        except submitit.core.utils.UncompletedJobError as e:
            self._deaths[unit.run_id] += 1
            if self._deaths[unit.run_id] >= ATTEMPTS:
                return Report("died", cut(one_line(str(e).strip().partition("\n")[0]), 200))
            self._queue([unit], True)
            return None
        return Report(state, text)


def parameters_of(unit: Unit, cluster: str, jobs: int) -> dict[str, Any]:
    """What submitit is told of a unit's job."""
    # A fraction of a processor or of a GPU cannot be asked for.
    found: dict[str, Any] = {
        "name": unit.label,
        "timeout_min": unit.minutes or MINUTES,
        "cpus_per_task": max(1, int(-(-unit.cpus // 1))),
        "gpus_per_node": int(-(-unit.gpus // 1)),
    }
    if unit.memory is not None:
        found["mem_gb"] = unit.memory
    if cluster == "slurm":
        found["slurm_array_parallelism"] = jobs
        found |= {f"slurm_{key}": value for key, value in unit.slurm}
    return found

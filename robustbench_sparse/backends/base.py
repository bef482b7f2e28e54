"""What back ends speak of: units of work, how they ended, and what gives them to an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:  # a unit elsewhere has not imported them yet
    from robustbench_sparse.workers import Request
    from robustbench_sparse.workspace import Workspace

ATTEMPTS = 3  # processes that may die of one unit

State = Literal["done", "held", "error", "died"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One row of a benchmark: a run and its seed, to be trained, judged and certified.

    Attributes:
        run_id: its name, and its folder's.
        label, seed: the row.
        cpus, gpus: processors that it takes.
        memory: GiB that it takes; None asks for nothing.
        minutes: that a job of SLURM has; None: the default there.
        slurm: what else ``sbatch`` is told.
        needs: ids of the units that have to be trained before.
        shards: processes that may work on it at once, once it is trained.
    """

    run_id: str
    label: str
    seed: int
    cpus: float = 1
    gpus: float = 0
    memory: float | None = None
    minutes: int | None = None
    slurm: tuple[tuple[str, str | int], ...] = ()
    needs: tuple[str, ...] = ()
    shards: int = 1

    @property
    def title(self) -> str:
        """As it is called in messages."""
        return f"runs.{self.label}, seed {self.seed}"


@dataclass(frozen=True)
class Report:
    """How a unit ended.

    Attributes:
        state: ``done``; ``held``: another process works on it; ``error``: something that the user can mend; ``died``:
            every process that worked on it ended.
        text: of an error, or the last words of a process.
    """

    state: State
    text: str = ""


class Engine(Protocol):
    """Something that runs units in processes of its own.

    Attributes:
        most: units that it is given at once, those that wait in it among them.
    """

    most: int

    def submit(self, units: Sequence[Unit], *, wait: bool) -> None:
        """Start units, or queue them; with ``wait`` each waits for another process that works on it."""
        ...

    def hear(self, seconds: float) -> list[tuple[Unit, Report]]:
        """Units that have ended; waits so long for the first one."""
        ...

    def close(self) -> None:
        """End every unit that still runs."""
        ...


class Backend(Protocol):
    """Where the rows of a benchmark are worked on.

    Attributes:
        remote: rows are worked on in other places than this process's machine and devices.
    """

    remote: bool

    def check(self) -> None:
        """UserError where it cannot be used at all, as without its package."""
        ...

    def work(self, work: Workspace, request: Request | None) -> Iterator[None]:
        """Work on every row; yields after each.

        Args:
            work: the benchmark.
            request: what another process has to know; None where that cannot be told.

        Raises:
            UserError: an error of a row, or of the engine. Whatever still ran has been ended.
        """
        ...

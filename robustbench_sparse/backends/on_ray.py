"""Ray: units as tasks on a cluster that runs already, or on one that is started on this machine for the command."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_sparse.backends.base import ATTEMPTS, Report, Unit
from robustbench_sparse.backends.joining import LOCAL, check_address, join
from robustbench_sparse.backends.units import ENTRY, counted
from robustbench_sparse.foundation.errors import UserError, check_installed, cut, one_line

if TYPE_CHECKING:
    from robustbench_sparse.workers import Request
    from robustbench_sparse.workspace import Workspace

RECHECK_S = 15.0  # of silence, after which it is looked whether any node could still take what is queued
PATIENCE_S = 300.0  # until a node that is gone has to be back, or another one there
AHEAD = 2  # units given to Ray for each that can run: the next one is there when one ends
MOST = 2000
CALLS = 500  # units of a process, after which a new one takes its place
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class OnRay:
    """The back end ``ray``.

    Attributes:
        jobs: units that Ray is given at once, at most; None: twice as many as can run.
        address: ``local`` starts Ray here for the length of the command, ``auto`` finds the one that this machine
            belongs to, HOST:PORT is that of a cluster's head.
        entry: what a unit calls, as module:function with the arguments of ``units.work_on``.
    """

    jobs: int | None = None
    address: str = LOCAL
    entry: str = ENTRY
    remote = True

    def check(self) -> None:
        """UserError without Ray, or where nothing answers at the address."""
        check_installed(["ray"], "ray")
        check_address(self.address)

    def work(self, work: Workspace, request: Request | None) -> Iterator[None]:
        """Work on every row; yields after each."""
        from robustbench_sparse.backends.driver import spread

        return spread(work, request, self.opened)

    def opened(self, start: Path, units: Sequence[Unit]) -> RayEngine:
        """The engine, connected.

        Args:
            start: what every unit is told first.
            units: all of them.

        Raises:
            UserError: Ray cannot be reached, or has no node for one of the units.
        """
        engine = RayEngine(start, address=self.address, jobs=self.jobs, entry=self.entry)
        try:
            engine.fit(units)
        except BaseException:
            engine.close()
            raise
        return engine


class RayEngine:
    """Units as tasks of Ray.

    A process that dies, or its node, is replaced by Ray itself; the unit goes on where it stood. Ray's object store
    holds nothing but a few words for each unit: all else is in the results' folder.

    Args:
        start: what every unit is told first.
        address, jobs, entry: see ``OnRay``.
    """

    def __init__(self, start: Path, *, address: str, jobs: int | None, entry: str = ENTRY) -> None:
        import ray

        self._ray: Any = ray
        self._start, self._entry, self._jobs = str(start), entry, jobs
        self.most = jobs or 1
        self._units: dict[Any, Unit] = {}
        self._heard = self._looked = time.monotonic()
        join(address)
        # A process keeps the GPU that it saw first: each unit with one is given a fresh process, as Ray does by itself.
        self._task = ray.remote(max_retries=ATTEMPTS - 1, max_calls=CALLS)(counted)
        self._task_on_gpu = ray.remote(max_retries=ATTEMPTS - 1, max_calls=1)(counted)

    def fit(self, units: Sequence[Unit]) -> None:
        """Find how many units can run at once.

        Raises:
            UserError: a unit that no node has enough for.
        """
        nodes = self._nodes()
        kinds = {(u.cpus, u.gpus, u.memory): u for u in units}
        for unit in kinds.values():
            check_fits(unit, nodes)
        side_by_side = max((fitting(unit, nodes) for unit in kinds.values()), default=1)
        self.most = self._jobs or min(MOST, AHEAD * side_by_side)

    def submit(self, units: Sequence[Unit], *, wait: bool) -> None:
        """Queue units."""
        for unit in units:
            memory = {} if unit.memory is None else {"memory": int(unit.memory * GIB)}
            kind = self._task_on_gpu if unit.gpus else self._task
            task = kind.options(num_cpus=unit.cpus, num_gpus=unit.gpus, name=unit.run_id, **memory)
            self._units[task.remote(self._entry, self._start, unit.label, unit.seed, wait)] = unit

    def hear(self, seconds: float) -> list[tuple[Unit, Report]]:
        """Units that have ended; waits so long for the first one.

        Raises:
            UserError: nothing ends, and there is no node any more that has enough for what is queued.
        """
        waiting = list(self._units)
        if not waiting:
            time.sleep(seconds)
            return []
        try:
            ended, _ = self._ray.wait(waiting, num_returns=1, timeout=seconds)
            if ended:
                ended, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
                self._heard = self._looked = time.monotonic()
            elif time.monotonic() - self._looked > RECHECK_S:
                self._look()
        except self._ray.exceptions.RayError as e:
            raise UserError(
                f"Ray is gone: {cut(one_line(e), 200)}; the same command goes on from here"
            ) from None
        return [(self._units.pop(task), self._report(task)) for task in ended]

    def _look(self) -> None:
        """UserError where for a while there has been no node that could take what is queued."""
        self._looked, nodes = time.monotonic(), self._nodes()
        kinds = {(u.cpus, u.gpus, u.memory): u for u in self._units.values()}
        lacking = [unit for unit in kinds.values() if not fitting(unit, nodes)]
        if not lacking:
            self._heard = time.monotonic()
        elif time.monotonic() - self._heard > PATIENCE_S:
            check_fits(lacking[0], nodes)

    def close(self) -> None:
        """End every unit that still runs, and leave Ray."""
        with contextlib.suppress(Exception):  # it may be gone: that is why this is called
            for task in self._units:
                self._ray.cancel(task, force=True)
        self._units.clear()
        self._ray.shutdown()

    def _report(self, task: Any) -> Report:
        try:
            state, text = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as e:  # not from within the unit: its code is not there
            return Report("error", f"a unit cannot be run on its node: {cut(one_line(e.cause), 300)}")
        except self._ray.exceptions.RayError as e:
            return Report("died", cut(one_line(str(e).partition("\n")[0] or type(e).__name__), 200))
        return Report(state, text)

    def _nodes(self) -> list[dict[str, float]]:
        nodes: list[dict[str, Any]] = self._ray.nodes()
        return [node["Resources"] for node in nodes if node["Alive"]]


# What there is ------------------------------------------------------------------------------------------


def _asked(unit: Unit) -> dict[str, float]:
    """What a unit asks of a node, by Ray's names."""
    asked = {"CPU": unit.cpus, "GPU": unit.gpus, "memory": (unit.memory or 0) * GIB}
    return {name: amount for name, amount in asked.items() if amount}


def fitting(unit: Unit, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many such units the nodes can run at once."""
    asked = _asked(unit)
    return sum(int(min(node.get(name, 0) / amount for name, amount in asked.items())) for node in nodes)


def check_fits(unit: Unit, nodes: Sequence[Mapping[str, float]]) -> None:
    """UserError where no node has as much as a unit asks for: Ray would wait for one for ever."""
    if fitting(unit, nodes):
        return
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in _shown(_asked(unit)).items())
    there = [", ".join(f"{v:g} {k}" for k, v in _shown(node).items()) or "nothing" for node in nodes]
    most = "; ".join(dict.fromkeys(there)) or "none is there"
    raise UserError(
        f"{unit.title}: takes {wanted}, which no node of the cluster has (nodes: {cut(most, 200)}); "
        "see `resources` in the config"
    )


def _shown(amounts: Mapping[str, float]) -> dict[str, float]:
    found = {name: amounts[name] for name in ("CPU", "GPU") if amounts.get(name)}
    return {**found, **({"GiB": round(amounts["memory"] / GIB, 1)} if amounts.get("memory") else {})}

"""From a benchmark's rows to units in an engine: leases begin, and what every unit has to know is written."""

from __future__ import annotations

import contextlib
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from robustbench_sparse.backends.base import Engine, Unit
from robustbench_sparse.backends.board import Board
from robustbench_sparse.backends.course import work_off
from robustbench_sparse.backends.order import units_of
from robustbench_sparse.backends.units import START
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import write_json
from robustbench_sparse.foundation.locks import begin_leases
from robustbench_sparse.runs import names
from robustbench_sparse.runs.manifest import table_of
from robustbench_sparse.runs.seals import Seals
from robustbench_sparse.workers import Request
from robustbench_sparse.workspace import Workspace

UNITS = ".units"  # in the benchmark's folder: of every command that runs units elsewhere, a folder

OpensEngine = Callable[[Path, Sequence[Unit]], Engine]  # the file that units start with, and all units


def spread(work: Workspace, request: Request | None, opened: OpensEngine) -> Iterator[None]:
    """Work on every row of a benchmark in an engine; yields after each.

    Raises:
        UserError: a config that another process cannot have; an error of a row; what the engine says.
    """
    if request is None:
        raise UserError(
            "the config holds objects of this program, which no other host has: expected plain values, and "
            "plug-ins by package.module:name"
        )
    begin_leases(work.folder)
    units = units_of(work)
    if request.device == "auto" and not any(unit.gpus for unit in units):
        request = replace(request, device="cpu")  # what a unit did not ask for it may not take
    with _started(work, request) as start:
        engine = opened(start, units)
        try:
            board = Board(start.parent, work.show)
            yield from work_off(units, engine, work.show, board, lambda unit: _is_trained(work.folder, unit))
        finally:
            engine.close()


@contextlib.contextmanager
def _started(work: Workspace, request: Request) -> Iterator[Path]:
    """The file that says what every unit has to know; also how a host finds out whether it shares the folder."""
    folder = work.folder.absolute() / UNITS / uuid.uuid4().hex[:12]
    about = {
        "request": {**asdict(request), **_absolute(request)},
        "table": table_of(work.plan),
        "path": [str(Path(p).absolute()) for p in sys.path if p],
        "cwd": str(Path.cwd()),
    }
    try:
        write_json(folder / START, about)
        yield folder / START
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def _absolute(request: Request) -> dict[str, object]:
    """Its paths, as they are from any working folder."""

    def whole(path: str | None) -> str | None:
        return None if path is None else str(Path(path).absolute())

    config = whole(request.config) if isinstance(request.config, str) else request.config
    return {"config": config, "folder": whole(request.folder), "data_root": whole(request.data_root)}


def _is_trained(folder: Path, run_id: str) -> bool:
    return Seals(folder / names.RUNS / run_id).has(names.TRAINING)

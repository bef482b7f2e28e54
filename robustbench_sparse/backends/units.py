"""What a process elsewhere does for one unit. Nothing heavy is imported before it is known that there is work."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_sparse.backends.base import ATTEMPTS
from robustbench_sparse.backends.board import FolderProgress
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.fences import LeaseLost
from robustbench_sparse.foundation.tuning import tune_process

if TYPE_CHECKING:
    from robustbench_sparse.workspace import Workspace

ENTRY = "robustbench_sparse.backends.units:work_on"
START = "start.json"  # in a folder beside the runs: what every unit has to know
LATE_S = 5.0  # until a new file is seen on another host
Answer = tuple[str, str]  # a state and a text, see ``base.Report``

_show = FolderProgress()
_open: dict[
    str, Workspace
] = {}  # by the file it was started with: the last one, for the next unit of this process


def call(entry: str, start: str, label: str, seed: int, wait: bool) -> Answer:
    """What an engine runs: a function by its name, which is all that has to be handed over.

    Args:
        entry: module:function.
        start, label, seed, wait: see ``work_on``.
    """
    module, _, name = entry.partition(":")
    unit: Callable[[str, str, int, bool], Answer] = getattr(importlib.import_module(module), name)
    return unit(start, label, seed, wait)


def counted(entry: str, start: str, label: str, seed: int, wait: bool) -> Answer:
    """``call``, unless ``ATTEMPTS`` processes have begun with this unit and died: Ray itself tries for ever after some
    deaths, as of memory."""
    tries = Path(start).with_name(f"{label}-s{seed}.tries")
    with contextlib.suppress(OSError):  # a folder that is not shared: the unit says so
        with tries.open("a") as file:
            file.write(".")
        if tries.stat().st_size > ATTEMPTS:
            return "died", f"{ATTEMPTS} processes ended without a word, as of too little memory"
    answer = call(entry, start, label, seed, wait)
    tries.unlink(missing_ok=True)
    return answer


def work_on(start: str, label: str, seed: int, wait: bool) -> Answer:
    """Train, judge and certify one row, as far as that is not done.

    Args:
        start: the file that says of which benchmark, see ``driver``.
        label, seed: the row.
        wait: for another process that works on it.
    """
    try:
        work = _workspace(Path(start))
        run = next(run for run in work.plan.runs if run.label == label)
        _show.begin(Path(start).with_name(f"{work.place(run, seed).run_id}.json"))
        return ("done" if work.run(run, seed, wait=wait) else "held"), ""
    except LeaseLost as e:
        return "held", str(e)
    except UserError as e:
        return "error", str(e)
    except Exception as e:  # a fault of ours or of a plug-in: one line is all that the other process can show
        import traceback

        traceback.print_exc()
        return "error", f"{type(e).__name__}: {one_line(e)}"


def _workspace(start: Path) -> Workspace:
    """The benchmark, read once by each process."""
    if str(start) not in _open:
        asked = read_start(start)
        sys.path.extend(p for p in asked["path"] if p not in sys.path)
        if Path(asked["cwd"]).is_dir():
            os.chdir(asked["cwd"])
        tune_process()  # before torch is imported
        from robustbench_sparse.workers import Request

        _open.clear()
        _open[str(start)] = Request(**asked["request"]).workspace(asked["table"], _show)
    return _open[str(start)]


def read_start(start: Path) -> dict[str, Any]:
    """What the command left for its units.

    Raises:
        UserError: this host does not see it, so it does not share the results' folder.
    """
    until = time.monotonic() + LATE_S
    while not start.is_file():
        home = start.parents[2]
        if not home.is_dir() or time.monotonic() > until:
            raise UserError(
                f"{home}: host {platform.node()} does not see what the command wrote there: "
                "give --out a folder that all hosts share"
            )
        time.sleep(LATE_S / 10)
    found: dict[str, Any] = json.loads(start.read_text())
    return found

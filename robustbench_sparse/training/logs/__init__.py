"""Where the course of a training goes while it lasts, beside ``history.csv``, which is there at its end.

A log is told of every epoch by the one loop, and knows nothing of it. No number depends on one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustbench_sparse.foundation.errors import UserError, check_installed, near
from robustbench_sparse.training.logs.base import Log, Logs
from robustbench_sparse.training.logs.csv_file import CsvLog
from robustbench_sparse.training.logs.tensorboard import TensorBoardLog

LOGS: dict[str, type[CsvLog] | type[TensorBoardLog]] = {"csv": CsvLog, "tensorboard": TensorBoardLog}

__all__ = ["LOGS", "Log", "check_logs", "log_of"]


def check_logs(kinds: Sequence[str]) -> None:
    """UserError for a kind of log that there is not, or whose package is not installed."""
    for kind in kinds:
        if kind not in LOGS:
            raise UserError(f"--log: expected {', '.join(LOGS)}, got {kind!r}{near(kind, LOGS)}")
        check_installed(LOGS[kind].packages, kind)


def log_of(kinds: Sequence[str], folder: Path, run_id: str) -> Log:
    """The logs of these kinds of one run, as one.

    Args:
        kinds: of ``LOGS``; none is no log at all.
        folder: of all logs of a benchmark.
        run_id: the run's.
    """
    return Logs([LOGS[kind](folder / kind, run_id) for kind in dict.fromkeys(kinds)])

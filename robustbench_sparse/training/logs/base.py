"""What the training loop tells a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

History = Sequence[Mapping[str, float]]  # a row per epoch, as in history.csv


class Log(Protocol):
    """The course of one training, while it lasts."""

    def epoch(self, history: History) -> None:
        """An epoch has ended; its row is the last one. A training that was interrupted goes on with all its rows."""
        ...

    def close(self) -> None:
        """The training has ended, or is interrupted."""
        ...


class Logs:
    """Several logs as one; none at all, by default."""

    def __init__(self, logs: Sequence[Log] = ()) -> None:
        self._logs = logs

    def epoch(self, history: History) -> None:
        """Tell all of them."""
        for log in self._logs:
            log.epoch(history)

    def close(self) -> None:
        """Close all of them."""
        for log in self._logs:
            log.close()

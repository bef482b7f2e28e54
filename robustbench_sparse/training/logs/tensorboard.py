"""TensorBoard's event files: ``tensorboard --logdir results/<benchmark>/logs/tensorboard``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from robustbench_sparse.training.logs.base import History

_WHEN = ("stage", "epoch")


class TensorBoardLog:
    """``<folder>/<run id>/``: a curve for every number of an epoch, over the epochs passed in all stages.

    What a defense says of itself stands under its name. A training that goes on after an interrupt goes on here, too.

    Args:
        folder: of the logs of this kind.
        run_id: the run's.
    """

    packages: ClassVar[tuple[str, ...]] = ("tensorboard",)

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder = folder / run_id
        self._writer: Any = None

    def epoch(self, history: History) -> None:
        """Write the last row, and on a first look those before it that are not there yet."""
        first = len(history) - 1
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # an extra

            went_on = self.folder.is_dir() and any(self.folder.iterdir())
            # What an interrupted sitting wrote of an epoch that is trained again is taken back.
            self._writer = SummaryWriter(str(self.folder), purge_step=len(history) if went_on else None)
            first = first if went_on else 0
        for passed in range(first, len(history)):
            self._write(history[passed], passed + 1)
        self._writer.flush()

    def _write(self, row: Mapping[str, float], passed: int) -> None:
        for name, value in row.items():
            if name not in _WHEN and math.isfinite(value):
                self._writer.add_scalar(name.replace(".", "/"), value, passed)

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()

"""A CSV that grows by a line an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pandas as pd

from robustbench_sparse.foundation.files import write_text
from robustbench_sparse.training.logs.base import History


class CsvLog:
    """``<folder>/<run id>.csv``: the columns of ``history.csv``, whole after every epoch.

    Args:
        folder: of the logs of this kind.
        run_id: the run's.
    """

    packages: ClassVar[tuple[str, ...]] = ()

    def __init__(self, folder: Path, run_id: str) -> None:
        self.path = folder / f"{run_id}.csv"

    def epoch(self, history: History) -> None:
        """Write all rows anew: a later epoch may have columns that earlier ones have not."""
        write_text(self.path, pd.DataFrame(list(history)).to_csv(index=False))

    def close(self) -> None:
        """Nothing: the file is whole."""

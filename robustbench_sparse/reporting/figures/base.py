"""What all figures are: settings, and how they are drawn of the folders of runs, or of leaderboards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from robustbench_sparse.runs.folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Figures(ABC):
    """Base of all figures; its fields are options of the command, with a dash for each underscore.

    Attributes:
        published: the published figures that it corresponds to.
        fewest, most: how many runs, or tables, it takes.
    """

    published: ClassVar[str]
    fewest: ClassVar[int] = 1
    most: ClassVar[int] = 100


@dataclass(frozen=True, kw_only=True)
class TableDrawing(Figures):
    """A figure of leaderboards: counted from a benchmark's folder, or as they were written."""

    most: ClassVar[int] = 8

    @abstractmethod
    def draw(self, figure: Figure, tables: Sequence[pd.DataFrame]) -> None:
        """Draw leaderboards onto an empty figure, which gets the size it needs.

        Raises:
            UserError: a table has not got what the figure shows.
        """


@dataclass(frozen=True, kw_only=True)
class Drawing(Figures):
    """A figure of runs."""

    @abstractmethod
    def draw(self, figure: Figure, runs: Sequence[RunFolder]) -> None:
        """Draw runs onto an empty figure, which gets the size it needs.

        Raises:
            UserError: a run has not got what the figure shows.
        """


def check(fine: bool, setting: str, expected: str, got: object) -> None:
    """Raise ValueError ``setting: expected ..., got ...`` unless a setting is fine."""
    if not fine:
        raise ValueError(f"{setting}: expected {expected}, got {got!r}")

"""What all figures are: settings, and how they are drawn of the folders of runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from robustbench_sparse.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Drawing(ABC):
    """Base of all figures; its fields are options of the command, with a dash for each underscore.

    Attributes:
        published: the published figures that it corresponds to.
        fewest, most: how many runs it takes.
    """

    published: ClassVar[str]
    fewest: ClassVar[int] = 1
    most: ClassVar[int] = 100

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

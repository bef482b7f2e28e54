"""What all studies are: settings, a run that ends in a table and a figure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from attacks.base import check
from robustbench_sparse.foundation.progress import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]


class Result(ABC):
    """What a study has found."""

    @property
    @abstractmethod
    def table(self) -> pd.DataFrame:
        """All numbers, as the CSV has them."""

    @abstractmethod
    def lines(self) -> Sequence[str]:
        """The few lines that say what came out."""

    @abstractmethod
    def draw(self, figure: Figure) -> None:
        """Draw onto an empty figure, which gets the size it needs."""


@dataclass(frozen=True, kw_only=True)
class Study(ABC):
    """Base of all studies; a setting's value is checked when the study is built.

    The same settings and seed give the same table.

    Attributes:
        published: what of the papers it corresponds to.
        seed: of everything that is drawn, >= 0.
    """

    published: ClassVar[str]
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.seed >= 0, "seed", "a whole number >= 0", self.seed)

    @abstractmethod
    def run(self, show: Progress) -> Result:
        """Work it out.

        Raises:
            UserError: something that it needs is missing or cannot be read.
        """


def check_all(
    values: Sequence[Any], setting: str, expected: str, fine: Sequence[bool], *, most: int = 100
) -> None:
    """ValueError unless there are 1 to ``most`` different values, and each is fine."""
    check(1 <= len(values) <= most, setting, f"1 to {most} values", values)
    check(len(set(values)) == len(values), setting, "different values", values)
    for value, good in zip(values, fine, strict=True):
        check(good, setting, expected, value)

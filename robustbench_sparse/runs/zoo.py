"""The networks that come with the package: folders of runs without their outcomes, and ``zoo.json`` beside.

Names are ``<data>/<network>``, as in ``mnist/lenet-trades``; commands call them ``zoo:mnist/lenet-trades``. Every file
is held against the hash in ``files.json`` before it is read, and nothing in a folder is imported or run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, Field

from attacks.base import Norm
from robustbench_sparse.foundation.errors import UserError, near, one_line
from robustbench_sparse.foundation.files import read_as
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.seals import Seals

PREFIX = "zoo:"
_NEEDED = (names.ZOO, names.ZOO_IMAGES, names.RUN, names.TRAINING, names.WEIGHTS)
HOME = Path(__file__).parents[1] / "zoo" / "networks"


class _Images(BaseModel):
    channels: int = Field(ge=1)
    size: int = Field(ge=1)
    classes: int = Field(ge=2)


class _Threat(BaseModel):
    norm: Norm
    eps: float = Field(ge=0)


class _Facts(BaseModel):
    data: dict[str, Any]
    dataset: str
    images: _Images
    threat: _Threat
    attacks: dict[str, dict[str, Any]]
    evaluation: dict[str, Any]
    row: dict[str, Any]
    environment: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ZooNetwork:
    """One network of the zoo and what was measured of it.

    Attributes:
        name: ``<data>/<network>``.
        folder: where it lies.
        data: config entry of the data set that it was trained and judged on.
        dataset: what that data set is called.
        images: ``channels``, ``size``, ``classes``.
        norm, eps: the threat that it was judged under.
        attacks: label -> config entry, all that it was judged by.
        evaluation: ``limit`` and ``draws`` of that.
        row: its row of the leaderboard, as written: rates in percent with ``_lo`` and ``_hi``, counts, verdict, commit.
        environment: processor and versions of its training.
    """

    name: str
    folder: Path
    data: dict[str, Any]
    dataset: str
    images: dict[str, int]
    norm: Norm
    eps: float
    attacks: dict[str, dict[str, Any]]
    evaluation: dict[str, Any]
    row: dict[str, Any]
    environment: dict[str, Any]

    @property
    def rates(self) -> list[str]:
        """Columns of ``row`` that are rates with an interval."""
        return [c for c in self.row if f"{c}_lo" in self.row and f"{c}_hi" in self.row]

    @property
    def place(self) -> RunFolder:
        """Its folder, as that of a run."""
        return RunFolder.at(self.folder)

    def verdicts(self) -> pd.DataFrame:
        """Share of draws classified right, one row per image, by its position in the data set; a column per rate.

        Where the checks' adversarials lower ``worst``, it is nan on the images that they did not examine.

        Raises:
            UserError: the file was changed or is damaged.
        """
        Seals(self.folder).check(names.ZOO_IMAGES)
        path = self.folder / names.ZOO_IMAGES
        try:
            table: pd.DataFrame = pd.read_csv(path, index_col="index").astype("float64")[self.rates]
        except (ValueError, KeyError) as e:
            raise UserError(f"{path}: damaged: {one_line(e)}") from None
        return table


def names_of(home: Path = HOME) -> list[str]:
    """The names of all networks, in order."""
    return sorted(
        path.parent.relative_to(home).as_posix() for path in home.glob(f"*/*/{names.ZOO}") if path.is_file()
    )


def find(name: str, home: Path = HOME) -> ZooNetwork:
    """A network by its name, with or without ``zoo:`` before it.

    Raises:
        UserError: there is none of that name, or one of its files is missing or was changed.
    """
    name = name.removeprefix(PREFIX)
    known = names_of(home)
    if name not in known:
        raise UserError(
            f"{PREFIX}{name}: no such network{near(name, known)}; `list zoo` shows all {len(known)}"
        )
    return _read(name, home / name)


def _read(name: str, folder: Path) -> ZooNetwork:
    seals = Seals(folder)
    seals.check()
    for needed in _NEEDED:
        if not seals.has(needed):
            seals.check(needed)  # which says that it does not count
    facts = read_as(folder / names.ZOO, _Facts)
    return ZooNetwork(
        name=name,
        folder=folder,
        norm=facts["threat"]["norm"],
        eps=float(facts["threat"]["eps"]),
        **{k: facts[k] for k in ("data", "dataset", "images", "attacks", "evaluation", "row", "environment")},
    )


def every(home: Path = HOME) -> Sequence[ZooNetwork]:
    """All networks, in the order of their names; UserError as for ``find``."""
    return [_read(name, home / name) for name in names_of(home)]

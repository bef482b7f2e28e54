"""Verdicts of every image, of all rows of a report: read once, for what compares rows image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.paired import mcnemar
from robustbench_sparse.pages.methods import DENSE, sparse_method
from robustbench_sparse.pages.rows import Row
from robustbench_sparse.runs.outcomes import verdicts

MOST = 25  # rows that one is compared with on its page


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What one row says of every image: positions, and whether it stands (0 or 1; -1: not looked at)."""

    index: Sequence[int]
    stands: npt.NDArray[np.int8]
    column: str


@dataclass(frozen=True, kw_only=True)
class Flips:
    """One row against another on the same images.

    Attributes:
        other: the row that it is held against.
        both, mine, theirs, neither: images that stand in both, here alone, there alone, in none.
        p: of McNemar's exact test.
        first: positions of the first images that stand there alone.
    """

    other: Row
    both: int
    mine: int
    theirs: int
    neither: int
    p: float
    first: Sequence[int]


def sights_of(rows: Sequence[Row]) -> dict[str, Sight]:
    """Row's id -> its verdicts under the worst case, or on clean images where there is none; those that have any."""
    out = {}
    for row in rows:
        entry = row.entry
        if entry.folder is None or not entry.manifest or entry.manifest.get("task") == "restore":
            continue
        try:
            found = verdicts(entry.folder, entry.manifest)
        except UserError:
            continue
        column = "worst" if "worst" in found.columns else "clean"
        if column in found.columns:
            stands = (found.columns[column].to_numpy() >= 0.5).astype(np.int8)
            if column == "worst" and found.stands is not None:
                seen = np.zeros(len(stands), dtype=bool)
                seen[found.stands] = True
                stands[~seen] = -1
            out[row.id] = Sight(index=found.index, stands=stands, column=column)
    return out


def flips_of(row: Row, rows: Sequence[Row], sights: Mapping[str, Sight]) -> list[Flips]:
    """A row against the others of its benchmark and seed, its dense parent first; at most ``MOST``."""
    mine = sights.get(row.id)
    if mine is None:
        return []
    parent = parent_of(row, rows)
    others = [r for r in rows if r is not row and _family(r) == _family(row) and r.id in sights]
    others.sort(key=lambda r: (r is not parent, _distance(r, row)))
    out = []
    for other in others[:MOST]:
        theirs = sights[other.id]
        if theirs.column != mine.column or list(theirs.index) != list(mine.index):
            continue
        a, b = mine.stands, theirs.stands
        seen = (a >= 0) & (b >= 0)
        only_a, only_b = int(((a == 1) & (b == 0) & seen).sum()), int(((a == 0) & (b == 1) & seen).sum())
        places = np.flatnonzero((a == 0) & (b == 1) & seen)[:10]
        out.append(
            Flips(
                other=other,
                both=int(((a == 1) & (b == 1)).sum()),
                mine=only_a,
                theirs=only_b,
                neither=int(((a == 0) & (b == 0)).sum()),
                p=mcnemar(only_a, only_b),
                first=[int(mine.index[i]) for i in places],
            )
        )
    return out


def parent_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The dense row of the same benchmark, seed and training that a sparse row is measured by; None without one.

    It has the row's methods but those that make it sparse, the same model, and no zeros.
    """
    if (row.entry.row.get("weight_sparsity") or 0.0) < DENSE:
        return None
    kept = [m for m in row.entry.methods if sparse_method([m]) == "none"]
    for other in rows:
        dense = (other.entry.row.get("weight_sparsity") or 0.0) < DENSE
        same = _family(other) == _family(row) and other.entry.row.get("model") == row.entry.row.get("model")
        if dense and same and [*other.entry.methods] == kept:
            return other
    return None


def _family(row: Row) -> tuple[Any, ...]:
    return row.entry.home, row.entry.row["benchmark"], row.entry.row.get("seed")


def _distance(a: Row, b: Row) -> float:
    return abs(float(a.entry.row.get("worst", 0.0)) - float(b.entry.row.get("worst", 0.0)))

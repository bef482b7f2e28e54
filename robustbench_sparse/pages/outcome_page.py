"""What a run's page shows of its verdicts: accuracy of every class, and what was taken for what under attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.foundation.texts import printable
from robustbench_sparse.pages.boards import Entry
from robustbench_sparse.runs import names
from robustbench_sparse.runs.outcomes import read_outcome

MOST_CLASSES = 20  # in a table of confusions; beyond it only the most frequent ones are named
MOST_PAIRS = 20


@dataclass(frozen=True, kw_only=True)
class ClassRate:
    """A class: its images, and the percent of them that stand, with its 95 % Wilson interval."""

    name: str
    n: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Verdicts of one outcome by class.

    Attributes:
        column: ``clean``, or the attack's label.
        classes: of every class its rate.
        counts: images by their class (row) and the class that they were taken for (column); empty for too many classes.
        pairs: the most frequent mistakes: class, taken for, images.
    """

    column: str
    classes: Sequence[ClassRate]
    counts: Sequence[Sequence[int]]
    pairs: Sequence[tuple[str, str, int]]


def confusions_of(entry: Entry, classes: Sequence[str]) -> list[Confusion]:
    """On clean images, and under every attack whose outcomes are here, the strongest first.

    Args:
        entry: a row with its folder.
        classes: names of the data set's classes; numbers stand for those that have none.
    """
    labels = sorted(
        (a for a in entry.manifest.get("attacks", ()) if a in entry.row), key=lambda a: float(entry.row[a])
    )
    out = []
    for label in [names.CLEAN, *labels]:
        predicted, right = ("pred", "correct") if label == names.CLEAN else ("adv_pred", "adv_correct")
        try:
            table, _, _ = (
                read_outcome(entry.folder, label, ("index", "label", right, predicted), None)
                if entry.folder
                else (None, "", 0.0)
            )
        except UserError:
            continue  # without predictions, as of an earlier version; the rate's own gap says what is wrong with it
        if table is not None:
            out.append(_confusion(label, table, predicted, right, classes))
    return out


def _confusion(
    column: str, table: pd.DataFrame, predicted: str, right: str, classes: Sequence[str]
) -> Confusion:
    truth = table["label"].to_numpy(dtype=int)
    guess = table[predicted].fillna(-1).to_numpy(dtype=int)
    count = max(int(truth.max()), int(guess.max()), len(classes) - 1) + 1
    named = [printable(classes[i]) if i < len(classes) else str(i) for i in range(count)]
    rates = []
    for label in range(count):
        mine = table[right][truth == label]
        if len(mine):
            low, high = wilson(float(mine.sum()), len(mine))
            rates.append(
                ClassRate(
                    name=named[label],
                    n=len(mine),
                    rate=100 * float(mine.mean()),
                    low=100 * low,
                    high=100 * high,
                )
            )
    known = guess >= 0
    counts = np.zeros((count, count), dtype=int)
    np.add.at(counts, (truth[known], guess[known]), 1)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [
        (named[i // count], named[i % count], int(wrong[i // count, i % count])) for i in map(int, order)
    ]
    return Confusion(
        column=column,
        classes=rates,
        counts=counts.tolist() if count <= MOST_CLASSES else [],
        pairs=[p for p in pairs if p[2]],
    )

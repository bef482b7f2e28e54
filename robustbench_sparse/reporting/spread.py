"""How far retrainings differ where nothing changed but the machine, or the seed: measured on purpose, and allowed for.

On another processor sums are rounded in another order, and a training goes another way from there. What a difference of
two rates on the same images may be is then no matter of the images alone. ``python -m benchmarks.machine_spread``
retrains a benchmark's rows and writes such a file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_sparse.config.columns import SPARSITIES
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.stored import numbers_in, read_csv

FILE = "spread.csv"  # beside a reference
MACHINE, SEED = "machine", "seed"
FEWEST = 3  # retrainings that a deviation is taken from
LOOSE = 20.0  # points
_LEVEL = 0.975  # two-sided 95 %, as the joint interval


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Deviations of retrainings.

    Attributes:
        deviations: kind -> (run, column) -> standard deviation in points, and how many retrainings it is taken from.
        seeds: run -> seeds that the reference has of it, where the seeds are others, too; else None.
    """

    deviations: Mapping[str, Mapping[tuple[str, str], tuple[float, int]]]
    seeds: Mapping[str, int] | None = None

    @property
    def over_seeds(self) -> bool:
        """Whether other seeds are allowed for, and not the machine alone."""
        return self.seeds is not None

    @property
    def of(self) -> str:
        """What it allows for, in words."""
        return "other seeds" if self.over_seeds else "other machines"

    def allowance(self, run: str, column: str, count: int = 1) -> float:
        """How many points, two-sided at 95 %, a retraining may differ by from the reference; 0 where not measured.

        Two draws, each with the deviation s that k retrainings had, differ by t s sqrt(2), with Student's t of k - 1
        degrees of freedom. Over seeds the reference is a mean of r, and what is compared the mean of ``count``:
        t s sqrt(1/r + 1/count); of that and of the machines' allowance, the larger.
        """
        from scipy.special import stdtrit  # Student's t; slow to import

        out = 0.0
        for kind, found in self.deviations.items():
            s, k = found.get((run, column), (0.0, 2))
            draws = 2.0
            if kind == SEED and self.seeds is not None:
                draws = 1 / max(1, self.seeds.get(run, 1)) + 1 / max(1, count)
            out = max(out, float(stdtrit(k - 1, _LEVEL)) * s * math.sqrt(draws))
        return out

    def loose(self) -> list[str]:
        """Numbers that retrainings move by more than ``LOOSE`` points: holding them says next to nothing."""
        found = dict.fromkeys(key for part in self.deviations.values() for key in part)
        allowed = ((f"{run} {column}", self.allowance(run, column)) for run, column in found)
        return [f"{name} by {points:.0f} points" for name, points in allowed if points > LOOSE]


def beside(reference: Path, *, seeds: bool = False, path: Path | None = None) -> Spread | None:
    """The spread that belongs to a reference.

    Args:
        reference: a leaderboard as CSV. Its own rows are retrainings over the seeds, where it has enough.
        seeds: allow for other seeds, too.
        path: the file; by default ``spread.csv`` beside the reference, if there is one.

    Returns:
        None where there is no file, and other seeds are not asked for.

    Raises:
        UserError: a damaged file; or too few seeds, where they are asked for.
    """
    file = path or reference.parent / FILE
    found: dict[str, dict[tuple[str, str], tuple[float, int]]] = {}
    if path is not None or file.is_file():
        found = read(file)
    if not seeds:
        return Spread(deviations={MACHINE: found[MACHINE]}) if found.get(MACHINE) else None
    own = read_csv(reference)
    if "run" in own and "seed" in own:
        found[SEED] = {**found.get(SEED, {}), **_deviations(own, str(reference))}
    if not found.get(SEED):
        raise UserError(
            f"{reference}: no spread over seeds: expected {FEWEST} seeds of a run in it, or rows of the kind 'seed' in "
            f"{file}"
        )
    return Spread(deviations=found, seeds=Counter(own["run"].astype(str)) if "seed" in own else {})


def read(path: Path) -> dict[str, dict[tuple[str, str], tuple[float, int]]]:
    """The deviations in a file of retrainings: a leaderboard's columns, and ``kind``, ``machine`` or ``seed``.

    Raises:
        UserError: it cannot be read, or lacks a column.
    """
    table = read_csv(path)
    for column in ("kind", "run", "seed"):
        if column not in table:
            raise UserError(f"{path}: expected a column {column!r}")
    odd = set(table["kind"]) - {MACHINE, SEED}
    if odd:
        raise UserError(
            f"{path}: column 'kind': expected {MACHINE} or {SEED}, got {sorted(map(str, odd))[0]!r}"
        )
    machines = table[table["kind"] == MACHINE]
    # One machine's own seed is a seed like the others.
    native = machines.drop_duplicates("run")
    seeds = pd.concat([native, table[table["kind"] == SEED]])
    return {
        kind: made
        for kind, part in ((MACHINE, machines), (SEED, seeds))
        if (made := _deviations(part, str(path)))
    }


def _deviations(table: pd.DataFrame, name: str) -> dict[tuple[str, str], tuple[float, int]]:
    """Of every run and column of percentages with enough retrainings."""
    out: dict[tuple[str, str], tuple[float, int]] = {}
    for column in (c for c in table.columns if _is_rate(table, c)):
        values = numbers_in(table[column], name, (0, 100), "percentages in [0, 100]")
        for run, part in values.groupby(table["run"], sort=False):
            known = part.dropna()
            if len(known) >= FEWEST:
                out[str(run), column] = (float(known.std(ddof=1)), len(known))
    return out


def _is_rate(table: pd.DataFrame, column: str) -> bool:
    """Whether a column is a rate of images, or a sparsity; all others say something about the row."""
    cells: pd.Series[Any] = table[column]
    if column in SPARSITIES:
        return True
    aside = (
        "seed",
        "n",
        "worst_n",
        "rank",
        "detectable",
        "train_",
        "eval_",
        "published_",
        "parameters",
        "macs",
    )
    texts = not pd.api.types.is_numeric_dtype(cells)
    named = column.startswith(aside) or column.endswith(("_lo", "_hi", "_std", "parameters", "macs"))
    return not texts and not named

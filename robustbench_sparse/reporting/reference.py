"""Comparing a leaderboard with a reference, so that a change that costs accuracy does not pass unseen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from robustbench_sparse.config.columns import BELIEF, IDENTITY, PUBLISHED, SECONDS, SPARSITIES, TRAIN
from robustbench_sparse.foundation.errors import UserError, shown
from robustbench_sparse.foundation.intervals import difference, wilson
from robustbench_sparse.foundation.texts import printable
from robustbench_sparse.reporting.leaderboard import tabulate
from robustbench_sparse.reporting.render import from_rows, to_text
from robustbench_sparse.reporting.spread import Spread
from robustbench_sparse.reporting.stored import numbers_in, read_csv
from robustbench_sparse.sparsity.claims import POINTS

Kind = Literal["fell", "improved", "broken"]
_EQUAL = ("parameters", "macs")
_WITHOUT_ATTACKS = ("clean", *SPARSITIES, *_EQUAL)
_NOT_COMPARED = {
    *(*IDENTITY, *SECONDS, *BELIEF, *TRAIN),
    *("seeds", "status", "run_id", "commit", "asked", "nonzero_parameters", "sparse_macs"),
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that is not as the reference says.

    Attributes:
        run: name of the run, with its seed where the reference has seeds.
        column: name of the column, empty when the row is gone.
        reference: the value it should have; nan where there is none to give.
        measured: the value found; nan for an empty cell.
        problem: what is wrong, in words.
        kind: ``fell``; ``improved``, where a rate or a share of zeros is higher; ``broken``, where nothing can be
            compared.
    """

    run: str
    column: str
    reference: float
    measured: float
    problem: str
    kind: Kind = "broken"


def check(
    measured: Path | pd.DataFrame, reference: Path | pd.DataFrame, *, spread: Spread | None = None
) -> list[Difference]:
    """Compare a leaderboard with a reference; an empty list means that all the reference states still holds.

    * A rate differs when 0 lies outside the joint 95 % interval (Newcombe's) of measured minus reference.
      The reference's number of images is its column ``n``; without one, its rates are taken as exact. In a
      reference without seeds the mean over the measured seeds is compared, as if measured on the images of
      one seed, since all seeds see the same images. A spread widens the interval by what retrainings differ by:
      with (l, u) around the difference d and the allowance a, it goes from d - sqrt((d - l)^2 + a^2) to
      d + sqrt((u - d)^2 + a^2).
    * A sparsity differs when it is off by more than 0.1 percentage points and the allowance; ``parameters`` and
      ``macs`` when they are not equal.
    * A row or column that is gone, or a cell that became empty, is a difference. New ones are not.
    * Rows that both say by which protocol they were judged are not compared under attack where these are different:
      that is a difference of its own. All else is compared. ``worst`` stands on ``worst_n`` images, where that is said.

    Args:
        measured: a benchmark's folder, a leaderboard as CSV, or the table of ``leaderboard.tabulate``.
        reference: a CSV with a column ``run``, perhaps ``seed`` and ``n``, and any columns of the
            leaderboard. ``leaderboard.csv`` and ``leaderboard_seeds.csv`` of earlier results are such files.
        spread: how far retrainings were seen to differ, see ``spread``. One over seeds lets other seeds be measured:
            the means over the seeds are compared then.

    Raises:
        UserError: a file that cannot be read, or a reference that states nothing.
    """
    ours = str(measured) if isinstance(measured, Path) else "measured"
    name = str(reference) if isinstance(reference, Path) else "reference"
    found, wanted = _table(measured, ours), _table(reference, name)
    if spread is not None and spread.over_seeds:
        wanted = means_over_seeds(wanted)
    keys = ["run", "seed"] if "seed" in wanted.columns else ["run"]
    columns = [c for c in wanted.columns if not _is_aside(c)]
    if wanted.empty or not columns:
        raise UserError(f"{name}: states no rate and no sparsity to compare with")
    for key in keys:
        if key not in found.columns:
            raise UserError(f"{ours}: expected a column {key!r}, as {name} has one")
    for column in columns:
        bounds = None if column in (*SPARSITIES, *_EQUAL) else (0, 100)
        for table, source in ((wanted, name), (found, ours)):
            if column in table.columns:
                table[column] = numbers_in(table[column], source, bounds, "percentages in [0, 100]")
    out: list[Difference] = []
    for _, row in wanted.iterrows():
        rows = found
        for key in keys:
            rows = rows[rows[key] == row[key]]
        run = _name(row)
        if rows.empty:
            out.append(_difference(run, "", math.nan, math.nan, "the row is gone"))
            continue
        kept, other = _comparable(run, columns, row, rows)
        out += other
        out += [d for c in kept if (d := _compare(run, c, row, rows, spread)) is not None]
    return out


def rows_of(reference: Path | pd.DataFrame, *, across_seeds: bool = False) -> list[str]:
    """Names of the rows that a reference has, as ``check`` calls them."""
    table = _table(reference, str(reference) if isinstance(reference, Path) else "reference")
    if across_seeds:
        table = means_over_seeds(table)
    return [_name(row) for _, row in table.iterrows()]


def means_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """A reference without its seeds: of each run the means, on as many images as its smallest row."""
    if "seed" not in table.columns:
        return table
    numbers = [c for c in table.select_dtypes("number").columns if c not in ("seed", "n", "worst_n")]
    groups = table.groupby("run", sort=False)
    parts = [groups[numbers].mean(), groups[[c for c in ("n", "worst_n") if c in table]].min()]
    if "protocol" in table:
        parts.append(groups[["protocol"]].first())
    out: pd.DataFrame = pd.concat(parts, axis=1).reset_index()
    return out


def _comparable(
    run: str, columns: Sequence[str], row: pd.Series[Any], rows: pd.DataFrame
) -> tuple[list[str], list[Difference]]:
    """The columns that a row's protocol allows to compare, and a difference where that is not all of them."""
    if "protocol" not in row.index or "protocol" not in rows.columns:
        return list(columns), []
    wanted = "" if pd.isna(row["protocol"]) else str(row["protocol"])
    found = " ".join(dict.fromkeys(str(p) for p in rows["protocol"].dropna() if p))
    kept = [c for c in columns if c in _WITHOUT_ATTACKS]
    if not wanted or not found or wanted == found or len(kept) == len(columns):
        return list(columns), []
    problem = f"judged by {found}, the reference by {wanted}: not compared under attack"
    return kept, [_difference(run, "protocol", math.nan, math.nan, problem)]


def text_of(differences: Sequence[Difference]) -> str:
    """The differences as a table in plain text, one line each, under a heading."""
    heads = ["run", "column", "reference", "measured", "problem"]
    rows = []
    for d in differences:
        numbers = ["" if math.isnan(v) else f"{v:.2f}" for v in (d.reference, d.measured)]
        rows.append([d.run, d.column, *numbers, d.problem])
    return to_text(from_rows(heads, rows, texts=["run", "column", "problem"]), rule=False)


def _compare(
    run: str, column: str, row: pd.Series[Any], rows: pd.DataFrame, spread: Spread | None
) -> Difference | None:
    """One cell of the reference against the same cell of the measured rows (several seeds: their mean)."""
    wanted = float(row[column])
    if math.isnan(wanted):
        return None
    if column not in rows.columns:
        return _difference(run, column, wanted, math.nan, "the column is gone")
    value = float(rows[column].mean(skipna=False))
    if math.isnan(value):
        status = "; ".join(dict.fromkeys(str(s) for s in rows.get("status", ()) if s != "ok"))
        return _difference(run, column, wanted, value, f"the cell is empty ({status or 'no reason given'})")
    kind: Kind = "fell" if value < wanted else "improved"
    if column in _EQUAL:
        problem = "expected to be equal"
        return None if value == wanted else _difference(run, column, wanted, value, problem, "fell")
    allowed = 0.0 if spread is None else spread.allowance(str(row["run"]), column, len(rows))
    beside = "" if spread is None or not allowed else f" (with {allowed:.1f} points for {spread.of})"
    if column in SPARSITIES:
        # The slack is for binary fractions: 80.1 - 80.0 is above 0.1 in floating point.
        if abs(value - wanted) <= POINTS + allowed + 1e-9:
            return None
        problem = f"more than {POINTS + allowed:.3g} points apart{beside}"
        return _difference(run, column, wanted, value, problem, kind)
    counted = "worst_n" if column == "worst" and "worst_n" in rows.columns else "n"
    images = float(rows[counted].min(skipna=False)) if counted in rows.columns else math.nan
    if math.isnan(images):
        return _difference(run, column, wanted, value, "the measured row has no n")
    known = row.get("worst_n") if column == "worst" else None
    low, high = _interval(
        value, int(images), wanted, row.get("n") if known is None or pd.isna(known) else known
    )
    gap = value - wanted
    low, high = gap - math.hypot(gap - low, allowed), gap + math.hypot(high - gap, allowed)
    if low <= 0 <= high:
        return None
    problem = f"95 % interval of the difference: {low:+.2f} to {high:+.2f}{beside}"
    return _difference(run, column, wanted, value, problem, kind)


def _interval(value: float, n: int, reference: float, n_reference: Any) -> tuple[float, float]:
    """95 % interval of measured minus reference, all in percent; without its n the reference is exact."""
    if n_reference is None or pd.isna(n_reference):
        low, high = wilson(min(value / 100 * n, n), n)
        return 100 * low - reference, 100 * high - reference
    m = int(n_reference)
    low, high = difference(min(value / 100 * n, n), n, min(reference / 100 * m, m), m)
    return 100 * low, 100 * high


def _difference(
    run: str, column: str, reference: float, measured: float, problem: str, kind: Kind = "broken"
) -> Difference:
    return Difference(
        run=run, column=column, reference=reference, measured=measured, problem=problem, kind=kind
    )


def _is_aside(column: str) -> bool:
    """Whether a column describes the row or another column, and states no result of its own."""
    return column in _NOT_COMPARED or column.endswith(("_lo", "_hi")) or column.startswith(PUBLISHED)


def _table(source: Path | pd.DataFrame, name: str) -> pd.DataFrame:
    """A table with the columns ``run`` and perhaps ``seed``; over seeds, the means under the plain names."""
    if isinstance(source, pd.DataFrame):
        table = source
    else:
        table = tabulate(source) if source.is_dir() else read_csv(source)
    means = {c: c.removesuffix("_mean") for c in table.columns if c.endswith("_mean")}
    spreads = [f"{column}_std" for column in means.values()]
    out: pd.DataFrame = table.rename(columns=means).drop(columns=[c for c in spreads if c in table.columns])
    if "run" not in out.columns:
        raise UserError(f"{name}: expected a column 'run'")
    twice = out.columns[out.columns.duplicated()]
    if len(twice):
        raise UserError(f"{name}: column {shown(twice[0])} stands there twice")
    if out["run"].isna().any():
        raise UserError(f"{name}: column 'run': expected a name in every row, got an empty cell")
    out["run"] = [printable(run) for run in out["run"]]
    if "seed" in out.columns:
        out["seed"] = _seeds(out["seed"], name)
    for column in ("n", "worst_n"):
        if column in out.columns:
            out[column] = numbers_in(out[column], name, (1, 2**53), "numbers of images >= 1")
    keys = [key for key in ("benchmark", "run", "seed") if key in out.columns]
    again = out[out.duplicated(keys)]
    if len(again):
        raise UserError(f"{name}: the row {shown(_name(again.iloc[0]))} stands there twice")
    return out


def _seeds(cells: pd.Series[Any], name: str) -> pd.Series[int]:
    numbers = numbers_in(cells, name)
    bad = cells[~(numbers % 1 == 0)]
    if len(bad):
        raise UserError(f"{name}: column 'seed': expected whole numbers, got {shown(bad.tolist()[0])}")
    return numbers.astype("Int64")


def _name(row: pd.Series[Any]) -> str:
    """How a row is named to people."""
    return str(row["run"]) + (f" (seed {row['seed']})" if "seed" in row.index else "")

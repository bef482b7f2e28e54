"""Ranks of a leaderboard's rows: within one protocol, with the ranks that are possible and what could be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robustbench_sparse.foundation.ranking import LEVEL, POWER, Ranking, ranking
from robustbench_sparse.runs.evidence import REFUTED

METHOD = (
    f"Ranks go by the worst case, from the smallest to the largest that is possible: image by image, over all pairs at "
    f"{100 * LEVEL:g} % together (Holm)."
)
WORST, STANDS = "_worst", "_stands"  # of a row: each image's verdict, and the images that these stand on
Row = dict[str, Any]


def rank(rows: Sequence[Row]) -> None:
    """Give every row with a worst case its rank among those of its seed and protocol, and over all seeds.

    ``rank`` is 1 + the number of rows that are better by more than chance, so that rows that cannot be told apart share
    one, and ``rank_high`` the largest rank that is possible; see ``ranking``. Rows whose number stands on the
    examined images are compared with others on these. Refuted rows share the last rank, without an interval, and are
    compared with none. ``detectable`` is the smallest difference that neighbouring rows would show, in points, the same
    for all rows of a seed and protocol. ``rank_seeds``, ``rank_seeds_high`` and ``detectable_seeds`` are the same for
    the mean over the seeds. Rows of other protocols, and those without one, have no part in it.
    """
    runs, seeds = (list(dict.fromkeys(row[k] for row in rows)) for k in ("run", "seed"))
    of = {(row["run"], row["seed"]): row for row in rows}
    for chosen, end in [*(([seed], "") for seed in seeds), (seeds, "_seeds")]:
        families: dict[str, dict[str, list[Row]]] = {}
        for run in runs:
            mine = [of.get((run, seed), {}) for seed in chosen]
            protocols = {str(row.get("protocol", "")) for row in mine}
            if all(WORST in row for row in mine) and len(protocols) == 1 and (name := protocols.pop()):
                families.setdefault(name, {})[run] = mine
        for family in families.values():
            for run, cells in _ranked(family).items():
                for row in (of[run, seed] for seed in chosen):
                    row.update(
                        {f"rank{end}": cells[0], f"rank{end}_high": cells[1], f"detectable{end}": cells[2]}
                    )
    for row in rows:
        for key in (WORST, STANDS):
            row.pop(key, None)


def _ranked(family: Mapping[str, Sequence[Row]]) -> dict[str, tuple[int, Any, float]]:
    """Run -> its rank, the largest possible one and the detectable difference in points."""
    refuted = [run for run, rows in family.items() if any(row["verdict"] == REFUTED for row in rows)]
    known = {run: rows for run, rows in family.items() if run not in refuted}
    alike = {run: rows for run, rows in known.items() if len({len(row[WORST]) for row in rows}) == 1}
    found = Ranking((), (), float("nan"))
    if len({len(rows[0][WORST]) for rows in alike.values()}) <= 1:
        found = ranking(
            # One seed's verdicts are their own mean.
            [np.mean([row[WORST] for row in rows], axis=0) for rows in alike.values()],
            [_common([row.get(STANDS) for row in rows]) for rows in alike.values()],
        )
    points = 100 * found.detectable
    cells = zip(found.low, found.high, strict=True)
    out: dict[str, tuple[int, Any, float]] = {
        run: (low, high, points) for run, (low, high) in zip(alike, cells, strict=bool(found.low))
    }
    return {**out, **{run: (len(alike) + 1, pd.NA, points) for run in refuted}}


def _common(stands: Sequence[Sequence[int] | None]) -> list[int] | None:
    """The images that the verdicts of all seeds stand on; None means all."""
    given = [set(places) for places in stands if places is not None]
    return sorted(set.intersection(*given)) if given else None


def notes_of(table: pd.DataFrame) -> list[str]:
    """What a table's ranks rest on, for people: its protocol, how it ranks, and what it could tell apart.

    Args:
        table: of ``leaderboard.tabulate`` or ``leaderboard.aggregate``.
    """
    if "protocol" not in table.columns or "rank" not in table.columns:
        return []
    names = list(dict.fromkeys(p for p in table["protocol"] if p))
    lines = [] if not names else [f"Protocol {names[0]}."]
    if len(names) > 1:
        lines = [
            f"Protocols {', '.join(names)}: rows of different protocols are not ranked against each other."
        ]
    if table["rank"].isna().all():
        return lines
    lines.append(METHOD)
    seen: dict[str, str] = {}
    for _, row in table.iterrows():
        if pd.isna(row["rank"]):
            continue
        where = ([f"seed {row['seed']}"] if "seed" in table and table["seed"].nunique() > 1 else []) + (
            [row["protocol"]] if len(names) > 1 else []
        )
        points = row["detectable"]
        seen.setdefault(" ".join(where), "none" if pd.isna(points) else f"{points:.1f} points")
    seen = {where: what for where, what in seen.items() if what != "none"}
    if seen:
        values = "; ".join(f"{what}{f' ({where})' if where else ''}" for where, what in seen.items())
        lines.append(
            f"Smallest difference that two neighbouring rows would show so with a power of {100 * POWER:g} %: {values}."
        )
    return lines

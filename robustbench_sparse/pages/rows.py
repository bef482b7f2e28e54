"""The rows of the report's leaderboard: cells, facets, and names that are safe in an address."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_sparse.foundation.texts import printable
from robustbench_sparse.pages.boards import Board, Entry
from robustbench_sparse.pages.cells import Cell, cell_of
from robustbench_sparse.pages.columns import Column
from robustbench_sparse.pages.evidence import Known, Proof, proof_of
from robustbench_sparse.pages.methods import band_of, division_of, fraction, structure_of

# Facet -> its title and the values that a row has in it.
FACETS: dict[str, tuple[str, Callable[[Entry], Sequence[str]]]] = {
    "benchmark": ("Benchmark", lambda e: [str(e.row["benchmark"])]),
    "data": ("Data", lambda e: [str(e.row.get("dataset", ""))]),
    "threat": ("Threat", lambda e: [threat_of(e)]),
    "model": ("Model", lambda e: [re.split(r"[(\s]", str(e.row.get("model", "")))[0]]),
    "method": ("Method", lambda e: list(e.methods) or ["none"]),
    "zeros": ("Structure of zeros", lambda e: [structure_of(e.row)]),
    "band": ("Sparsity", lambda e: [band_of(e.row)]),
    "training": ("Training", lambda e: [division_of(e.methods, e.row)]),
    "verdict": ("Verdict", lambda e: [str(e.row.get("verdict", ""))]),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as the page shows it.

    Attributes:
        id: its anchor, unlike all others: letters, digits, ``-`` and ``_``.
        entry: what it is made of.
        label: its run, printable.
        cells: in the columns' order.
        facets: facet -> values.
        proof: of its verdict; None where there is none.
        page: address of the run's page, "" where there is none.
    """

    id: str
    entry: Entry
    label: str
    cells: Sequence[Cell]
    facets: Mapping[str, Sequence[str]]
    proof: Proof | None
    page: str

    @property
    def complete(self) -> bool:
        """Whether nothing of it is missing: its status is ok, or ok with notes."""
        return str(self.entry.row.get("status", "")).startswith("ok")


def rows_of(
    boards: Sequence[Board],
    columns: Sequence[Column],
    known: Known,
    paged: Callable[[Entry], bool],
    latencies: Mapping[str, float] | None = None,
) -> list[Row]:
    """The rows of all boards: board after board, by rank, then by the worst case, then by the clean rate.

    Args:
        boards: see ``boards.boards_of``.
        columns: see ``columns.columns_of``.
        known: see ``evidence.proof_of``.
        paged: whether a row gets a page of its own.
        latencies: row's id -> milliseconds of one image, where they were measured.
    """
    out = []
    for board in boards:
        for entry in sorted(board.entries, key=_place):
            name = slug(entry)
            latency = (latencies or {}).get(name)
            out.append(
                Row(
                    id=name,
                    entry=entry,
                    label=printable(entry.row["run"]),
                    cells=[cell_of(column, entry, latency) for column in columns],
                    facets={key: [v for v in of(entry) if v] for key, (_, of) in FACETS.items()},
                    proof=proof_of(entry, known),
                    page=f"runs/{name}.html" if paged(entry) else "",
                )
            )
    return out


def _place(entry: Entry) -> tuple[Any, ...]:
    row = entry.row
    return int(row.get("seed", 0)), row.get("rank", 10**9), -row.get("worst", -1.0), -row.get("clean", -1.0)


def slug(entry: Entry) -> str:
    """A row's name in addresses and files: what can be read of it, and a hash that makes it unique."""
    benchmark, run, seed, run_id = entry.key
    text = re.sub(r"[^A-Za-z0-9_]+", "-", f"{benchmark}-{run}")[:60].strip("-")
    digest = hashlib.sha256("\n".join((benchmark, run, seed, run_id)).encode("utf-8", "replace")).hexdigest()
    return f"r-{text}-s{re.sub(r'[^0-9]+', '', seed)}-{digest[:6]}"


def threat_of(entry: Entry) -> str:
    """Norm and radius in a few letters; "" where nothing says them."""
    if entry.eps is None:
        return ""
    name = {"linf": "l∞", "l2": "l2"}.get(entry.norm, entry.norm)
    return f"{name} {fraction(entry.eps)}"

"""The leaderboards that a report is made of, row by row, with the folders that lie behind them where there are any."""

from __future__ import annotations

import datetime
import math
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_sparse.config import yaml_reader
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.pages.methods import methods_of
from robustbench_sparse.reporting.leaderboard import rates_of, tabulate_all
from robustbench_sparse.reporting.memo import Memo
from robustbench_sparse.runs import names, zoo
from robustbench_sparse.runs.manifest import read_manifest
from robustbench_sparse.runs.variants import MARK

ZOO = "zoo:"  # as a source: all networks that come with the package


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of a leaderboard: a run and its seed.

    Attributes:
        row: column -> value; what is empty is left out. Plain numbers and texts.
        rates: the columns of it that have an interval (``_lo``, ``_hi``).
        methods: names of what it was trained with.
        norm, eps: the threat; "" and None where nothing says so.
        date: day of the last verdict, or of the commit that a written table names; "" where it is not known.
        folder: the run's, None where the table alone is there.
        home: the benchmark's folder, and ``manifest`` its record; None and nothing for the zoo and for a table alone.
    """

    row: Mapping[str, Any]
    rates: Sequence[str]
    methods: Sequence[str] = field(init=False)
    norm: str = ""
    eps: float | None = None
    date: str = ""
    folder: Path | None = None
    home: Path | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", methods_of(str(self.row.get("defenses", ""))))

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes it another row than all others."""
        seed = str(self.row.get("seed", self.row.get("seeds", "")))
        return str(self.row["benchmark"]), str(self.row["run"]), seed, str(self.row.get("run_id", ""))


@dataclass(frozen=True, kw_only=True)
class Board:
    """A leaderboard. ``table`` has the columns of ``leaderboard.tabulate``, and ``entries`` its rows in order."""

    name: str
    table: pd.DataFrame
    entries: Sequence[Entry]


def boards_of(
    places: Sequence[Path | str], configs: Path | None = None, memo: Memo | None = None
) -> list[Board]:
    """All leaderboards of some sources; a row that several sources have is shown once, as the first has it.

    Args:
        places: ``results/<benchmark>``, a folder of several, a ``leaderboard.csv``, or ``zoo:``.
        configs: folder of the benchmarks' files: a written table does not say which threat it was made under, its
            file does. None for none.
        memo: rows that were read before; none by default.

    Raises:
        UserError: nothing there, or a file is damaged.
    """
    found: list[Board] = []
    seen: set[tuple[str, ...]] = set()
    for place in places:
        for table, home in [(_zoo_table(), None)] if str(place) == ZOO else _tables_of(Path(place), memo):
            entries = [e for e in _entries(table, home, configs) if e.key not in seen]
            seen.update(e.key for e in entries)
            if entries:
                kept = [e.key for e in entries]
                keys = [_key_of(row) for row in table.to_dict("records")]
                chosen = table[[k in kept for k in keys]].reset_index(drop=True)
                found.append(Board(name=str(entries[0].row["benchmark"]), table=chosen, entries=entries))
    if not found:
        raise UserError("report: expected results with at least one row")
    return found


def _tables_of(place: Path, memo: Memo | None) -> list[tuple[pd.DataFrame, Path | None]]:
    """The tables below a place, each with the benchmark's folder that it was counted from."""
    tables = tabulate_all(place, memo=memo)
    homes = {
        str(read_json(p)["name"]): p.parent
        for p in [*place.glob(names.BENCHMARK), *place.glob(f"*/{names.BENCHMARK}")]
    }
    return [(t, homes.get(str(t["benchmark"].iloc[0])) if len(t) else None) for t in tables]


@cache
def _networks() -> dict[str, zoo.ZooNetwork]:
    """The zoo's networks by name; read once, since every file is compared with its hash."""
    return {network.name: network for network in zoo.every()}


def _zoo_table() -> pd.DataFrame:
    """The rows that the zoo's records hold, as a table; each under its network's name."""
    rows = [
        {**network.row, "benchmark": "zoo", "run": name, "run_id": name}
        for name, network in _networks().items()
    ]
    table: pd.DataFrame = pd.DataFrame(rows)
    for column in ("flags", "defenses", "asked", "verdict"):
        table[column] = table[column].fillna("") if column in table else ""
    return table


def _key_of(row: Mapping[Any, Any]) -> tuple[str, ...]:
    return Entry(row=_plain(row), rates=()).key


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A table's row as plain values, without what is empty."""
    out: dict[str, Any] = {}
    for column, value in row.items():
        if isinstance(value, str):
            if value:
                out[str(column)] = value
        elif value is not None and not pd.isna(value):
            number = float(value)
            whole = not isinstance(value, float) and number.is_integer()
            if math.isfinite(number):
                out[str(column)] = int(number) if whole else number
    return out


def _entries(table: pd.DataFrame, home: Path | None, configs: Path | None) -> Iterable[Entry]:
    manifest = read_manifest(home) if home is not None else {}
    rates = [str(c) for c in rates_of(table)]
    written = (
        _threat_of(str(table["benchmark"].iloc[0]), configs) if home is None and len(table) else ("", None)
    )
    of_zoo = _networks() if home is None and set(table["benchmark"]) == {"zoo"} else {}
    for raw in table.to_dict("records"):
        row = {"status": "ok", **_plain(raw)}
        for column in ("seed", "n", "worst_n", "parameters", "nonzero_parameters", "macs", "sparse_macs"):
            if column in row:
                row[column] = int(row[column])
        network = of_zoo.get(str(row["run"]))
        norm: str
        eps: float | None
        if network is not None:
            norm, eps, folder = network.norm, network.eps, network.folder
        elif home is not None:
            norm, eps = str(manifest["threat"]["norm"]), float(manifest["threat"]["eps"])
            folder = home / names.RUNS / str(row["run_id"])
        else:
            (norm, eps), folder = written, None
        yield Entry(
            row=row,
            rates=[r for r in rates if r in row],
            norm=norm,
            eps=eps,
            date=_date_of(folder, str(row.get("commit", ""))),
            folder=folder if folder is not None and (folder / names.RUN).is_file() else None,
            home=home,
            manifest=manifest,
        )


def _threat_of(benchmark: str, configs: Path | None) -> tuple[str, float | None]:
    """The threat that a benchmark's file names; nothing where there is no such file."""
    file = None if configs is None else configs / f"{benchmark.partition(MARK)[0]}.yaml"
    if file is None or not file.is_file():
        return "", None
    try:
        threat = yaml_reader.read(file)[0]["threat"]
        return str(threat["norm"]), float(threat["eps"])
    except (KeyError, TypeError, ValueError, UserError):
        return "", None


def _date_of(folder: Path | None, commit: str) -> str:
    """Day of a run's last verdict, by its file's time; without one, of the commit, where its repository is here."""
    if folder is not None and (account := folder / names.account(names.CLEAN)).is_file():
        return (
            datetime.datetime.fromtimestamp(account.stat().st_mtime, datetime.timezone.utc).date().isoformat()
        )
    return _day_of(commit.removesuffix("-dirty")) if commit else ""


@cache
def _day_of(commit: str) -> str:
    if not commit.isalnum():
        return ""
    asked = ["git", "-C", str(Path(__file__).parent), "show", "-s", "--format=%cs", commit]
    try:
        out = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return out.stdout.strip() if out.returncode == 0 else ""

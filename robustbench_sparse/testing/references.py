"""References: a JSON file of rows, each with a network's verdict on every image and all that they rest on."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import filelock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustbench_sparse.foundation.errors import UserError, near, one_line, shown
from robustbench_sparse.foundation.files import read_json, write_json

FORMAT = 1
_LARGEST = 1 << 26  # bytes of a reference that is read


class NotComparable(UserError):
    """A reference says nothing of what was measured: it is missing, or of other images, or another protocol."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Network(_Strict):
    seed: int
    verdicts: Annotated[str, Field(pattern=r"^[01-]+$")]


class _Threat(_Strict):
    norm: Literal["linf", "l2"]
    eps: float = Field(ge=0)


class _Row(_Strict):
    protocol: str
    images: str
    threat: _Threat
    attacks: dict[str, dict[str, Any]]
    percent: float
    networks: Annotated[list[_Network], Field(min_length=1)]
    made: dict[str, str]


class _File(_Strict):
    format: Literal[1]
    rows: dict[str, _Row]


@dataclass(frozen=True, kw_only=True)
class Network:
    """The verdicts of one network.

    Attributes:
        seed: of its evaluation; of a benchmark's row, the row's.
        verdicts: one per image: ``1`` right, by most draws where the network is random, ``0`` wrong, ``-`` where the
            number does not stand on the image.
    """

    seed: int
    verdicts: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A number with all that it rests on.

    Attributes:
        protocol: attacks and certificate with their versions, see ``config.protocol``; ``clean`` without attacks.
        images: hash of the data set, and of the positions that were judged.
        threat: ``norm`` and ``eps``.
        attacks: label -> all that determines an attack's numbers.
        percent: right, mean over the networks, for people.
        networks: at least one.
        made: version, torch and processor that it was measured with; not compared.
    """

    protocol: str
    images: str
    threat: Mapping[str, Any]
    attacks: Mapping[str, Any]
    percent: float
    networks: tuple[Network, ...]
    made: Mapping[str, str]

    def plain(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {
            "protocol": self.protocol,
            "images": self.images,
            "threat": dict(self.threat),
            "attacks": dict(self.attacks),
            "percent": round(self.percent, 4),
            "networks": [{"seed": n.seed, "verdicts": n.verdicts} for n in self.networks],
            "made": dict(self.made),
        }


def read(path: Path) -> dict[str, Row]:
    """The rows of a reference by name; none where there is no file.

    Raises:
        UserError: the file is damaged, with the place.
    """
    if not path.exists():
        return {}
    if path.is_file() and path.stat().st_size > _LARGEST:
        raise UserError(f"{path}: expected a reference of at most {_LARGEST} bytes")
    try:
        found = _File.model_validate(read_json(path), strict=True)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100] or "the file"
        raise UserError(f"{path}: {where}: {one_line(first['msg'])}, got {shown(first['input'])}") from None
    return {name: _row(row) for name, row in found.rows.items()}


def _row(row: _Row) -> Row:
    networks = tuple(Network(seed=n.seed, verdicts=n.verdicts) for n in row.networks)
    facts = row.model_dump(include={"protocol", "images", "attacks", "percent", "made"})
    return Row(**facts, threat=row.threat.model_dump(), networks=networks)


def write(path: Path, rows: Mapping[str, Row]) -> None:
    """Put rows into a reference in place of those of the same names; all others stay as they are.

    Several processes may do so at once, as tests side by side.
    """
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    with filelock.FileLock(Path(tempfile.gettempdir()) / f"robustbench_sparse-{name}.lock"):
        known = {name: row.plain() for name, row in read(path).items()}
        known |= {name: row.plain() for name, row in rows.items()}
        write_json(path, {"format": FORMAT, "rows": {name: known[name] for name in sorted(known)}})


def find(path: Path, rows: Mapping[str, Row], name: str) -> Row:
    """A row by its name.

    Raises:
        NotComparable: there is none, with how to get it.
    """
    __tracebackhide__ = True
    if name not in rows:
        there = f"{near(name, rows)}; there are: {', '.join(rows)}" if rows else ""
        raise NotComparable(f"{path}: no row {name!r}{there}; pytest --rbs-update '{name}' writes it")
    return rows[name]


def check_comparable(path: Path, name: str, reference: Row, measured: Row) -> None:
    """NotComparable, with what differs, unless two rows were measured in the same way on the same images."""
    __tracebackhide__ = True
    where = f"{path}: row {name!r}"
    cure = f"; pytest --rbs-update '{name}' measures it anew"
    for what in ("protocol", "images", "threat", "attacks"):
        old, new = getattr(reference, what), getattr(measured, what)
        if old != new:
            shows = f"the reference has {shown(old, 80)}, measured {shown(new, 80)}"
            text = "other images" if what == "images" else f"another {what.removesuffix('s')}"
            raise NotComparable(f"{where}: {text}, so nothing is compared: {shows}{cure}")

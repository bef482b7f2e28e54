"""Two runs side by side, image by image: is the difference more than noise, and which images flip?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from robustbench_sparse.config.protocol import protocol
from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.foundation.files import read_keys
from robustbench_sparse.foundation.paired import compare
from robustbench_sparse.foundation.texts import printable
from robustbench_sparse.reporting.render import from_rows, to_text
from robustbench_sparse.runs import names
from robustbench_sparse.runs.manifest import check_run_folder, read_manifest
from robustbench_sparse.runs.outcomes import Verdicts, verdicts

FLIPS_SHOWN = 12
COLUMNS = (
    "attack", "n", "first", "second", "difference", "low", "high", "p", "lost", "won", "flips",
)  # fmt: skip
_FORMS = {"first": ".1f", "second": ".1f", "difference": "+.1f", "low": "+.1f", "high": "+.1f", "p": ".2g"}


def compare_runs(first: Path, second: Path, attack: str | None = None) -> pd.DataFrame:
    """The paired comparison of two runs on every column that both have.

    Args:
        first, second: runs' folders, ``results/<benchmark>/runs/<id>``, judged on the same images.
        attack: one column only: an attack's label, ``clean`` or ``worst``.

    Returns:
        One row per column: ``attack``; ``n``; ``first`` and ``second``, percent right; ``difference``, ``low``,
        ``high``, percentage points, first minus second, with its 95 % interval; ``p`` of the paired test; ``lost``
        and ``won``, how many images only the first, only the second has right; ``flips``, their positions in the
        data set, those lost with a minus. Where the two were judged by different protocols, ``worst`` is left out,
        and ``attrs["note"]`` says so. A number that stands on the examined images alone is compared on these.

    Raises:
        UserError: for folders without outcomes, other images, or a column that one of them lacks; for ``worst`` where
            the two were judged by different protocols.
    """
    (name_a, protocol_a, a), (name_b, protocol_b, b) = _read(first), _read(second)
    if a.index != b.index:
        raise UserError(
            f"{name_a} and {name_b}: judged on different images; only the same ones can be paired"
        )
    shared = [label for label in a.columns if label in b.columns]
    note = ""
    if protocol_a != protocol_b:
        note = f"judged by different protocols ({protocol_a} and {protocol_b}): their worst cases are not compared"
        if attack == "worst":
            raise UserError(f"{name_a} and {name_b}: {note}")
        shared = [label for label in shared if label != "worst"]
    if attack is not None:
        if attack not in shared:
            raise UserError(
                f"--attack {attack}: not judged in both{near(attack, shared)}; there are: {', '.join(shared)}"
            )
        shared = [attack]
    rows = []
    for label in shared:
        places = _places(label, a, b)
        one, other = (v.columns[label].iloc[places] for v in (a, b))
        found = compare(one.tolist(), other.tolist())
        flips = [f"-{a.index[places[i]]}" for i in found.lost] + [f"+{a.index[places[i]]}" for i in found.won]
        rows.append(
            {
                "attack": label,
                "n": found.n,
                "first": 100 * float(one.mean()),
                "second": 100 * float(other.mean()),
                "difference": 100 * found.difference,
                "low": 100 * found.low,
                "high": 100 * found.high,
                "p": found.p,
                "lost": len(found.lost),
                "won": len(found.won),
                "flips": " ".join(flips),
            }
        )
    table: pd.DataFrame = pd.DataFrame(rows)
    table.attrs["note"] = note
    return table


def _places(label: str, a: Verdicts, b: Verdicts) -> list[int]:
    """Places of the images on which both numbers of a column stand."""
    places = set(range(len(a.index)))
    for verdicts_ in (a, b) if label == "worst" else ():
        places &= places if verdicts_.stands is None else set(verdicts_.stands)
    return sorted(places)


def text_of(table: pd.DataFrame, first: str, second: str, names: Sequence[str] = ()) -> str:
    """The comparison for people; ``names`` of ``COLUMNS``, if any, are what it shows, the flips among them."""
    lines = [
        f"first  {printable(first)}",
        f"second {printable(second)}",
        "",
        "Percent right on the same images; difference first - second with its 95 % interval (Bonett & Price); p of the",
        "paired test (McNemar's exact one, or a permutation for random networks).",
        "",
    ]
    note = table.attrs.get("note")
    lines[2:2] = [note[0].upper() + note[1:] + "."] if note else []
    if names:
        return "\n".join([*lines, _asked_for(table, names)]) + "\n"
    heads = ["", "first", "second", "difference", "interval", "p", "lost", "won"]
    rows = []
    for row in table.to_dict("records"):
        rates = [f"{row['first']:.1f}", f"{row['second']:.1f}", f"{row['difference']:+.1f}"]
        span = f"{row['low']:+.1f} to {row['high']:+.1f}"
        rows.append([str(row["attack"]), *rates, span, f"{row['p']:.2g}", str(row["lost"]), str(row["won"])])
    lines.append(to_text(from_rows(heads, rows, texts=[""]), rule=False))
    for row in table.to_dict("records"):
        flips = row["flips"].split()
        if flips:
            more = f" and {len(flips) - FLIPS_SHOWN} more" if len(flips) > FLIPS_SHOWN else ""
            lines += [
                "",
                f"flips under {printable(row['attack'])} (- lost, + won): {' '.join(flips[:FLIPS_SHOWN])}{more}",
            ]
    return "\n".join(lines) + "\n"


def _asked_for(table: pd.DataFrame, names: Sequence[str]) -> str:
    """Columns by their names, behind the one that says what is compared."""
    shown = [name for name in names if name != "attack"]
    rows = [
        [str(row["attack"]), *(format(row[name], _FORMS.get(name, "")) for name in shown)]
        for row in table.to_dict("records")
    ]
    return to_text(from_rows(["", *shown], rows, texts=["", "flips"]), rule=False)


def _read(path: Path) -> tuple[str, str, Verdicts]:
    """A run's id, its protocol and its verdicts."""
    name, manifest = check_run_folder(path), read_manifest(path.absolute().parent.parent)
    found = verdicts(path, manifest)
    if "clean" not in found.columns:
        raise UserError(f"{path}: {'; '.join(found.gaps)}")
    made = found.certificate
    judged_by = protocol(manifest, made.version if made.checks else 0, made.budget_s)
    access = read_keys(path / names.RUN, ("access",), {"access": ""})[
        "access"
    ]  # of a network that only answers
    return name, f"{access}-{judged_by}" if access else judged_by, found

"""Result folders with one damaged file, read by everything that reads them.

``python -m tests.fuzz.result_mutants --count 1000 --seed 0``: a small benchmark is run, then so many copies of it are
damaged, half of them with a record that fits the damaged file. Whatever reads the folder has to give an answer or one
line for the user that names a file. Exit code 1 where something else came.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustbench_sparse import run_benchmark
from robustbench_sparse.reporting.comparison import compare_runs
from robustbench_sparse.reporting.curve import curve
from robustbench_sparse.reporting.explain import explain
from robustbench_sparse.reporting.history import collect
from robustbench_sparse.reporting.layers import count
from robustbench_sparse.reporting.leaderboard import aggregate, tabulate
from robustbench_sparse.reporting.reference import check
from robustbench_sparse.reporting.tables import text_of
from robustbench_sparse.runs.manifest import read_manifest
from robustbench_sparse.runs.names import RECORD
from robustbench_sparse.runs.seals import seal
from robustbench_sparse.runs.targets import resolve_target
from tests.fuzz.common import command, fault, watched

CONFIG: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "digits"},
    "train_limit": 200,
    "threat": {"norm": "linf", "eps": 0.1},
    "attacks": {"fgsm": "fgsm", "cw": {"name": "cw", "steps": 3, "search_steps": 2}},
    "evaluation": {"limit": 10},
    "model": {"name": "mlp", "hidden": [4]},
    "train": {"epochs": 1, "selection": "last"},
    "runs": {"a": {}, "b": {"train": {"batch_size": 64}}},
}
NUMBERS: list[Any] = [-1, 0, 3, 2**70, 1.5, float("nan"), float("inf")]
TEXTS: list[Any] = ["", "x", "../../x", "a" * 5000, "\x1b[31m"]
VALUES: list[Any] = [None, True, *NUMBERS, *TEXTS, [], [1], {}, {"name": "x"}, {"a": {"b": []}}]


def made(folder: Path) -> Path:
    """A finished benchmark with a certificate, and the table that ``check`` is given."""
    run_benchmark(CONFIG, out=folder, device="cpu", changes=["evaluation.certificate=quick"])
    shutil.copy(folder / "tiny/leaderboard.csv", folder / "reference.csv")
    return folder / "tiny"


def readers(folder: Path, reference: Path) -> list[Callable[[], object]]:
    """Everything that reads a benchmark's folder."""
    runs = sorted((folder / "runs").glob("*"))
    first, last = runs[0], runs[-1]
    return [
        lambda: [
            text_of([t, aggregate(t)], form)
            for t in [tabulate(folder)]
            for form in ("csv", "markdown", "latex")
        ],
        lambda: check(folder, reference),
        lambda: compare_runs(first, last),
        lambda: curve(first, "cw"),
        lambda: explain(first, read_manifest(folder)),
        lambda: collect(folder),
        lambda: collect(folder, layers=True),
        lambda: resolve_target(first),
        lambda: count(str(first)),
    ]


def damage(folder: Path, random: random.Random) -> str:
    """Damage one file; what was done, in words."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.endswith(".lock")]
    path = random.choice([p for p in files if p.suffix in (".json", ".csv", ".safetensors")])
    whole = path.read_bytes()
    kinds: list[str] = ["cut", "bytes", "empty", "gone", "folder"] + 6 * [path.suffix]
    kind = random.choice(kinds)
    if kind == ".json":
        value = json.loads(whole)
        where = _change(value, random)
        path.write_text(json.dumps(value))
        kind = f"json {where}"
    elif kind == ".csv":
        lines = whole.decode().split("\n")
        at = random.randrange(len(lines))
        cells = lines[at].split(",")
        cells[random.randrange(len(cells))] = random.choice(
            ["", "x", "nan", "-1", "1e999", '"', "9" * 400, "\x00"]
        )
        lines[at] = random.choice([",".join(cells), "", lines[at] + ",1", lines[0]])
        path.write_text("\n".join(lines))
    elif kind == "cut":
        path.write_bytes(whole[: random.randrange(len(whole))])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind in ("gone", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    else:
        data = bytearray(whole)
        for _ in range(random.randrange(1, 8)):
            data[random.randrange(len(data))] = random.randrange(256)
        path.write_bytes(bytes(data))
    return f"{path.relative_to(folder)}: {kind}"


def _change(value: Any, random: random.Random) -> str:
    """Put a hostile value into a nested one, or take a key away; where."""
    places: list[tuple[Any, Any, str]] = []

    def walk(here: Any, path: str) -> None:
        pairs = here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
        for key, below in pairs:
            places.append((here, key, f"{path}.{key}"))
            walk(below, f"{path}.{key}")

    walk(value, "")
    if not places:
        return "nothing"
    # Deep places are many: half of the time one near the top.
    near = [place for place in places if place[2].count(".") <= 2]
    holder, key, path = random.choice(near if random.random() < 0.5 else places)
    if random.random() < 0.2:
        del holder[key]
        return f"{path} gone"
    holder[key] = copy.deepcopy(random.choice(VALUES))
    return f"{path} = {str(holder[key])[:40]}"


def faults(folder: Path, reference: Path) -> list[str]:
    """What every reader says that is neither an answer nor a line for the user."""
    return [found for reader in readers(folder, reference) if (found := fault(reader))]


def main(count: int, seed: int) -> list[str]:
    """Damage and read so many copies; everything that went wrong, a line each."""
    with tempfile.TemporaryDirectory() as scratch, watched() as found:
        whole = made(Path(scratch))
        reference = Path(scratch) / "reference.csv"
        assert not faults(whole, reference)
        for number in range(count):
            chance = random.Random(f"{seed}/{number}")
            copied = Path(scratch) / "copy"
            shutil.copytree(whole, copied)
            done = damage(copied, chance)
            if chance.random() < 0.5 and RECORD not in done:
                for run in (copied / "runs").iterdir():
                    seal(run)
                done += ", sealed"
            found += [f"{number} {done}: {fault}" for fault in faults(copied, reference)]
            shutil.rmtree(copied)
    return found


if __name__ == "__main__":
    command(__doc__, 1000, "damaged folders", main)

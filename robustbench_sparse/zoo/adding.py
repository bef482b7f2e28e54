"""From a finished run to a network of the zoo; for who maintains the package."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_sparse.config.columns import RANKS
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import plain, read_json, write_json, write_text
from robustbench_sparse.foundation.texts import to_csv
from robustbench_sparse.reporting.leaderboard import tabulate
from robustbench_sparse.runs import names, zoo
from robustbench_sparse.runs.evidence import NOT_CHECKED, REFUTED
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.manifest import read_manifest
from robustbench_sparse.runs.outcomes import verdicts
from robustbench_sparse.runs.rebuild import stored_plan
from robustbench_sparse.runs.seals import seal
from robustbench_sparse.runs.targets import images_of

MOST_NETWORKS, MOST_BYTES = 25, 1_200_000
NAME = re.compile(r"[a-z0-9]+/[a-z0-9][a-z0-9_.-]*")
TAKEN = (names.RUN, names.TRAINING, names.SPARSITY, names.ENVIRONMENT, names.WEIGHTS)


def add(
    run: Path, name: str, *, data_root: Path | None = None, refuted_too: bool = False, home: Path = zoo.HOME
) -> Path:
    """Take a run's network and its row of the leaderboard into the zoo.

    Args:
        run: folder of a run that was trained, judged and certified, within its benchmark's folder.
        name: ``<data>/<network>``.
        data_root: folder of the data sets.
        refuted_too: take a network whose number was refuted, which is shown with it.
        home: the zoo's folder.

    Returns:
        The network's folder.

    Raises:
        UserError: a name that is taken or none, a run that is not finished, not certified, refuted or was changed, a
            file that is too large, or a zoo that is full. The zoo is as it was then.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{name}: expected <data>/<network> in small letters, digits, . _ and -")
    known = zoo.names_of(home)
    if name in known:
        raise UserError(f"{name}: is in the zoo; remove {home / name} to put another in its place")
    if len(known) >= MOST_NETWORKS:
        raise UserError(f"{home}: has {len(known)} networks, as many as there may be")
    place = RunFolder.at(run)
    place.seals.check()
    place.check_weights()
    if place.weights.stat().st_size > MOST_BYTES:
        raise UserError(f"{place.weights}: {place.weights.stat().st_size} bytes, more than {MOST_BYTES}")
    facts = _facts(place, data_root)
    if facts["row"]["verdict"] == REFUTED and not refuted_too:
        raise UserError(f"{run}: its number is refuted ({facts['row']['flags']})")
    folder = home / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
        staged = Path(scratch) / "network"
        staged.mkdir()
        for file in TAKEN:
            shutil.copyfile(run / file, staged / file)
        write_json(staged / names.ZOO, facts)
        write_text(staged / names.ZOO_IMAGES, to_csv(_images(place), "%.6g"))
        seal(staged)
        staged.rename(folder)
    return folder


def _facts(place: RunFolder, data_root: Path | None) -> dict[str, Any]:
    folder = place.path.parents[1]
    manifest = read_manifest(folder)
    table = tabulate(folder, [place.label])
    rows = table[table["run_id"] == place.run_id]
    if len(rows) != 1:
        raise UserError(f"{place.path}: no row of {folder}'s table")
    row = {k: v for k, v in plain(rows.iloc[0].to_dict()).items() if k not in RANKS and _says_something(v)}
    if not str(row.get("status", "")).startswith("ok"):
        raise UserError(f"{place.path}: {row.get('status')}")
    if row.get("verdict", NOT_CHECKED) == NOT_CHECKED:
        raise UserError(
            f"{place.path}: its number was not checked: run its benchmark with --certificate quick"
        )
    plan = stored_plan(place.path)
    return {
        "data": manifest["table"]["data"],
        "dataset": manifest["dataset"],
        "images": images_of(load_dataset(plan.dataset, data_root)),
        "threat": manifest["threat"],
        "attacks": {k: _without_threat(v, manifest["threat"]) for k, v in manifest["settings"].items()},
        "evaluation": {k: manifest["table"]["evaluation"][k] for k in ("limit", "draws")},
        "row": row,
        "environment": read_json(place.path / names.ENVIRONMENT),
    }


def _images(place: RunFolder) -> pd.DataFrame:
    """The verdicts on every image that the row's rates are counted from."""
    found = verdicts(place.path, read_manifest(place.path.parents[1]))
    table: pd.DataFrame = pd.DataFrame(
        {"index": found.index, **{label: found.counted(label, c) for label, c in found.columns.items()}}
    )
    return table


def _without_threat(record: dict[str, Any], threat: dict[str, Any]) -> dict[str, Any]:
    """An attack's entry; its threat stands in it only where it has one of its own."""
    return {k: v for k, v in record.items() if k != "threat" or v != threat}


def _says_something(value: Any) -> bool:
    return value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))

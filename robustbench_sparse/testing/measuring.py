"""Rows as a reference holds them, of a network that is judged now, or of a benchmark's folder."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from robustbench_sparse import __version__
from robustbench_sparse.config.protocol import protocol
from robustbench_sparse.config.suites import SUITES
from robustbench_sparse.evaluation import evaluate
from robustbench_sparse.foundation.environment import processor
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import read_keys
from robustbench_sparse.runs import names
from robustbench_sparse.runs.manifest import read_manifest
from robustbench_sparse.runs.outcomes import Verdicts, verdicts
from robustbench_sparse.sources.state_dicts import folded_copy
from robustbench_sparse.testing.references import Network, Row

CLEAN, WORST = "clean", "worst"
Attack = str | Mapping[str, Any]


def judged(
    models: Sequence[str | Path | nn.Module],
    data: Any,
    attack: Attack | Sequence[Attack],
    *,
    eps: float,
    norm: str,
    seed: int,
    **more: Any,
) -> Row:
    """Judge networks on the same images: the share that no attack broke.

    Args:
        models, norm, eps, seed, more: as of ``evaluate``.
        data: images and labels in memory, or a data set's name or config entry.
        attack: a suite's name, an attack's, its config entry, or several of these.

    Raises:
        UserError: what ``evaluate`` raises, or a network without a number.
    """
    named = isinstance(data, str) or (isinstance(data, Mapping) and "name" in data)
    given: dict[str, Any] = {"dataset": data} if named else {"data": data}
    if isinstance(attack, str) and attack in SUITES:
        given["suite"] = attack
    else:
        given["attacks"] = _entries([attack] if isinstance(attack, str | Mapping) else attack)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, model in enumerate(models):
            out = Path(scratch) / str(number)
            # A test's network is the test's: whatever the judge does to it stays here.
            own = copy.deepcopy(folded_copy(model)[0]) if isinstance(model, nn.Module) else model
            evaluate(own, **given, norm=norm, eps=eps, seed=seed, out=out, **more)
            (found,) = of_benchmark(out, (WORST,)).values()
            rows.append(found)
    first = rows[0]
    if any(row.images != first.images for row in rows):
        raise UserError("model: the networks were judged on different images")
    percent = sum(row.percent for row in rows) / len(rows)
    return Row(
        protocol=first.protocol,
        images=first.images,
        threat=first.threat,
        attacks=first.attacks,
        percent=percent,
        networks=tuple(row.networks[0] for row in rows),
        made=first.made,
    )


def _entries(attacks: Sequence[Attack]) -> dict[str, Any]:
    """Label -> config entry; the same attack with other settings gets a number."""
    out: dict[str, Any] = {}
    for attack in attacks:
        entry = {"name": attack} if isinstance(attack, str) else dict(attack)
        label = "".join(c if c.isalnum() else "_" for c in str(entry.get("name", "attack")))
        count = sum(known == label or known.startswith(f"{label}_") for known in out)
        out[f"{label}_{count + 1}" if label in out else label] = entry
    return out


def of_benchmark(folder: Path, columns: Sequence[str]) -> dict[str, Row]:
    """The rows of a benchmark's folder, under the names ``run/column``; the networks of a row are its seeds.

    Args:
        folder: ``results/<benchmark>``.
        columns: of the leaderboard: ``clean``, ``worst`` or an attack's label.

    Raises:
        UserError: no benchmark, a run that is not finished, or a column that it lacks.
    """
    manifest = read_manifest(folder)
    found: dict[str, list[tuple[Row, float]]] = {}
    for entry in manifest["runs"]:
        path = folder / names.RUNS / entry["run_id"]
        where = f"{folder}: run {entry['run']}, seed {entry['seed']}"
        read = verdicts(path, manifest)
        if names.CLEAN not in read.columns:
            raise UserError(f"{where}: {'; '.join(read.gaps)}")
        images = _images(path)
        made = read.certificate
        judged_by = protocol(manifest, made.version if made.checks else 0, made.budget_s)
        for column in columns:
            if column not in read.columns:
                raise UserError(f"{where}: no column {column!r}: {'; '.join(read.gaps) or 'never judged'}")
            row = _row(column, entry["seed"], read, manifest, judged_by, images)
            found.setdefault(f"{entry['run']}/{column}", []).append(row)
    return {name: _joined(f"{folder}: {name}", rows) for name, rows in found.items()}


def _row(
    column: str, seed: int, read: Verdicts, manifest: Mapping[str, Any], judged_by: str, images: str
) -> tuple[Row, float]:
    right = read.columns[column]
    stands = set(range(len(right)) if column != WORST or read.stands is None else read.stands)
    bits = "".join(_bit(share, i in stands) for i, share in enumerate(right))
    attacks = {
        label: manifest["settings"].get(label, {})
        for label in manifest["attacks"]
        if column in (WORST, label)
    }
    percent = 100 * float(read.counted(column, right).mean())
    row = Row(
        protocol=CLEAN if column == CLEAN else judged_by,
        images=images,
        threat=manifest["threat"],
        attacks=attacks,
        percent=percent,
        networks=(Network(seed=seed, verdicts=bits),),
        made={"version": __version__, "torch": str(torch.__version__), "processor": processor()},
    )
    return row, percent


def _bit(share: float, stands: bool) -> str:
    if not stands or pd.isna(share):
        return "-"
    return "1" if share > 0.5 else "0"


def _joined(where: str, rows: Sequence[tuple[Row, float]]) -> Row:
    """One row of all seeds."""
    first = rows[0][0]
    for row, _ in rows:
        if (row.protocol, row.images) != (first.protocol, first.images):
            raise UserError(f"{where}: its seeds were judged by different protocols, or on different images")
    return Row(
        protocol=first.protocol,
        images=first.images,
        threat=first.threat,
        attacks=first.attacks,
        percent=sum(percent for _, percent in rows) / len(rows),
        networks=tuple(row.networks[0] for row, _ in rows),
        made=first.made,
    )


def _images(run: Path) -> str:
    """Names the images: the data set's fingerprint, and a hash of the positions that were judged."""
    (key,) = read_keys(run / names.account(names.CLEAN), ("key",)).values()
    try:
        return f"{key['identity'].split('/')[1]}/{key['test_images']}"
    except (AttributeError, IndexError, KeyError, TypeError):
        raise UserError(f"{run}: judged by an earlier version, which did not say on which images") from None

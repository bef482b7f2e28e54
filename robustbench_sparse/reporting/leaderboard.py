"""The leaderboard: a pure function of a benchmark's folder. Every rate is counted from stored outcomes.

results/<benchmark>/benchmark.json                      which runs, which attacks, which threat
results/<benchmark>/runs/<run id>/run.json              what was run; also training, environment, sparsity
results/<benchmark>/runs/<run id>/outcomes/<label>.csv  one line per image; <label>.json says how it went
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 on

from robustbench_sparse.config.columns import (
    BELIEF,
    COUNTS,
    DETECTABLE,
    IDENTITY,
    PUBLISHED,
    RANKS,
    SECONDS,
    SPARSITIES,
    TRAIN,
    restored_columns,
)
from robustbench_sparse.engine.autotune import known
from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.foundation.files import read_as
from robustbench_sparse.reporting.memo import Memo
from robustbench_sparse.reporting.ranks import rank
from robustbench_sparse.reporting.stored import is_stored, read_leaderboard
from robustbench_sparse.runs import names
from robustbench_sparse.runs.evidence import NOT_CHECKED, worst_verdict
from robustbench_sparse.runs.manifest import read_manifest
from robustbench_sparse.runs.names import RECORD
from robustbench_sparse.runs.outcomes import because, rates
from robustbench_sparse.runs.restored import errors
from robustbench_sparse.runs.seals import Seals


class _Record(TypedDict, total=False):
    stages: list[dict[str, Any]]


class _Facts(BaseModel):
    model: str
    defenses: str
    threat: dict[str, Any]
    record: _Record = {}
    access: str = ""  # of a network that only answers
    gate: list[str] = []  # flags: checks that warned before anything was attacked


class _Environment(BaseModel):
    commit: str | None


class _Training(BaseModel):
    status: str
    reason: str
    train_seconds: float
    selected: dict[str, float | None] = {}


class _Achieved(BaseModel):
    kind: str
    percent: float
    achieved: float
    binding: bool = True


class _Counts(BaseModel):
    # Without a default: counted from the first version on.
    weight_sparsity: float | None
    linear_sparsity: float | None = None
    channel_sparsity: float | None
    kernel_sparsity: float | None
    row_sparsity: float | None
    parameters: int
    nonzero_parameters: int
    macs: int
    sparse_macs: int | None = None
    asked: list[_Achieved] = []
    refused: str = ""


def tabulate(folder: Path, only: Sequence[str] = (), memo: Memo | None = None) -> pd.DataFrame:
    """The leaderboard of one benchmark, one row per run and seed, in the order of its config.

    Rates are percentages with a 95 % Wilson interval. ``worst`` is the mean over the images of the smallest
    of the clean verdict and the verdicts of all attacks whose candidate lies inside the benchmark's ball, and of the
    adversarials that the certificate's checks found; it is empty as soon as one attack left a gap. A cell without a
    complete measurement is empty, and ``status`` says why.

    Sparsities are counted in the saved file; ``asked`` holds what a method was asked for, ``(goal)`` where lambda was
    steered for it, and behind it what was counted in the layers it was asked of. A row whose file has less than its
    method claims is refused: it has no numbers.
    ``train_accuracy`` is that of the selected epoch, on the minibatches as they were trained on.

    ``verdict`` says whether the row's robustness can be believed, ``flags`` which checks failed, ``protocol`` what it
    was judged by. Where the checks' adversarials lower the number by more than chance, ``worst`` stands on the images
    that they examined, ``worst_n`` of them. Ranks are ``ranks.rank``'s: ``rank`` among the rows of the same seed
    and protocol, ``rank_seeds`` for the mean over the seeds.

    Args:
        folder: ``results/<benchmark>``.
        only: labels of runs, in which ``*`` and ``?`` stand for other characters; all runs if empty. Ranks are among
            these.
        memo: rows that were read before; none by default.

    Raises:
        UserError: naming the file, when there is no benchmark here or a file of it is damaged, or no such run.
    """
    manifest = read_manifest(folder)
    labels: list[str] = manifest["attacks"]
    rows = []
    for entry in _chosen(folder, manifest, only):
        read = partial(_row, folder, manifest, entry)
        home = folder / names.RUNS / entry["run_id"]
        rows.append(memo.row(home, manifest, entry, read) if memo else read())
    rank(rows)
    wanted = {c for columns in manifest["published"].values() for c in columns}
    restores = manifest["task"] == "restore"
    measured = restored_columns(labels) if restores else ["clean", *labels, "worst", *manifest["shifts"]]
    rates = [c for name in measured for c in (name, f"{name}_lo", f"{name}_hi")]
    metrics = [*measured, *SPARSITIES, *TRAIN]
    published = [f"{PUBLISHED}{c}" for c in [*metrics, *sorted(wanted - {*metrics})] if c in wanted]
    floats = [*rates, *DETECTABLE, *SPARSITIES, *TRAIN, *published, *SECONDS]
    table = pd.DataFrame(
        rows,
        columns=[
            *IDENTITY, *rates, *BELIEF, *SPARSITIES, "asked", *COUNTS, *TRAIN, *published, *SECONDS, "status", "run_id",
            "commit",
        ],
    )  # fmt: skip
    types = {
        **dict.fromkeys(floats, "float64"),
        **dict.fromkeys(("seed", "n", "worst_n", *RANKS, *COUNTS), "Int64"),
    }
    typed: pd.DataFrame = table.astype(types)
    return typed


def _chosen(folder: Path, manifest: Mapping[str, Any], only: Sequence[str]) -> list[Mapping[str, Any]]:
    """The runs of these labels, in the config's order."""
    runs: list[Mapping[str, Any]] = manifest["runs"]
    labels = [entry["run"] for entry in runs]
    for pattern in only:
        if not fnmatch.filter(labels, pattern):
            known = list(dict.fromkeys(labels))
            raise UserError(
                f"--only {pattern}: no such run in {folder}{near(pattern, known)}; there are: {', '.join(known)}"
            )
    return [e for e in runs if not only or any(fnmatch.fnmatchcase(e["run"], pattern) for pattern in only)]


def tabulate_all(folder: Path, only: Sequence[str] = (), memo: Memo | None = None) -> list[pd.DataFrame]:
    """The leaderboards below a folder: its own when it is a benchmark's, else those of its subfolders.

    Where nothing is left to count a table from, the leaderboard that was written stands for it, see ``stored``.

    Args:
        folder: a benchmark's, one of several, or a ``leaderboard.csv`` itself.
        only, memo: see ``tabulate``.

    Raises:
        UserError: when there is none, a file is damaged, or a benchmark has no run that is asked for.
    """
    if is_stored(folder):
        return [read_leaderboard(folder, only)]
    if (folder / names.BENCHMARK).is_file():
        return [tabulate(folder, only, memo)]
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    tables = (names.BENCHMARK, names.LEADERBOARD)
    places = sorted({path.parent for name in tables for path in folder.glob(f"*/{name}")})
    found = [read_leaderboard(p, only) if is_stored(p) else tabulate(p, only, memo) for p in places]
    if not found:
        raise UserError(f"{folder}: no benchmark here (expected benchmark.json in it or in its subfolders)")
    return found


def rates_of(table: pd.DataFrame) -> list[str]:
    """The rate columns of a table in its order: those that come with an interval."""
    return [c for c in table.columns if f"{c}_lo" in table.columns and f"{c}_hi" in table.columns]


def aggregate(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (ddof = 1) over the seeds of every run, for rates and sparsities.

    Both are empty where any seed has a gap; the deviation is empty for a single seed. ``n`` is the number of
    images of one seed, empty when the seeds differ in it.
    """
    averaged = [*rates_of(table), *(c for c in (*SPARSITIES, *TRAIN) if c in table.columns)]
    rows = []
    for (benchmark, run), group in table.groupby(["benchmark", "run"], sort=False):
        seeds = [int(seed) for seed in group["seed"]]
        row: dict[str, Any] = {"benchmark": benchmark, "run": run, "seeds": len(seeds)}
        for column in (c for c in ("dataset", "model", "defenses", "precision") if c in group):
            row[column] = next((v for v in group[column] if v), "")
        row["n"] = group["n"].iloc[0] if group["n"].nunique(dropna=False) == 1 else pd.NA
        if "verdict" in group:
            for column in (c for c in ("rank", "rank_high", "detectable") if c in group):
                row[column] = group[
                    column.replace("rank", "rank_seeds").replace("detectable", "detectable_seeds")
                ].iloc[0]
            verdicts = [v for v in group["verdict"] if v]  # none of networks that no check is made for
            row["verdict"] = worst_verdict(verdicts) if verdicts else ""
            row["flags"] = " ".join(dict.fromkeys(" ".join(group["flags"]).split()))
            if "worst_n" in group:
                row["worst_n"] = group["worst_n"].min(skipna=False)
            if "protocol" in group:
                row["protocol"] = " ".join(dict.fromkeys(p for p in group["protocol"] if p))
        for column in averaged:
            row[f"{column}_mean"] = group[column].mean(skipna=False)
            row[f"{column}_std"] = group[column].std(ddof=1, skipna=False)
        for column in (c for c in table.columns if c.startswith(PUBLISHED)):
            row[column] = group[column].iloc[0]
        troubles = [
            f"seed {s}: {text}" for s, text in zip(seeds, group["status"], strict=True) if text != "ok"
        ]
        row["status"] = "; ".join(troubles) or "ok"
        rows.append(row)
    front = ["benchmark", "run", "dataset", "model", "defenses", "precision", "seeds", "n"]
    pairs = [f"{c}_{kind}" for c in averaged for kind in ("mean", "std")]
    published = [c for c in table.columns if c.startswith(PUBLISHED)]
    known = ("worst_n", "rank", "rank_high", "detectable", "verdict", "flags", "protocol")
    belief = [c for c in known if c in table.columns]
    out = pd.DataFrame(rows, columns=[*front, *pairs, *belief, *published, "status"])
    types = {
        **dict.fromkeys(("n", "seeds", *(c for c in ("worst_n", *RANKS) if c in belief)), "Int64"),
        **dict.fromkeys([*pairs, *published, *(c for c in DETECTABLE if c in belief)], "float64"),
    }
    typed: pd.DataFrame = out.astype(types)
    return typed


def _row(folder: Path, manifest: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """One run and seed."""
    row: dict[str, Any] = {
        "benchmark": manifest["name"],
        "run": entry["run"],
        "seed": entry["seed"],
        "dataset": manifest["dataset"],
        "model": "",
        "defenses": "",
        "precision": "",
        "verdict": NOT_CHECKED if manifest["task"] == "classify" else "",  # checks are of classifiers
        "flags": "",
        "protocol": "",
        "asked": "",
        "run_id": entry["run_id"],
        "commit": "",
    }
    for column, value in manifest["published"].get(entry["run"], {}).items():
        row[f"{PUBLISHED}{column}"] = value
    home = folder / names.RUNS / entry["run_id"]
    seals = Seals(home)
    if not (home / names.RUN).is_file():
        return {**row, "status": "not trained"}
    if not seals.has(names.RUN):
        return {**row, "status": f"incomplete: no {RECORD} that names run.json (of an earlier version?)"}
    # Whatever the row is made of, its weights too; outcomes are checked where they are read.
    seals.check(*(name for name in seals.hashes() if not name.startswith(f"{names.OUTCOMES}/")))
    facts = read_as(home / names.RUN, _Facts)
    if facts["threat"] != manifest["threat"]:
        raise UserError(f"{home / names.RUN}: of another threat than {folder / names.BENCHMARK}")
    row.update(model=facts["model"], defenses=facts["defenses"])
    row["precision"] = _precision(home, facts["record"].get("stages", []))
    if seals.has(names.ENVIRONMENT):
        row["commit"] = read_as(home / names.ENVIRONMENT, _Environment)["commit"] or ""
    if not seals.has(names.TRAINING):
        return {**row, "status": "incomplete: training"}
    training = read_as(home / names.TRAINING, _Training)
    row["train_seconds"] = training["train_seconds"]
    row["train_accuracy"] = training["selected"].get("train_accuracy")
    if training["status"] != "complete":
        return {**row, "status": because(training)}
    problems = []
    if seals.has(names.SPARSITY):
        counted = read_as(home / names.SPARSITY, _Counts)
        if counted["refused"]:
            return {**row, "status": f"refused: {counted['refused']}"}
        row.update({name: counted[name] for name in (*SPARSITIES, *COUNTS)})
        row["asked"] = "; ".join(
            f"{a['kind']} {a['percent']:g}{'' if a.get('binding', True) else ' (goal)'}: {a['achieved']:.2f}"
            for a in counted["asked"]
        )
    else:
        problems.append("incomplete: sparsity")
    measured, gaps, notes = (errors if manifest["task"] == "restore" else rates)(home, manifest)
    problems += gaps
    return {**row, **_as_given(measured, facts), "status": "; ".join([*(problems or ["ok"]), *notes])}


def _as_given(measured: dict[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """A row's cells with what the gate said of its network, and by which access it was attacked.

    Without gradients an attack finds less: such rows are of a protocol of their own, and so never ranked with others.
    """
    out = dict(measured)
    if facts["gate"] and "flags" in out:
        out["flags"] = " ".join([*str(out["flags"]).split(), *facts["gate"]])
    if facts["access"] and "protocol" in out:
        out["protocol"] = f"{facts['access']}-{out['protocol']}"
    return out


def _precision(home: Path, stages: Sequence[Mapping[str, Any]]) -> str:
    """In what precision a network was trained, ``compiled`` behind it, of each stage once; "" of a foreign network.

    Runs that left it to a measurement, as was possible once, have the answer beside them.
    """
    found = []
    for number, stage in enumerate(stages):
        precision, compile = stage.get("precision", ""), stage.get("compile", "")
        if "auto" in (precision, compile):
            chosen = known(home / names.SPEED, f"training {number}")
            precision = (chosen.precision if chosen else "") if precision == "auto" else precision
            compile = "on" if compile == "auto" and chosen and chosen.compile else compile
        found.append(f"{precision}{' compiled' if compile == 'on' else ''}")
    return "+".join(dict.fromkeys(found))

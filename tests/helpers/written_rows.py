"""Benchmarks' folders with verdicts and certificates written by hand, one image a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_sparse.runs import names
from robustbench_sparse.runs.certificate_record import FORMAT
from robustbench_sparse.runs.seals import seal

THREAT = {"norm": "linf", "eps": 0.1}
SETTINGS: dict[str, Any] = {"pgd": {"name": "pgd", "steps": 20, "threat": THREAT}}
COUNTED = ("weight_sparsity", "channel_sparsity", "kernel_sparsity", "row_sparsity", "parameters",
           "nonzero_parameters", "macs")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Written:
    """A row. ``stands``: each image's verdict under the attack.

    Attributes:
        checks: records of a certificate, see ``record``; None for no certificate.
        found: image's position in the data set -> share of draws right on a check's adversarial.
        images: positions that were examined; None leaves them out, as earlier versions did.
        n: how many those were.
        version: of the set of checks; None leaves it out.
    """

    stands: Sequence[float]
    seed: int = 0
    checks: Sequence[Mapping[str, Any]] | None = None
    found: Mapping[int, float] = field(default_factory=dict)
    images: Sequence[int] | None = None
    n: int = 0
    version: int | None = 2


def record(name: str, status: str = "passed", *, refutes: bool = False, **measured: float) -> dict[str, Any]:
    """A check's record."""
    texts = {k: f"{k} of {name}" for k in ("title", "source", "rule", "meaning", "advice", "done")}
    return {"id": name, **texts, "status": status, "why": "", "refutes": refutes, "measured": measured}


def number(reported: float, worst: float, lowered: bool) -> dict[str, Any]:
    """The record of the check that compares the row's number with the worst of everything."""
    status = "failed" if lowered else "passed"
    return record("M13", status, refutes=True, reported_acc=reported, worst_acc=worst)


def written(
    folder: Path,
    rows: Mapping[str, Written | Sequence[Written]],
    *,
    certificate: str = "quick",
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """A benchmark's folder: every row with its verdicts on clean images, all right, and under the one attack."""
    settings = SETTINGS if settings is None else settings
    seeds = [(run, w) for run, some in rows.items() for w in ([some] if isinstance(some, Written) else some)]
    entries = [{"run_id": f"{run}-s{w.seed}", "run": run, "seed": w.seed} for run, w in seeds]
    manifest = {"name": "b", "dataset": "d", "attacks": ["pgd"], "settings": settings, "threat": THREAT}
    _dump(
        folder / names.BENCHMARK,
        {**manifest, "certificate": certificate, "runs": entries, "published": {}},
    )
    for entry, (_, w) in zip(entries, seeds, strict=True):
        home = folder / names.RUNS / str(entry["run_id"])
        _dump(home / names.RUN, {**entry, "model": "mlp", "defenses": "", "threat": THREAT})
        _dump(home / names.ENVIRONMENT, {"commit": "c"})
        _dump(home / names.TRAINING, {"status": "complete", "reason": "", "train_seconds": 1.0})
        _dump(home / names.SPARSITY, dict.fromkeys(COUNTED, 0))
        _outcome(home, "clean", [1.0] * len(w.stands), {"label": "clean"})
        _outcome(home, "pgd", w.stands, settings.get("pgd", {}))
        if w.checks is not None:
            _certificate(home, w, certificate, settings)
        seal(home)
    return folder


def _outcome(home: Path, label: str, right: Sequence[float], attack: Mapping[str, Any]) -> None:
    table = pd.DataFrame({"index": range(len(right)), "label": 0, "correct": right, "adv_correct": right})
    (home / names.verdicts(label)).parent.mkdir(parents=True, exist_ok=True)
    table.assign(linf=0.1, l2=0.1, status="ok").to_csv(home / names.verdicts(label), index=False)
    key = {"identity": "weights", "attack": attack}
    about = {"status": "ok", "reason": "", "n": len(right), "seconds": 1.0, "bounded": True, "key": key}
    _dump(home / names.account(label), about)


def _certificate(home: Path, w: Written, level: str, settings: Mapping[str, Any]) -> None:
    key = {"identity": "weights", "level": level, "threat": THREAT, "attacks": settings}
    about = {"format": FORMAT, "key": key, "checks": w.checks, "n": w.n, "seconds": 1.0}
    about |= {} if w.images is None else {"images": list(w.images)}
    about |= {} if w.version is None else {"version": w.version}
    _dump(home / names.CERTIFICATE, about)
    table = pd.DataFrame({"index": list(w.found), "right": list(w.found.values())})
    table.to_csv(home / names.FOUND, index=False)
    (home / names.ADVERSARIALS).write_bytes(b"")


def _dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))

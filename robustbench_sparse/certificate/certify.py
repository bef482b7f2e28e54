"""Running the checks on one row: in order, each finding stored as soon as it is there, then the verdict."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from attacks.base import Threat
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.checks import CHECKS
from robustbench_sparse.certificate.finding import Check, Finding
from robustbench_sparse.certificate.subject import Found, Subject
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.errors import one_line
from robustbench_sparse.foundation.files import (
    load_weights,
    read_json,
    save_weights,
    write_atomically,
    write_json,
)
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.runs import names
from robustbench_sparse.runs.certificate_record import FORMAT, verdict_of
from robustbench_sparse.runs.seals import Seals

IMAGE_SEED = 20_004  # a constant: all rows of a benchmark are examined on the same images


def chosen_images(data: PreparedData, count: int) -> torch.Tensor:
    """Positions within the test part of the images that are examined: a fixed random choice, ascending."""
    order = np.random.RandomState(IMAGE_SEED).permutation(data.count("test"))[:count]
    return torch.from_numpy(np.sort(order).astype(np.int64))


def is_stored(folder: Path, key: Mapping[str, Any], level: str) -> bool:
    """Whether a run's folder holds the certificate of this key and level."""
    if not Seals(folder).holds(*names.CERTIFIED):
        return False
    known = read_json(folder / names.CERTIFICATE)
    fits = isinstance(known, dict) and known.get("format") == FORMAT
    return bool(fits and known.get("key") == _full(key, level))


def _full(key: Mapping[str, Any], level: str) -> dict[str, Any]:
    return {**key, "level": level, "budget": dataclasses.asdict(BUDGETS[level])}


def certify(
    subject: Subject, folder: Path, key: Mapping[str, Any], level: str, show: Progress, title: str = ""
) -> dict[str, Any]:
    """Run every check that is not stored yet and write the certificate.

    Args:
        subject: the network under examination.
        folder: the run's folder; files go to ``certificate/`` in it. A killed certificate goes on there.
        key: everything that determines the findings; other findings than of this key are made anew.
        level: name of the budget.
        show: where progress goes.
        title: of the progress bar.

    Returns:
        The certificate's record.
    """
    path, state = folder / names.CERTIFICATE, folder / names.EXAMINING
    full_key = _full(key, level)
    if is_stored(folder, key, level):
        return dict(read_json(path))
    if not (state / "key.json").is_file() or read_json(state / "key.json") != full_key:
        shutil.rmtree(state, ignore_errors=True)
        write_json(state / "key.json", full_key)
    done: list[dict[str, Any]] = _restored(state, subject)
    task = show.start(f"{title} certificate".strip(), len(CHECKS), "checks", len(done))
    try:
        for check in list(CHECKS.values())[len(done) :]:
            began = time.perf_counter()
            finding = _run(check, subject)
            about = {f.name: getattr(check, f.name) for f in dataclasses.fields(check) if f.name != "run"}
            done.append({**about, **finding.record(), "seconds": round(time.perf_counter() - began, 3)})
            # The adversarials first: findings count what is stored.
            save_weights(state / f"{len(done):02d}.safetensors", _tensors(subject.found))
            write_json(state / "findings.json", {"by": subject.found.by, "checks": done})
            (state / f"{len(done) - 1:02d}.safetensors").unlink(missing_ok=True)
            task.advance(1)
    finally:
        task.close()
    certificate = {
        "format": FORMAT,
        "verdict": verdict_of(done),
        "flags": [c["id"] for c in done if c["status"] == "failed"],
        "n": len(subject),
        "level": level,
        "seconds": round(sum(c["seconds"] for c in done), 1),
        "checks": done,
        "key": full_key,
    }
    with Seals(folder).renewing(*names.CERTIFIED):
        _write_found(folder, subject)
        write_json(path, certificate)
    shutil.rmtree(state, ignore_errors=True)
    return certificate


def _run(check: Check, subject: Subject) -> Finding:
    subject.check = check.id
    try:
        return check.run(subject)
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # a check that cannot be made, by sys.exit too, is none that passed
        return Finding(
            status="failed", done=f"the check itself failed: {type(e).__name__}: {one_line(e)[:300]}"
        )
    finally:
        subject.check = ""


def _tensors(found: Found) -> dict[str, torch.Tensor]:
    return {"candidate": found.candidate, "right": found.correct}


def _restored(state: Path, subject: Subject) -> list[dict[str, Any]]:
    """Findings stored before a kill; their adversarials go back to the subject."""
    path = state / "findings.json"
    if not path.is_file():
        return []
    stored = read_json(path)
    done: list[dict[str, Any]] = stored["checks"]
    tensors = load_weights(state / f"{len(done):02d}.safetensors")
    subject.found.candidate.copy_(tensors["candidate"])
    subject.found.correct.copy_(tensors["right"])
    subject.found.by[:] = stored["by"]
    return done


def _write_found(folder: Path, subject: Subject) -> None:
    """The adversarials that the checks found: verdicts as a table, images as tensors."""
    found, rows = subject.found, subject.found.rows
    delta = found.candidate[rows] - subject.x[rows]
    table = pd.DataFrame(
        {
            "index": subject.indices(rows),
            "label": subject.y[rows].tolist(),
            "check": [found.by[i] for i in rows.tolist()],
            "right": found.correct[rows].tolist(),
            "linf": Threat(norm="linf").size(delta).tolist(),
            "l2": Threat(norm="l2", eps=1.0).size(delta).tolist(),
        }
    )
    write_atomically(folder / names.FOUND, lambda f: table.to_csv(f, index=False))
    tensors = {"index": torch.tensor(table["index"].to_numpy()), "candidate": found.candidate[rows]}
    save_weights(folder / names.ADVERSARIALS, tensors)

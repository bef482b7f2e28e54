"""Running the checks on one row: in order, each finding stored as soon as it is there, then the verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from attacks.base import Threat
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.checks import CHECKS, with_own
from robustbench_sparse.certificate.finding import Check, Finding, broken_off, left_out, skipped
from robustbench_sparse.certificate.spending import Spending, spend
from robustbench_sparse.certificate.subject import Found, NoGradients, Subject
from robustbench_sparse.certificate.unharmed import unharmed
from robustbench_sparse.config.protocol import CERTIFICATE
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.fences import remove, remove_tree
from robustbench_sparse.foundation.files import (
    load_weights,
    read_json,
    save_weights,
    write_atomically,
    write_json,
)
from robustbench_sparse.foundation.limits import OutOfTime, limited
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.runs import names
from robustbench_sparse.runs.certificate_record import FORMAT, chosen_places
from robustbench_sparse.runs.evidence import failures, weigh
from robustbench_sparse.runs.seals import Seals

SLOWER = 10  # times what the black box's queries take, which a check may take beside its budget's seconds


def chosen_images(data: PreparedData, count: int) -> torch.Tensor:
    """Positions within the test part of the images that are examined: a fixed random choice, ascending."""
    return torch.tensor(chosen_places(data.count("test"), count), dtype=torch.int64)


def is_stored(folder: Path, key: Mapping[str, Any], level: str, seconds: int | None = None) -> bool:
    """Whether a run's folder holds the certificate of this key and level.

    One that left nothing out is any budget's; one that did is that of its own seconds, and of fewer.
    """
    if not Seals(folder).holds(*names.CERTIFIED):
        return False
    known = read_json(folder / names.CERTIFICATE)
    if not (
        isinstance(known, dict) and known.get("format") == FORMAT and known.get("key") == _full(key, level)
    ):
        return False
    spending = known.get("spending") or {}
    return not spending.get("left_out") or (seconds is not None and seconds <= spending["budget_s"])


def _full(key: Mapping[str, Any], level: str) -> dict[str, Any]:
    return {**key, "level": level, "version": CERTIFICATE, "budget": dataclasses.asdict(BUDGETS[level])}


def certify(
    subject: Subject,
    folder: Path,
    key: Mapping[str, Any],
    level: str,
    show: Progress,
    title: str = "",
    seconds: int | None = None,
    prices: Callable[[], Mapping[str, float]] = dict,
    own: Mapping[str, Check] | None = None,
) -> dict[str, Any]:
    """Run every check that is not stored yet and write the certificate.

    Args:
        subject: the network under examination.
        folder: the run's folder; files go to ``certificate/`` in it. A killed certificate goes on there.
        key: everything that determines the findings; other findings than of this key are made anew.
        level: name of the budget.
        show: where progress goes.
        title: of the progress bar.
        seconds: the budget of time, spent on the most telling checks; None for all of them. See ``spending``.
        prices: measures what a pass takes, see ``spending.Spending``; asked where there is a budget.
        own: further checks by id, which are always made; ``key`` names their code.

    Returns:
        The certificate's record.
    """
    path, state = folder / names.CERTIFICATE, folder / names.EXAMINING
    full_key = _full(key, level)
    if is_stored(folder, key, level, seconds):
        return dict(read_json(path))
    asked = {**full_key, "seconds": seconds}
    if not (state / "key.json").is_file() or read_json(state / "key.json") != asked:
        remove_tree(state)
        write_json(state / "key.json", asked)
    spending = None if seconds is None else _spending(state, subject, seconds, prices)
    unmade = {} if spending is None else spending.left_out
    done: list[dict[str, Any]] = _restored(state, subject)
    limit = limit_of(subject)
    checks = with_own(CHECKS, own or {}) if own else CHECKS
    task = show.start(f"{title} certificate".strip(), len(checks), "checks", len(done))
    try:
        for check in list(checks.values())[len(done) :]:
            began = time.perf_counter()
            late = check.id in unmade
            finding = left_out(unmade[check.id]) if late else _run(check, subject, limit)
            about = {f.name: getattr(check, f.name) for f in dataclasses.fields(check) if f.name != "run"}
            done.append({**about, **finding.record(), "seconds": round(time.perf_counter() - began, 3)})
            # The adversarials first: findings count what is stored.
            save_weights(state / f"{len(done):02d}.safetensors", _tensors(subject.found))
            write_json(state / "findings.json", {"by": subject.found.by, "checks": done})
            remove(state / f"{len(done) - 1:02d}.safetensors")
            task.advance(1)
    finally:
        task.close()
    certificate = {
        "format": FORMAT,
        "version": CERTIFICATE,
        "verdict": weigh(done, len(subject)).verdict,
        "flags": [c["id"] for c in failures(done)],
        "n": len(subject),
        "images": [int(i) for i in subject.index],
        "level": level,
        "seconds": round(sum(c["seconds"] for c in done), 1),
        "checks": done,
        "key": full_key,
        **({} if spending is None else {"spending": spending.record()}),
    }
    with Seals(folder).renewing(*names.CERTIFIED):
        _write_found(folder, subject)
        write_json(path, certificate)
    remove_tree(state)
    return certificate


def _spending(
    state: Path, subject: Subject, seconds: int, prices: Callable[[], Mapping[str, float]]
) -> Spending:
    """What the budget buys, chosen before the first check; a certificate that was killed keeps its choice."""
    path = state / "spending.json"
    if not path.is_file():
        write_json(path, spend(subject, seconds, prices(), CHECKS).record())
    return Spending(**read_json(path))


def limit_of(subject: Subject) -> float:
    """Seconds that a check may take: its budget's, and more where the network is slow.

    A check that does not end must not hold up the row, and an honest check of a large network must end: on top of the
    budget come ``SLOWER`` times what as many passes take as a black box has queries. Whoever makes a network slow makes
    its checks no weaker.
    """
    rows = subject.x[: subject.batch_size]
    began = time.perf_counter()
    with contextlib.suppress(Exception):
        subject.logits(rows, subject.random("limit", torch.arange(len(rows))))
    once = (time.perf_counter() - began) * len(subject) / max(1, len(rows))
    return subject.budget.limit_s + SLOWER * subject.budget.queries * once


def _run(check: Check, subject: Subject, limit: float | None = None) -> Finding:
    """One check; whatever it raises is a finding, but for an interrupt.

    What a check found before its time ran out is forgotten, so that no timing decides a number.
    """
    subject.check = check.id
    before = subject.found.copy()
    try:
        with unharmed(subject.model):
            return check.run(subject) if limit is None else limited(limit, lambda: check.run(subject))
    except KeyboardInterrupt:
        raise
    except OutOfTime as e:
        subject.found = before
        out = broken_off(e)
        return dataclasses.replace(out, done=f"the check ran out of its time limit of {limit:.0f} s")
    except NoGradients as e:
        return skipped(str(e))
    except (
        BaseException
    ) as e:  # a check that cannot be made, by sys.exit too, is none that passed, and no evidence
        return broken_off(e)
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

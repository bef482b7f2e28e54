"""What a benchmark's folder holds: its runs, its attacks, its threat, and what its table was made by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from attacks.base import Norm
from robustbench_sparse.config.plan import Plan, task_record
from robustbench_sparse.config.plugins import settings_of
from robustbench_sparse.config.schema import Level
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import plain, read_as, read_keys
from robustbench_sparse.runs import names
from robustbench_sparse.runs.seals import Seals

# The name of a file beside others: nothing that leads elsewhere.
_Name = Annotated[str, Field(pattern=r"^[^/\\\x00.][^/\\\x00]*$", max_length=255)]


class _ThreatFacts(BaseModel):
    norm: Norm
    eps: float = Field(ge=0)


class _RunFacts(BaseModel):
    run_id: _Name
    run: str
    seed: int


class _Manifest(BaseModel):
    name: str
    dataset: str
    attacks: list[_Name]
    runs: list[_RunFacts]
    threat: _ThreatFacts
    published: dict[str, dict[str, float | None]]
    settings: dict[str, Any] = {}
    certificate: Level = "off"
    certificate_seconds: int | None = None
    table: dict[str, Any] = {}
    shifts: dict[_Name, dict[str, Any]] = {}
    task: Literal["classify", "restore"] = "classify"


def read_manifest(folder: Path) -> dict[str, Any]:
    """``benchmark.json``, with its keys there and of the right kind.

    ``settings`` (attack's label -> its record) may be missing: then outcomes are taken as they are. Without
    ``certificate`` (the level asked for) there is none, and without ``certificate_seconds`` it may take its time;
    ``table`` is what the table was made by, see ``variants``.
    """
    path = folder / names.BENCHMARK
    if not path.is_file():
        raise UserError(f"{folder}: no benchmark here (expected {path.name} in it)")
    return read_as(path, _Manifest)


def check_run_folder(path: Path) -> str:
    """The run's id; UserError unless it is a run's folder."""
    if not (path / names.RUN).is_file():
        raise UserError(f"{path}: not a run's folder (no run.json); give results/<benchmark>/runs/<id>")
    Seals(path).check(names.RUN)
    return str(read_keys(path / names.RUN, ("run_id",))["run_id"])


def manifest_of(plan: Plan, dataset: Dataset, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the leaderboard is made by: the attacks, the threat and the rows, ``run_id``, ``run``, ``seed`` each."""
    seconds = plan.config.evaluation.certificate_seconds
    return {
        "name": plan.config.name,
        "source": plan.config.source,
        "dataset": dataset.label,
        "attacks": [a.label for a in plan.attacks],
        "settings": {a.label: plain(a.record()) for a in plan.attacks},
        **_shifts(plan),
        "threat": plan.config.threat.model_dump(),
        **({} if plan.task.key == "classify" else {"task": plan.task.key}),
        "certificate": plan.config.evaluation.certificate,
        **({} if seconds is None else {"certificate_seconds": seconds}),
        "table": table_of(plan),
        "runs": runs,
        "published": plan.published,
    }


def _shifts(plan: Plan) -> dict[str, Any]:
    """Shift's label -> its record, under ``shifts``; nothing where there are none, as there once were nowhere."""
    return {"shifts": {s.label: plain(s.record()) for s in plan.shifts}} if plan.shifts else {}


def table_of(plan: Plan) -> dict[str, Any]:
    """Everything in a config that determines its table's numbers, as plain values."""
    c = plan.config
    table: dict[str, Any] = plain(
        {
            "data": {"name": plan.dataset_name, **settings_of(plan.dataset)},
            "validation": c.validation,
            "train_limit": c.train_limit,
            "threat": c.threat.model_dump(),
            "evaluation": {k: getattr(c.evaluation, k) for k in ("draws", "limit", "precision")},
            "attacks": {a.label: a.record() for a in plan.attacks},
            **_shifts(plan),
            **task_record(plan.task),
            "runs": {run.label: run.table_record() for run in plan.runs},
            "seeds": list(c.seeds),
        }
    )
    return table

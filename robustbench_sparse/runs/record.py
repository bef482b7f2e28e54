"""What names a run: everything that determines its weights, and how a reader knows it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from robustbench_sparse.config import plugins
from robustbench_sparse.config.plan import Plan, RunPlan
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.provenance import code_of

FORMAT = 3  # raise it when a change of the code changes what the same config trains


def locate(folder: Path, plan: Plan, run: RunPlan, seed: int, dataset: Dataset) -> RunFolder:
    """The folder of one run below a benchmark's folder; nothing is written."""
    record = {
        "format": FORMAT,
        "data": {"name": plan.dataset_name, **plugins.settings_of(plan.dataset)},
        "fingerprint": dataset.fingerprint,
        "validation": plan.config.validation,
        "train_limit": plan.config.train_limit,
        "threat": plan.config.threat.model_dump(),
        "seed": seed,
        "code": code_of(run.parts()),
        **run.record(),
    }
    text = json.dumps(record, sort_keys=True)
    run_id = f"{run.label}-s{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    facts = {
        "run_id": run_id,
        "benchmark": plan.config.name,
        "run": run.label,
        "seed": seed,
        "dataset": dataset.label,
        "model": shown(run.model_name, run.model),
        "defenses": "+".join([*(shown(d.name, d.build()) for d in run.defenses), *_sparse_optimizers(run)]),
        "threat": plan.config.threat.model_dump(),
        "record": record,
        **({"snapshots": [names.snapshot(*at) for at in run.snapshots()]} if run.snapshots() else {}),
        **({"dense_twin": dataclasses.asdict(run.twin)} if run.twin else {}),
    }
    return RunFolder(
        path=folder / names.RUNS / run_id, run_id=run_id, label=run.label, seed=seed, facts=facts
    )


def _sparse_optimizers(run: RunPlan) -> list[str]:
    """Optimizers that make the network sparse: they belong to what a reader has to know of a row."""
    pairs = [(s.config.optimizer["name"], s.optimizer) for s in run.stages if s.optimizer.sparsifies]
    return list(dict.fromkeys(shown(name, optimizer) for name, optimizer in pairs))


def shown(name: str, plugin: object) -> str:
    """A plug-in as a reader knows it: its name and the settings that are not defaults."""
    defaults = plugins.settings_with_defaults(type(plugin))
    changed = {k: v for k, v in plugins.settings_of(plugin).items() if v != defaults[k]}
    inner = ", ".join(f"{k}={_short(v)}" for k, v in changed.items())
    return f"{name}({inner})" if inner else name


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + " ".join(_short(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + " ".join(f"{k}: {_short(v)}" for k, v in value.items()) + "}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)

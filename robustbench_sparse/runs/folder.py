"""A run's folder: what it is, where it came from, its weights, its outcomes.

``results/<benchmark>/runs/<id>/`` holds ``run.json`` (resolved config), ``environment.json``,
``history.csv`` (per epoch), ``layers.csv`` (per epoch and layer), ``checkpoint.pt`` (only while training),
``model.safetensors`` (the deployed network), ``training.json``, ``sparsity.json``, ``outcomes/``, ``certificate/``,
and ``files.json``, which says which of them count (see ``seals``). The id names everything that determines the weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import BaseModel
from torch import nn

from defenses.base import Kind
from robustbench_sparse.config import plugins
from robustbench_sparse.config.plan import Plan, RunPlan
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.foundation.environment import describe
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import (
    fill,
    load_weights,
    read_as,
    read_keys,
    save_weights,
    sha256,
    write_atomically,
    write_json,
)
from robustbench_sparse.foundation.texts import csv_safe
from robustbench_sparse.models.build import build_network
from robustbench_sparse.runs.provenance import code_of
from robustbench_sparse.runs.seals import Seals
from robustbench_sparse.runs.trained import Trained
from robustbench_sparse.sparsity.claims import against_asked, refusal
from robustbench_sparse.sparsity.counting import count_sparsity

FORMAT = 3  # raise it when a change of the code changes what the same config trains


TRAINED = ("history.csv", "layers.csv", "model.safetensors", "training.json")  # what training leaves


class _AskedFacts(BaseModel):
    defense: str
    kind: Kind
    percent: float
    names: list[str]
    binding: bool


class _TrainingFacts(BaseModel):
    status: str
    reason: str
    train_seconds: float
    selected: dict[str, float | None]
    asked: list[_AskedFacts]
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run of a benchmark, as a folder.

    Attributes:
        path: the folder.
        run_id: its name.
        label, seed: the row of the benchmark.
        facts: the content of ``run.json``.
    """

    path: Path
    run_id: str
    label: str
    seed: int
    facts: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """State after the last whole epoch."""
        return self.path / "checkpoint.pt"

    @property
    def weights(self) -> Path:
        """The deployed network."""
        return self.path / "model.safetensors"

    @property
    def outcomes(self) -> Path:
        """Folder of per-image records."""
        return self.path / "outcomes"

    @property
    def seals(self) -> Seals:
        """Which of the folder's files count."""
        return Seals(self.path)

    def training(self) -> dict[str, Any] | None:
        """How training ended, or None while it has not.

        Raises:
            UserError: the file has been changed since.
        """
        if not self.seals.has("training.json"):
            return None
        self.seals.check("training.json")
        return read_as(self.path / "training.json", _TrainingFacts)

    def prepare(self, device: torch.device) -> None:
        """Write what is known before training."""
        with self.seals.renewing("run.json"):
            write_json(self.path / "run.json", self.facts)
        if not self.seals.has("environment.json"):
            with self.seals.renewing("environment.json"):
                write_json(self.path / "environment.json", describe(device))

    def store(self, trained: Trained) -> None:
        """Write what training left; it counts once all of it is there."""
        with self.seals.renewing(*TRAINED):
            for name, rows in (("history.csv", trained.history), ("layers.csv", trained.layers)):
                table = csv_safe(pd.DataFrame(rows))
                write_atomically(self.path / name, functools.partial(table.to_csv, index=False))
            if not trained.diverged:
                save_weights(self.weights, trained.weights)
            write_json(
                self.path / "training.json",
                {
                    "status": "diverged" if trained.diverged else "complete",
                    "reason": trained.diverged,
                    "train_seconds": round(trained.seconds, 3),
                    "selected": {k: None if math.isnan(v) else v for k, v in trained.selected.items()},
                    "asked": trained.asked,
                    "weights_sha256": "" if trained.diverged else sha256(self.weights),
                },
            )
        self.checkpoint.unlink(missing_ok=True)

    def adopt(self, others: Iterable[Path], device: torch.device) -> bool:
        """Take over the training of the same run from another benchmark's folder, where one has it; whether it did.

        Args:
            others: folders of benchmarks.
            device: for the environment, where that was not kept.

        Raises:
            UserError: a file there has been changed since it was stored.
        """
        for other in others:
            home = RunFolder(
                path=other / "runs" / self.run_id,
                run_id=self.run_id,
                label=self.label,
                seed=self.seed,
                facts={},
            )
            training = home.training() if home.path.is_dir() else None
            if training is None or training["status"] != "complete":
                continue
            names = [n for n in (*TRAINED, "environment.json") if home.seals.has(n)]
            home.seals.check(*names)
            with self.seals.renewing(*names):
                for name in (*names, "speed.json"):  # what was chosen for speed belongs to the numbers, too
                    if (home.path / name).is_file():
                        data = (home.path / name).read_bytes()
                        write_atomically(self.path / name, lambda f, d=data: f.write(d))  # type: ignore[misc]
            self.prepare(device)
            return True
        return False

    def network(self, run: RunPlan, dataset: Dataset) -> nn.Module:
        """The deployed network, read back from its file, in eval mode on the CPU."""
        self.check_weights()
        weights = load_weights(self.weights)
        channels, size = dataset.train_x.shape[1], dataset.train_x.shape[2]
        defenses = [d.build() for d in run.defenses]
        model = build_network(run.model, defenses, channels, size, len(dataset.classes), self.seed)
        fill(model, weights, self.weights)
        return model.eval()

    def counts(self) -> dict[str, Any] | None:
        """What ``count`` kept, or None where it is not there or was changed: it is counted again then."""
        if not self.seals.holds("sparsity.json"):
            return None
        found: dict[str, Any] = read_keys(self.path / "sparsity.json", ("refused",))
        return found

    def check_weights(self) -> None:
        """UserError unless the weights are those that were trained."""
        training = self.training()
        if training is None:
            raise UserError(f"{self.path}: not trained to the end")
        if training["status"] != "complete":
            raise UserError(f"{self.path}: {training['status']}: {training['reason']}")
        if not self.seals.holds(self.weights.name) or sha256(self.weights) != training["weights_sha256"]:
            raise UserError(f"{self.weights}: changed since it was trained; delete the folder to train again")

    def count(self, model: nn.Module, channels: int, size: int) -> dict[str, Any]:
        """Count the zeros of the network read back from its file, and keep the counts.

        Beside them ``asked``, what methods were asked for and what was counted of it, and ``refused``: why the row
        cannot be shown, empty where the counts are what they should be.
        """
        training = self.training() or {}
        counts = count_sparsity(model, channels, size)
        counts["asked"] = against_asked(training.get("asked", []), counts["layers"])
        counts["refused"] = refusal(training.get("selected", {}), counts)
        with self.seals.renewing("sparsity.json"):
            write_json(self.path / "sparsity.json", counts)
        return counts


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
        "defenses": "+".join([*(shown(d.name, d.build()) for d in run.defenses), *_sparse_optimisers(run)]),
        "threat": plan.config.threat.model_dump(),
        "record": record,
    }
    return RunFolder(path=folder / "runs" / run_id, run_id=run_id, label=run.label, seed=seed, facts=facts)


def _sparse_optimisers(run: RunPlan) -> list[str]:
    """Optimisers that make the network sparse: they belong to what a reader has to know of a row."""
    pairs = [(s.config.optimizer["name"], s.optimiser) for s in run.stages if s.optimiser.sparsifies]
    return list(dict.fromkeys(shown(name, optimiser) for name, optimiser in pairs))


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

"""A run's folder: what it is, where it came from, its weights, its outcomes.

``results/<benchmark>/runs/<id>/`` holds ``run.json`` (resolved config), ``environment.json``,
``history.csv`` (per epoch), ``layers.csv`` (per epoch and layer), ``checkpoint.pt`` (only while training),
``model.safetensors`` (the deployed network), ``snapshots/`` (those of epochs that were asked for), ``training.json``,
``sparsity.json``, ``outcomes/``, ``certificate/``, and ``files.json``, which says which of them count (see ``seals``).
The id names everything that determines the weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from defenses.base import Kind
from robustbench_sparse.config.plan import Plan
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.foundation.environment import describe
from robustbench_sparse.foundation.errors import UserError, one_line
from robustbench_sparse.foundation.fences import remove
from robustbench_sparse.foundation.files import (
    fill,
    load_weights,
    plain,
    read_as,
    read_json,
    read_keys,
    save_weights,
    sha256,
    write_atomically,
    write_json,
)
from robustbench_sparse.foundation.locks import remove_leftovers
from robustbench_sparse.foundation.texts import csv_safe
from robustbench_sparse.runs import names
from robustbench_sparse.runs.manifest import check_run_folder
from robustbench_sparse.runs.rebuild import architecture
from robustbench_sparse.runs.seals import Seals
from robustbench_sparse.runs.trained import Trained
from robustbench_sparse.sparsity.claims import against_asked, refusal
from robustbench_sparse.sparsity.counting import count_sparsity


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
    last: dict[str, float | None] = {}
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

    @classmethod
    def at(cls, path: Path) -> RunFolder:
        """A run's folder that lies on the disk.

        Raises:
            UserError: it is none, or ``run.json`` has been changed.
        """
        check_run_folder(path)
        facts = read_json(path / names.RUN)
        try:
            return cls(
                path=path, run_id=path.name, label=str(facts["run"]), seed=int(facts["seed"]), facts=facts
            )
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f"{path / names.RUN}: damaged: {type(e).__name__}: {one_line(e)}") from None

    @classmethod
    def foreign(cls, path: Path, plan: Plan, dataset: Dataset, facts: Mapping[str, Any]) -> RunFolder:
        """The folder of a network that was not trained here.

        Args:
            path: the folder; its name is the run's id.
            plan: what it is judged by.
            dataset: it is judged on.
            facts: ``run`` and ``seed`` of its row, ``model``, and ``identity``, which names the network.
        """
        known = {
            "run_id": path.name,
            "benchmark": plan.config.name,
            "dataset": dataset.label,
            "defenses": "",
            "threat": plan.config.threat.model_dump(),
            "record": {},
            **facts,
        }
        return cls(path=path, run_id=path.name, label=facts["run"], seed=facts["seed"], facts=known)

    @property
    def checkpoint(self) -> Path:
        """State after the last whole epoch."""
        return self.path / names.CHECKPOINT

    def tidy(self) -> None:
        """Remove what a process that was killed left of its writing; for who works on the row alone."""
        remove_leftovers(self.path)

    @property
    def weights(self) -> Path:
        """The deployed network."""
        return self.path / names.WEIGHTS

    @property
    def speed(self) -> Path:
        """What was chosen for speed."""
        return self.path / names.SPEED

    @property
    def seals(self) -> Seals:
        """Which of the folder's files count."""
        return Seals(self.path)

    def training(self) -> dict[str, Any] | None:
        """How training ended, or None while it has not.

        Raises:
            UserError: the file has been changed since.
        """
        if not self.seals.has(names.TRAINING):
            return None
        self.seals.check(names.TRAINING)
        return read_as(self.path / names.TRAINING, _TrainingFacts)

    def complete(self) -> dict[str, Any] | None:
        """``training`` where it came to its end and left a network; None else."""
        training = self.training()
        return training if training is not None and training["status"] == "complete" else None

    def prepare(self, device: torch.device) -> None:
        """Write what is known before training."""
        with self.seals.renewing(names.RUN):
            write_json(self.path / names.RUN, self.facts)
        if not self.seals.has(names.ENVIRONMENT):
            with self.seals.renewing(names.ENVIRONMENT):
                write_json(self.path / names.ENVIRONMENT, describe(device))

    def store(self, trained: Trained) -> None:
        """Write what training left; it counts once all of it is there."""
        with self.seals.renewing(*names.TRAINED, *trained.snapshots):
            for name, rows in ((names.HISTORY, trained.history), (names.LAYERS, trained.layers)):
                table = csv_safe(pd.DataFrame(rows))
                write_atomically(self.path / name, functools.partial(table.to_csv, index=False))
            if not trained.diverged:
                save_weights(self.weights, trained.weights)
            remove(self.path / names.LAST)
            if not trained.diverged and trained.last != trained.selected:
                save_weights(self.path / names.LAST, trained.last_weights)
            self._write_training(trained, "" if trained.diverged else sha256(self.weights))
        remove(self.checkpoint)

    def store_foreign(self) -> None:
        """Say that no training of ours lies behind the network."""
        with self.seals.renewing(names.TRAINING):
            self._write_training(Trained(), "")

    def _write_training(self, trained: Trained, weights_sha256: str) -> None:
        about = {
            "status": "diverged" if trained.diverged else "complete",
            "reason": trained.diverged,
            "train_seconds": round(trained.seconds, 3),
            "selected": _without_nan(trained.selected),
            "last": _without_nan(trained.last),
            "asked": trained.asked,
            "weights_sha256": weights_sha256,
        }
        write_json(self.path / names.TRAINING, about)

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
                path=other / names.RUNS / self.run_id,
                run_id=self.run_id,
                label=self.label,
                seed=self.seed,
                facts={},
            )
            if not home.complete() or not home.seals.has(*self._snapshots):
                continue
            found = [n for n in (*names.TRAINED, names.ENVIRONMENT, *self._snapshots) if home.seals.has(n)]
            home.seals.check(*found)
            with self.seals.renewing(*found):
                for name in (*found, names.SPEED):  # what was chosen for speed belongs to the numbers, too
                    if (home.path / name).is_file():
                        _copy(home.path / name, self.path / name)
            self.prepare(device)
            return True
        return False

    def adopt_last(self, device: torch.device) -> bool:
        """Take over the last epoch of a run that differs in nothing but the epoch it keeps; whether there is one.

        Raises:
            UserError: a file there has been changed since it was stored.
        """
        if self.facts["record"]["stages"][-1]["selection"] != "last":
            return False
        mine = _without_choice(self.facts["record"])
        for path in sorted(self.path.parent.glob(f"*-s{self.seed}-*/{names.RUN}")):
            home = RunFolder(path=path.parent, run_id=path.parent.name, label="", seed=self.seed, facts={})
            training = home.complete() if home.seals.has(names.RUN) else None
            if training is None or not training["last"]:
                continue
            home.seals.check(names.RUN)
            record = read_keys(path, ("record",))["record"]
            if not record or _without_choice(record) != mine or not home.seals.has(*self._snapshots):
                continue
            self._take_last(home, training)
            self.prepare(device)
            return True
        return False

    def _take_last(self, home: RunFolder, training: Mapping[str, Any]) -> None:
        found = [n for n in (*names.TRAINED, names.ENVIRONMENT, *self._snapshots) if home.seals.has(n)]
        home.seals.check(*found)
        with self.seals.renewing(*names.TRAINED, names.ENVIRONMENT, *self._snapshots):
            for name in (names.HISTORY, names.LAYERS, names.ENVIRONMENT, *self._snapshots):
                if name in found:
                    _copy(home.path / name, self.path / name)
            _copy(home.path / (names.LAST if names.LAST in found else names.WEIGHTS), self.weights)
            facts = {**training, "selected": training["last"], "weights_sha256": sha256(self.weights)}
            write_json(self.path / names.TRAINING, facts)

    def network(self, channels: int, size: int, classes: int) -> nn.Module:
        """The deployed network as its record says it was built, with the weights of its file; eval mode, on the CPU.

        Args:
            channels, size, classes: of the data set's images.

        Raises:
            UserError: weights that are missing, of another network, or not those that were trained; a damaged record;
                or images that the network does not fit.
        """
        self.check_weights()
        weights = load_weights(self.weights)
        model = architecture(self.path, channels, size, classes)
        fill(model, weights, self.weights)
        return model

    @property
    def _snapshots(self) -> list[str]:
        """Names of the snapshots that were asked for."""
        return list(self.facts.get("snapshots", []))

    def lacks_snapshots(self) -> bool:
        """Whether training left no snapshot that was asked for, as it was not asked for them at the time."""
        return not self.seals.has(*self._snapshots)

    def snapshots(self) -> list[tuple[int, int]]:
        """Stage, and epochs passed in it, of each network kept on the way; in their order."""
        return sorted(at for name in self.seals.hashes() if (at := names.snapshot_of(name)) is not None)

    def snapshot(self, stage: int, passed: int) -> dict[str, Tensor]:
        """The weights of one of ``snapshots``; UserError where it is not there or was changed."""
        name = names.snapshot(stage, passed)
        self.seals.check(name)
        return load_weights(self.path / name)

    def counts(self) -> dict[str, Any] | None:
        """What ``count`` kept, or None where it is not there or was changed: it is counted again then."""
        if not self.seals.holds(names.SPARSITY):
            return None
        found: dict[str, Any] = read_keys(self.path / names.SPARSITY, ("refused",))
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
        with self.seals.renewing(names.SPARSITY):
            write_json(self.path / names.SPARSITY, counts)
        return counts


def _copy(source: Path, target: Path) -> None:
    data = source.read_bytes()
    write_atomically(target, lambda f: f.write(data))


def _without_nan(facts: Mapping[str, float]) -> dict[str, float | None]:
    return {k: None if math.isnan(v) else v for k, v in facts.items()}


def _without_choice(record: Mapping[str, Any]) -> dict[str, Any]:
    """A run's record but for which epoch its last stage keeps."""
    *first, last = record["stages"]
    chosen = {k: v for k, v in last.items() if k not in ("selection", "select_after")}
    return {**plain(record), "stages": plain([*first, chosen])}

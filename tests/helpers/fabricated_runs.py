"""Folders of runs with weights written by hand, as training would have left them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.plan import Plan
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.foundation.files import save_weights, write_json
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.manifest import manifest_of
from robustbench_sparse.runs.record import locate
from robustbench_sparse.runs.trained import Trained
from tests.helpers.small import small

State = Mapping[str, Tensor]


def images() -> Dataset:
    """Ten images of 8 x 8 pixels, black."""
    x, y = torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10)
    return Dataset(name="t", label="t", train_x=x, train_y=y, test_x=x, test_y=y, classes=tuple("abcdefghij"))


def rows_of(state: State, stage: int = 0, epoch: int = 0) -> list[dict[str, Any]]:
    """The lines of ``layers.csv`` of one epoch: each tensor with two axes or more is a layer's weight."""
    out = []
    for name, w in state.items():
        if w.ndim < 2:
            continue
        convolution = w.ndim > 2
        out.append(
            {
                "stage": stage,
                "epoch": epoch,
                "name": name.removesuffix("weight").removesuffix("."),
                "weights": w.numel(),
                "zero_weights": w.numel() - int(w.count_nonzero()),
                "channels": w.shape[1] if convolution else 0,
                "zero_channels": 0,
                "kernels": w.shape[0] * w.shape[1] if convolution else 0,
                "zero_kernels": 0,
                "l1_norm": w.abs().sum().item(),
                "rows": len(w),
                "zero_rows": int((w.flatten(1).count_nonzero(1) == 0).sum()),
            }
        )
    return out


def plan_of(label: str = "r", **changes: Any) -> Plan:
    """A plan with one run, of keys that a config may have."""
    return resolve(small(**{"model": {"name": "mlp", "hidden": [4]}, "runs": {label: {}}, **changes}))


def fabricated(
    home: Path,
    state: State,
    *,
    plan: Plan | None = None,
    seed: int = 0,
    dataset: Dataset | None = None,
    course: Sequence[State] = (),
    snapshots: Mapping[tuple[int, int], State] | None = None,
) -> RunFolder:
    """A run's folder below a benchmark's.

    Args:
        home: the benchmark's folder.
        state: the deployed network; layer by layer the last epoch.
        plan: says how the run was made.
        seed: the run's.
        dataset: it was trained on.
        course: the networks of the epochs, in place of ``state`` alone.
        snapshots: kept on the way, by stage and epochs passed.
    """
    plan = plan or plan_of()
    run = locate(home, plan, plan.runs[0], seed, dataset or images())
    run.prepare(torch.device("cpu"))
    kept = {names.snapshot(*at): weights for at, weights in (snapshots or {}).items()}
    for name, weights in kept.items():
        save_weights(run.path / name, weights)
    layers = [row for epoch, then in enumerate(course or [state]) for row in rows_of(then, epoch=epoch)]
    chosen = {"stage": 0.0, "epoch": 0.0}
    run.store(
        Trained(
            weights=dict(state),
            selected=chosen,
            last_weights=dict(state),
            last=chosen,
            history=[{"stage": 0, "epoch": 0, "train_loss": 1.0}],
            layers=layers,
            snapshots=list(kept),
        )
    )
    return RunFolder.at(run.path)


def benchmark_of(home: Path, plan: Plan, runs: Sequence[RunFolder], dataset: Dataset | None = None) -> Path:
    """The benchmark's folder with its ``benchmark.json``."""
    rows = [{"run_id": r.run_id, "run": r.label, "seed": r.seed} for r in runs]
    write_json(home / names.BENCHMARK, manifest_of(plan, dataset or images(), rows))
    return home

"""A training step reads no value back from its device: on a GPU, that would empty the queue at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import small
from torch.utils._python_dispatch import TorchDispatchMode

from robustbench_sparse.config import resolve
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.progress import Silent
from robustbench_sparse.train import Trainer

# What .item(), bool(), int() and masks of unknown size come down to.
READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
MASKS = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}


class NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masked = func in MASKS and any(i is not None and i.dtype == torch.bool for i in args[1])
        if func in READS or masked:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def trainer(tmp_path: Path, *defenses: dict[str, Any], precision: str = "fp32") -> Trainer:
    run = {"defenses": list(defenses), "train": {"epochs": 1, "selection": "last", "precision": precision}}
    plan = resolve(small(runs={"run": run}, train_limit=128))
    data = PreparedData(plan.dataset.load(None, None), validation=100, train_limit=128)
    return Trainer(plan.runs[0], data, plan.threat, 0, tmp_path / "checkpoint.pt", Silent())


DEFENSES: dict[str, list[dict[str, Any]]] = {
    "natural": [],
    "pgd_at": [{"name": "pgd_at", "steps": 2}],
    "pgd_at l2": [{"name": "pgd_at", "steps": 2, "norm": "l2", "eps": 0.5}],
    "enresnet": [{"name": "enresnet", "members": 2}, {"name": "pgd_at", "steps": 2, "eot": 2}],
    "rgsm lasso": [{"name": "rgsm", "beta": 1.0, "lam": 0.1, "lam2": 1e-5}],
    "rgsm l0": [{"name": "rgsm", "regulariser": "group_l0", "beta": 1.0, "lam": 0.1, "keep_one": True}],
    "clip": [{"name": "clip", "lam": 0.01, "pairs": 16}],
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", DEFENSES)
def test_no_value_is_read_within_a_step(tmp_path: Path, name: str, precision: str) -> None:
    trained = trainer(tmp_path, *DEFENSES[name], precision=precision)
    step, steps = trained._step, 0

    def watched(optimizer: torch.optim.Optimizer) -> Any:
        nonlocal steps
        steps += 1
        with NoReads():
            return step(optimizer)

    trained._step = watched  # type: ignore[method-assign]
    trained.train()
    assert steps == 2


def test_the_watch_sees_a_read() -> None:
    with NoReads(), pytest.raises(AssertionError, match="waits"):
        torch.ones(()).item()
    with NoReads(), pytest.raises(AssertionError, match="waits"):
        torch.ones(3)[torch.tensor([True, False, True])]

"""A training step reads no value back from its device: on a GPU, that would empty the queue at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from defenses import DEFENSES
from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.optimizers import OPTIMIZERS
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.training.trainer import Trainer
from tests.helpers.small import small

# What .item(), bool(), int() and masks of unknown size come down to.
READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
MASKS = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}


class NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masked = func in MASKS and any(i is not None and i.dtype == torch.bool for i in args[1])
        if func in READS or masked:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def trainer(tmp_path: Path, run: dict[str, Any], precision: str = "fp32") -> Trainer:
    train = {"epochs": 1, "selection": "last", "precision": precision, **run.get("train", {})}
    plan = resolve(small(runs={"run": {**run, "train": train}}, train_limit=128))
    data = PreparedData(plan.dataset.load(None, None), validation=100, train_limit=128)
    return Trainer(plan.runs[0], data, plan.threat, 0, tmp_path / "checkpoint.pt", Silent())


def defended(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"defenses": list(entries)}


def optimised(name: str, *defenses: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"defenses": list(defenses), "train": {"optimizer": {"name": name, "lr": 0.01, **settings}}}


GROUPS = {"name": "group_lasso", "group": "channel", "weighted": True}
SPLITTING = {"lam": 0.1, "beta": 1.0, "layers": "all"}
RUNS: dict[str, dict[str, Any]] = {
    "natural": {},
    "pgd_at": defended({"name": "pgd_at", "steps": 2}),
    "pgd_at l2": defended({"name": "pgd_at", "steps": 2, "norm": "l2", "eps": 0.5}),
    "trades": defended({"name": "trades", "steps": 2, "eps_warm_up": 1}, {"name": "awp"}),
    "mart": defended({"name": "mart", "steps": 2, "step_size": 0.02}, {"name": "ema"}),
    "n_fgsm": defended({"name": "n_fgsm", "gradient": "bf16"}, {"name": "label_smoothing"}),
    "fgsm_rs": defended({"name": "fgsm_rs", "batch_statistics": True}, {"name": "awp", "gamma": 0.1}),
    "enresnet": defended({"name": "enresnet", "members": 2}, {"name": "pgd_at", "steps": 2, "eot": 2}),
    "clip": defended({"name": "clip", "lam": 0.01, "pairs": 16}),
    "spectral_penalty": defended({"name": "spectral_penalty", "lam": 1e-3, "power_iterations": 1}),
    "broken": defended({"name": "broken", "how": "scaled_logits"}),
    "rgsm lasso": defended({"name": "rgsm", "beta": 1.0, "lam": 0.1, "lam2": 1e-5}),
    "rgsm l0": defended(
        {"name": "rgsm", "regulariser": "group_l0", "beta": 1.0, "lam": 0.1, "keep_one": True}
    ),
    "rvsm l1": defended({"name": "rvsm", **SPLITTING, "target_sparsity": 90.0}),
    "rvsm l0": defended({"name": "rvsm", **SPLITTING, "regulariser": "l0"}),
    "rvsm transformed l1": defended({"name": "rvsm", **SPLITTING, "regulariser": "transformed_l1"}),
    "rvsm groups": defended({"name": "rvsm", "lam": 0.1, "beta": 1.0, "regulariser": GROUPS}),
    "rvscgd": defended({"name": "rvscgd", **SPLITTING, "binarise": False}),
    "admm": defended({"name": "admm", "sparsity": 90.0, "layers": "all"}),
    "admm groups": defended({"name": "admm", "sparsity": 50.0, "group": "channel", "scope": "global"}),
    "lasso": defended({"name": "lasso", "lam": 0.01, "conv": GROUPS, "threshold": 0.01}),
    "magnitude_prune": defended({"name": "magnitude_prune", "sparsity": 90.0}),
    "l1_filter_prune": defended({"name": "l1_filter_prune", "sparsity": 50.0}),
    "network_slimming": defended({"name": "network_slimming", "lam": 0.01, "sparsity": 50.0}),
    "hold_zeros": defended({"name": "hold_zeros", "threshold": 0.1}),
    "mean_sparse": defended({"name": "mean_sparse", "alpha": 0.2, "images": 32}),
    "quantise": defended({"name": "quantise", "bits": 8, "images": 32}),
    "hydra": defended({"name": "hydra", "sparsity": 90.0}),
    "hydra global": defended({"name": "hydra", "sparsity": 90.0, "scope": "global", "freeze_norms": True}),
    "s2ap": defended({"name": "s2ap", "sparsity": 90.0, "gamma": 0.1}),
    "set": defended({"name": "set", "sparsity": 90.0, "every": 1}),
    "rigl": defended({"name": "rigl", "sparsity": 90.0, "every": 1, "end": 1.0}),
    "flying_bird": defended({"name": "flying_bird", "sparsity": 90.0, "every": 1, "adapt": True}),
    "sparse_init": defended({"name": "sparse_init", "density": 0.1}),
    "sgd": optimised("sgd", momentum=0.9, nesterov=True),
    "linbreg": optimised("linbreg", {"name": "target_sparsity", "target": 90.0}, lam=0.1),
    "linbreg momentum": optimised("linbreg", lam=0.1, momentum=0.9, weight_decay=1e-4),
    "linbreg groups": optimised("linbreg", lam=0.1, conv=GROUPS, linear="group_l0"),
    "adabreg": optimised("adabreg", {"name": "hold_zeros", "threshold": 0.1}, lam=0.1),
    "proxsgd": optimised("proxsgd", lam=0.1),
    "proxsgd momentum": optimised("proxsgd", lam=0.1, momentum=0.9, conv="transformed_l1", linear="l0"),
    "proxsgd sparse groups": optimised("proxsgd", lam=0.1, conv="sparse_group_lasso"),
}


def test_all_defenses_and_optimizers_are_watched() -> None:
    named = {entry["name"] for run in RUNS.values() for entry in run.get("defenses", [])}
    assert named == set(DEFENSES)
    tried = {run["train"]["optimizer"]["name"] for run in RUNS.values() if "train" in run}
    assert tried == set(OPTIMIZERS) - {"adam", "adamw"}  # torch's count their steps in a tensor on the host


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", RUNS)
def test_no_value_is_read_within_a_step(tmp_path: Path, name: str, precision: str) -> None:
    trained = trainer(tmp_path, RUNS[name], precision=precision)
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

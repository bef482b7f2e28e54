"""What is found out before anything trains: batches, crops and memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustbench_sparse import run_benchmark
from robustbench_sparse.config.optimizers import OPTIMIZERS
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.training import preflight as fitting
from robustbench_sparse.training.preflight import needed_memory, state_memory

RAW: dict[str, Any] = {
    "name": "fits",
    "data": "digits",
    "train_limit": 200,
    "attacks": {"fgsm": "fgsm"},
    "model": {"name": "mlp", "hidden": [8]},
    "train": {"epochs": 1, "selection": "last", "batch_size": 100},
    "runs": {"a": {}},
}


def refused(folder: Path, *changes: str) -> str:
    with pytest.raises(UserError) as error:
        run_benchmark(copy.deepcopy(RAW), out=folder, changes=changes, device="cpu")
    assert not list(folder.iterdir()), "nothing is written"
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.batch_size=201", "runs.a: batch_size: expected at most the 200 training images, got 201"),
        (
            "train.augment.crop=9",
            "runs.a: augment.crop: expected at most the 8 pixels of an image's side, got 9",
        ),
        ("train.augment.crop=10000", "augment.crop"),
        ("model.hidden=[100000000]", "runs.a: needs at least 170.0 GB"),
        ("model.hidden=[100000000, 100000000]", "runs.a: "),
        ("model.hidden=[1099511627776]", "hidden.0: expected at most 100000000, got 1099511627776"),
        ("train.optimizer={name: sgd, lr: 1e308}", "lr: expected a number of at most 1e+32"),
        ("attacks.fgsm={name: pgd, steps: 1000000000000000000000000000000}", "attacks.fgsm.steps: expected"),
        ("seeds=[9223372036854775808]", "seeds: expected whole numbers below 2^31"),
        ("threads=10000000000", "threads: expected a number <= 1024, got 10000000000"),
        ("threat.eps=8", "threat: expected a radius eps of at most 1 for linf"),
        ("name=" + "n" * 300, "name: expected at most 100 characters, got 'nnn"),
        ("runs." + "n" * 300 + "={}", "expected a label of at most 100"),
        ("attacks." + "n" * 300 + "=fgsm", "expected a label of at most 100"),
        (
            "train.optimizer={name: sgd, lr: .inf}",
            "optimizer.lr: expected a number of at most 1e+06, got inf",
        ),
        ("train.optimizer={name: adam, lr: 1e7}", "optimizer.lr: expected a number of at most 1e+06"),
        (
            "train.optimizer={name: linbreg, weight_decay: .inf}",
            "weight_decay: expected a number in [0, 1e+06]",
        ),
        ("train.schedule={name: plateau, min_lr: .inf}", "schedule.min_lr: expected a finite number >= 0"),
        ("train.schedule={name: one_cycle, end_divisor: .inf}", "end_divisor: expected a finite number >= 1"),
        ("model={name: preact_resnet, depth: 99999998}", "model.depth: expected at most 5000 layers"),
        (
            "attacks.fgsm={name: geometric, angles: 10, shifts: 101}",
            "angles: expected angles * shifts^2 of at",
        ),
        (
            "attacks.fgsm={name: geometric, search: random, draws: 100001}",
            "draws: expected an integer in [1,",
        ),
        ("attacks.fgsm={name: nattack, samples: 100001}", "samples: expected an integer in [2, 100000]"),
        ("runs.a.defenses=[{name: enresnet, members: 1001}]", "members: expected an integer in [1, 1000]"),
        ("runs.a.defenses=[{name: enresnet, noise: .inf}]", "noise: expected a finite number >= 0"),
        ("runs.a.defenses=[{name: clip, pairs: 100001}]", "pairs: expected an integer in [1, 100000]"),
        ("runs.a.defenses=[{name: clip, increment: .inf}]", "increment: expected a finite number > 0"),
        ("runs.a.defenses=[{name: clip, init_noise: .inf}]", "init_noise: expected a finite number > 0"),
        ("runs.a.defenses=[{name: clip, step_size: .inf}]", "step_size: expected a finite number > 0"),
        ("runs.a.defenses=[{name: clip, step_factor: .inf}]", "step_factor: expected a finite number >= 1"),
        ("runs.a.defenses=[{name: pgd_at, eps: 8}]", "runs.a.defenses.0: eps: expected at most 1 for linf"),
        (
            "runs.a.defenses=[{name: pgd_at, eps: .inf}]",
            "runs.a.defenses.0: step_size: expected a number, as",
        ),
        ("seeds=[" + ", ".join(map(str, range(10_001))) + "]", "seeds: expected at most 10000, got [0, 1"),
        ("train.epochs=10000000000", "epochs: expected a number <= 1000000, got 10000000000"),
        ("evaluation.draws=10000000000", "evaluation.draws: expected"),
    ],
)
def test_what_would_fail_later_is_refused_before(tmp_path: Path, change: str, message: str) -> None:
    assert message in refused(tmp_path, change)


def test_the_estimate_is_from_below_and_not_far() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 10))
    weights, outputs = 64 * 1000 + 1000 + 10_000 + 10, 64 + 1000 + 1000 + 10
    assert needed_memory(model, 32, 1, 8) == 4 * (3 * weights + 32 * outputs)


@pytest.mark.parametrize(("name", "copies"), [("sgd", 0), ("adam", 2), ("linbreg", 1)])
def test_what_an_optimizer_keeps_is_counted(name: str, copies: int) -> None:
    """Adam keeps two moments of every weight, LinBreg one dual variable of every matrix."""
    with torch.device("meta"):
        model = nn.Linear(99, 7)
    weights = 99 * 7 + (7 if name == "adam" else 0)
    steps = 2 * 4 if name == "adam" else 0  # a count for each tensor
    assert state_memory(OPTIMIZERS[name]().build(model)) == 4 * copies * weights + steps
    assert all(p.grad is None for p in model.parameters())


def test_an_optimizer_that_needs_numbers_does_not_stop_the_estimate() -> None:
    class Foreign(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            float(self.param_groups[0]["params"][0].detach().sum())

    with torch.device("meta"):
        model = nn.Linear(2, 1)
    assert state_memory(Foreign(model.parameters())) == 0


def test_an_optimizers_memory_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    free = needed_memory(model, 100, 1, 8) + 4 * (64 * 8 + 8 + 8 * 10 + 10)  # room for one copy, not for two
    monkeypatch.setattr(fitting, "available_memory", lambda: free)
    assert "expected a smaller network or batch_size" in refused(tmp_path, "train.optimizer=adam")
    assert run_benchmark(copy.deepcopy(RAW), out=tmp_path, device="cpu")["status"][0] == "ok"


def test_a_batch_that_does_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "available_memory", lambda: 20_000)
    assert "0.0 GB are free: expected a smaller network or batch_size" in refused(tmp_path)
    monkeypatch.setattr(fitting, "available_memory", lambda: None)
    assert run_benchmark(copy.deepcopy(RAW), out=tmp_path)["status"][0] == "ok"

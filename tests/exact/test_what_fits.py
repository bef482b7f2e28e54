"""What is found out before anything trains: batches, crops and memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustbench_sparse import fitting, run_benchmark
from robustbench_sparse.errors import UserError
from robustbench_sparse.fitting import needed_memory

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
        ("threads=10000000000", "threads: expected less than or equal to 1024"),
        ("threat.eps=8", "threat: expected a radius eps of at most 1 for linf"),
        ("name=" + "n" * 300, "name: "),
        ("runs." + "n" * 300 + "={}", "expected a label of at most 100"),
        ("attacks." + "n" * 300 + "=fgsm", "expected a label of at most 100"),
        ("train.epochs=10000000000", "epochs: expected less than or equal to"),
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


def test_a_batch_that_does_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "available_memory", lambda: 20_000)
    assert "0.0 GB are free: expected a smaller network or batch_size" in refused(tmp_path)
    monkeypatch.setattr(fitting, "available_memory", lambda: None)
    assert run_benchmark(copy.deepcopy(RAW), out=tmp_path)["status"][0] == "ok"

"""The loop: hooks in their order, a loss that ends it, and compiling that must not fail in silence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from defenses.base import Defense, Log, Make, Step
from robustbench_sparse.config.load import resolve
from robustbench_sparse.data.digits import Digits
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.training.trainer import Trainer
from tests.helpers.small import small

CALLS: list[str] = []


@dataclass(frozen=True, kw_only=True)
class Listens(Defense):
    """Writes down which hook is called."""

    passes: ClassVar[int] = 0

    def wrap(self, make: Make) -> Make:
        CALLS.append("wrap")
        return make

    def begin(self, s: Step) -> None:
        CALLS.append("begin")

    def perturb(self, s: Step) -> Tensor:
        CALLS.append("perturb")
        return s.x

    def penalty(self, s: Step) -> Tensor | None:
        CALLS.append("penalty")
        return None

    def before_step(self, s: Step) -> None:
        CALLS.append("before_step")

    def after_step(self, s: Step) -> None:
        CALLS.append("after_step")

    def end_epoch(self, s: Step) -> Log:
        CALLS.append("end_epoch")
        return {"step": float(s.step)}

    def deploy(self, model: nn.Module) -> nn.Module:
        CALLS.append("deploy")
        return model


@dataclass(frozen=True, kw_only=True)
class Explodes(Defense):
    """A penalty that is no number from the third step on."""

    def penalty(self, s: Step) -> Tensor | None:
        return torch.tensor(float("inf")) if s.step >= 2 else None


def trainer(tmp_path: Path, defense: str | None = None, **train: Any) -> Trainer:
    raw = small(model={"name": "mlp", "hidden": [4]}, train_limit=128)
    raw["train"] = {"epochs": 2, "batch_size": 64, **train}
    raw["runs"] = {"r": {"defenses": [f"{__name__}:{defense}"] if defense else []}}
    plan = resolve(raw)
    data = plan.prepare(Digits().load(None, None), torch.device("cpu"))
    return Trainer(plan.runs[0], data, plan.threat, 0, tmp_path / "checkpoint.pt", Silent())


def test_hooks_are_called_in_their_order(tmp_path: Path) -> None:
    CALLS.clear()
    trained = trainer(tmp_path, "Listens").train()
    step = ["perturb", "penalty", "before_step", "after_step"]
    epoch = [*step, *step, "deploy", "end_epoch"]
    assert ["wrap", "begin", *epoch, *epoch] == CALLS
    name = f"{__name__}:Listens.step"
    assert [row[name] for row in trained.history] == [2, 4]
    assert [row["epoch"] for row in trained.history] == [0, 1]


def test_a_loss_that_is_no_number_ends_the_training_with_a_reason(tmp_path: Path) -> None:
    trained = trainer(tmp_path, "Explodes").train()
    assert trained.diverged.startswith("the training loss became inf in stage 0, epoch 1")
    assert len(trained.history) == 1


def test_the_same_settings_give_the_same_weights_and_others_do_not(tmp_path: Path) -> None:
    first, second = (trainer(tmp_path / name).train() for name in "ab")
    assert all(torch.equal(v, second.weights[k]) for k, v in first.weights.items())
    other = trainer(tmp_path / "c", batch_size=32).train()
    assert any(not torch.equal(v, other.weights[k]) for k, v in first.weights.items())


def test_compiling_that_fails_is_an_error_and_not_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: nn.Module) -> Any:
        def run(_: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"^runs\.r\.train\.compile: compiling failed: .*; set it to off$"):
        trainer(tmp_path, compile="on").train()

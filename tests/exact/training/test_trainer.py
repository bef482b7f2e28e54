"""The loop: hooks in their order, a loss that ends it, and compiling that must not fail in silence."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses.base import Defense, Log, Make, Step, frozen_statistics
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

    def before_forward(self, s: Step) -> None:
        assert s.outputs is None
        CALLS.append("before_forward")

    def criterion(self, s: Step) -> Tensor | None:
        assert s.outputs is not None
        assert s.outputs.requires_grad
        CALLS.append("criterion")
        return None

    def after_backward(self, s: Step) -> None:
        assert s.outputs is not None
        assert not s.outputs.requires_grad
        CALLS.append("after_backward")

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


@dataclass(frozen=True, kw_only=True)
class Halves(Defense):
    """Half the task's loss, and a penalty of its own."""

    repeatable: ClassVar[bool] = True

    def criterion(self, s: Step) -> Tensor | None:
        assert s.outputs is not None
        return F.cross_entropy(s.outputs, s.y) / 2

    def penalty(self, s: Step) -> Tensor | None:
        assert s.outputs is not None
        return s.outputs.square().mean()


@dataclass(frozen=True, kw_only=True)
class Once(Defense):
    """A penalty that must be asked only once a step, of its own stream."""

    def penalty(self, s: Step) -> Tensor | None:
        return 1000 * torch.rand((), generator=s.generator)


@dataclass(frozen=True, kw_only=True)
class Asks(Defense):
    """Asks for the objective before every step, and looks at what that leaves behind."""

    def before_forward(self, s: Step) -> None:
        state = {k: v.clone() for k, v in s.model.state_dict().items()}
        draws = s.generator
        assert s.objective is not None
        value = s.objective()
        assert value.requires_grad
        assert s.outputs is None
        assert s.generator is draws
        assert all(torch.equal(state[k], v) for k, v in s.model.state_dict().items())
        with torch.no_grad():  # the same by hand: batch-norm in training mode, on a copy
            outputs = copy.deepcopy(s.model)(s.x)
            expected = F.cross_entropy(outputs, s.y) / 2 + outputs.square().mean()
        torch.testing.assert_close(value.detach(), expected)


def trainer(tmp_path: Path, *defenses: str, **train: Any) -> Trainer:
    raw = small(model={"name": "mlp", "hidden": [4]}, train_limit=128)
    raw["train"] = {"epochs": 2, "batch_size": 64, **train}
    raw["runs"] = {"r": {"defenses": [f"{__name__}:{defense}" for defense in defenses]}}
    return built(raw, tmp_path)


def built(raw: dict[str, Any], tmp_path: Path) -> Trainer:
    plan = resolve(raw)
    data = plan.prepare(Digits().load(None, None), torch.device("cpu"))
    return Trainer(plan.runs[0], data, plan.threat, 0, tmp_path / "checkpoint.pt", Silent())


def test_hooks_are_called_in_their_order(tmp_path: Path) -> None:
    CALLS.clear()
    trained = trainer(tmp_path, "Listens").train()
    forward = ["perturb", "before_forward", "criterion", "penalty"]
    step = [*forward, "after_backward", "before_step", "after_step"]
    epoch = [*step, *step, "deploy", "end_epoch"]
    assert ["wrap", "begin", *epoch, *epoch] == CALLS
    name = f"{__name__}:Listens.step"
    assert [row[name] for row in trained.history] == [2, 4]
    assert [row["epoch"] for row in trained.history] == [0, 1]


def test_a_loss_that_is_no_number_ends_the_training_with_a_reason(tmp_path: Path) -> None:
    trained = trainer(tmp_path, "Explodes").train()
    assert trained.diverged.startswith("the training loss became inf in stage 0, epoch 1")
    assert len(trained.history) == 1


def test_the_criterion_takes_the_place_of_the_tasks_loss(tmp_path: Path) -> None:
    # One minibatch of all images: the loss of the first step is that of the untrained network.
    one_step = {"batch_size": 128, "epochs": 1}
    plain, halved = trainer(tmp_path / "a", **one_step), trainer(tmp_path / "b", "Halves", **one_step)
    with torch.no_grad():
        outputs = halved.model(halved.data.gather("train", torch.arange(128))[0])
    first, second = (t.train().history[0]["train_loss"] for t in (plain, halved))
    assert second == pytest.approx(first / 2 + outputs.square().mean().item(), rel=1e-5)


def test_the_objective_is_the_loss_to_come_and_leaves_no_trace(tmp_path: Path) -> None:
    raw = small(train_limit=128)
    raw["train"] = {"epochs": 2, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.1}}
    for label, names in (("asked", ("Once", "Asks", "Halves")), ("not", ("Once", "Halves"))):
        raw["runs"][label] = {"defenses": [f"{__name__}:{name}" for name in names]}
    weights = []
    for label in ("asked", "not"):
        one = copy.deepcopy(raw)
        one["runs"] = {label: raw["runs"][label]}
        weights.append(built(one, tmp_path / label).train().weights)
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


@dataclass(frozen=True, kw_only=True)
class Compares(Defense):
    """Holds the quick copies, and the pass of training, against the network itself."""

    def perturb(self, s: Step) -> Tensor:
        assert s.quick is not None
        assert s.forward is not None
        assert s.fast is None  # in float32
        with frozen_statistics(s.model):
            own = s.model(s.x)
            torch.testing.assert_close(s.forward(s.x), own)
        torch.testing.assert_close(s.quick(None)(s.x), own, rtol=1e-4, atol=1e-4)
        rough = s.quick("bf16")(s.x)
        assert 0 < (rough - own).abs().max() < 0.1 * own.abs().max()
        return s.x


def test_quick_copies_are_the_network_as_it_is_now(tmp_path: Path) -> None:
    raw = small(train_limit=128, model={"name": "preact_resnet", "depth": 8, "widths": [4, 4, 4]})
    raw["runs"] = {"r": {"defenses": [f"{__name__}:Compares"]}}
    raw["train"] = {"epochs": 2, "batch_size": 64}
    assert len(built(raw, tmp_path).train().history) == 2


ROBUST: dict[str, list[dict[str, Any]]] = {
    "trades, awp, ema": [
        {"name": "trades", "steps": 2, "eps_warm_up": 2},
        {"name": "awp", "gamma": 0.02, "warm_up": 1},
        {"name": "ema", "decay": 0.9, "minibatches": 2},
    ],
    "mart, awp": [{"name": "mart", "steps": 2}, {"name": "awp", "gamma": 0.02}],
    "n_fgsm, awp, zeros, ema": [
        {"name": "n_fgsm", "alarm_images": 32, "eps_warm_up": 1, "gradient": "bf16"},
        {"name": "awp", "gamma": 0.02},
        {"name": "magnitude_prune", "sparsity": 60.0},
        {"name": "label_smoothing"},
        {"name": "ema", "decay": 0.9},
    ],
    "enresnet, n_fgsm, awp, ema": [
        {"name": "enresnet"},
        {"name": "n_fgsm", "batch_statistics": True},
        {"name": "awp"},
        {"name": "ema", "decay": 0.9},
    ],
}


class Killed(Exception):
    """Ends a training from outside."""


@pytest.mark.parametrize(
    ("defenses", "precision"), list(zip(ROBUST, ("fp32", "bf16", "fp32", "bf16"), strict=True))
)
def test_robust_methods_compose_and_go_on_after_a_kill_with_the_same_numbers(
    defenses: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = small(train_limit=192, model={"name": "preact_resnet", "depth": 8, "widths": [4, 4, 4]})
    raw["train"] |= {"epochs": 3, "batch_size": 64, "precision": precision, "schedule": "cyclic"}
    raw["runs"] = {"r": {"defenses": ROBUST[defenses]}}
    unbroken = built(raw, tmp_path / "unbroken").train()
    assert not unbroken.diverged
    killed = built(raw, tmp_path / "killed")
    write = killed.checkpoint.write

    def write_and_die(*args: Any) -> None:
        write(*args)
        if args[0].epoch == 1:
            raise Killed

    monkeypatch.setattr(killed.checkpoint, "write", write_and_die)
    with pytest.raises(Killed):
        killed.train()
    resumed = built(raw, tmp_path / "killed").train()
    assert resumed.history == unbroken.history
    assert unbroken.weights.keys() == resumed.weights.keys()
    assert all(torch.equal(v, resumed.weights[k]) for k, v in unbroken.weights.items())
    zeros = sum(int((v == 0).sum()) for k, v in unbroken.weights.items() if v.ndim > 1)
    of = sum(v.numel() for v in unbroken.weights.values() if v.ndim > 1)
    assert round(zeros / of, 2) == (0.6 if "zeros" in defenses else 0)


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

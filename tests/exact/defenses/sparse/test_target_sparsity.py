"""The controller of lambda: its law, what it steers, and that real training lands where it was told to."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attacks.base import Threat
from defenses import LinBreg, Step, TargetSparsity
from defenses.sparse.sparse_init import sparse_init
from defenses.sparse.target_sparsity import steered
from robustbench_sparse.config.sparse_optimizers import AdaBregSpec, LinBregSpec, SparseOptimizerSpec
from tests.helpers.zeros import zero_shares


def step(model: nn.Module, optimizer: torch.optim.Optimizer | None, **sparsity: float | None) -> Step:
    s = Step(model, optimizer, Threat(eps=0.1), torch.Generator(), lambda *_: torch.empty(0))
    s.sparsity = sparsity
    return s


def test_the_law() -> None:
    assert steered(0.3, 95.0, 95.0) == pytest.approx(0.3)
    assert steered(0.3, 93.0, 95.0, gain=1.0) == pytest.approx(0.3 * 7 / 5)  # too dense by 7/5
    assert steered(0.3, 97.0, 95.0, gain=1.0) == pytest.approx(0.3 * 3 / 5)
    assert steered(0.3, 93.0, 95.0) == pytest.approx(0.3 * math.sqrt(7 / 5))
    assert steered(0.3, 0.0, 95.0, gain=0.5, max_factor=3.0) == pytest.approx(0.9)
    assert steered(0.3, 99.9, 50.0, max_factor=4.0) == pytest.approx(0.075)
    assert steered(0.3, 100.0, 95.0, gain=1e-6) == pytest.approx(0.15)  # nothing left at all
    assert steered(0.3, 0.0, 99.99, gain=1e6) == pytest.approx(0.6)


def two_groups(lam: float = 0.2) -> tuple[nn.Module, LinBreg]:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(4, 2))
    conv, line = model[0].weight, model[2].weight
    biases = [model[0].bias, model[2].bias]
    groups = [
        {"params": [conv], "lam": lam},
        {"params": [line], "lam": 3 * lam},
        {"params": biases, "regulariser": None, "lam": 7.0},
    ]
    return model, LinBreg(groups)


def test_regularised_groups_are_steered_in_proportion() -> None:
    model, optimizer = two_groups()
    defense = TargetSparsity(target=90.0)
    s = step(model, optimizer, weight_sparsity=80.0, kernel_sparsity=99.0)
    assert defense.end_epoch(s) == {"lam": 0.2}
    lams = [g["lam"] for g in optimizer.param_groups]
    assert lams == pytest.approx([0.2 * math.sqrt(2), 0.6 * math.sqrt(2), 7.0])
    log = TargetSparsity(target=90.0, kind="kernel", gain=2.0, max_factor=5.0).end_epoch(s)
    assert log == pytest.approx({"lam": 0.2 * math.sqrt(2)})
    assert optimizer.param_groups[0]["lam"] == pytest.approx(0.2 * math.sqrt(2) / 5)


def test_warm_up_and_bound() -> None:
    model, optimizer = two_groups()
    defense = TargetSparsity(target=90.0, warm_up=2, max_lam=0.5)
    lams = []
    s = step(model, optimizer, weight_sparsity=10.0)
    for s.epoch in range(5):
        defense.end_epoch(s)
        lams.append([g["lam"] for g in optimizer.param_groups[:2]])
    # the group that was above the bound is brought down to it
    expected = [[0.2, 0.6], [0.2, 0.6], [0.4, 0.5], [0.5, 0.5], [0.5, 0.5]]
    assert torch.allclose(torch.tensor(lams), torch.tensor(expected))


def test_off_it_touches_nothing_and_asks_for_nothing() -> None:
    model, optimizer = two_groups()
    off = TargetSparsity()
    assert off.end_epoch(step(model, torch.optim.SGD(model.parameters()))) == {}
    off.end_epoch(step(model, optimizer, weight_sparsity=1.0))
    assert optimizer.param_groups[0]["lam"] == 0.2
    assert off.asked(model) is None


def test_what_is_asked() -> None:
    model, _ = two_groups()
    asked = TargetSparsity(target=90.0).asked(model)
    assert asked is not None
    assert (asked.kind, asked.percent, asked.binding) == ("weight", 90.0, False)
    assert asked.names == ("0.weight", "2.weight")
    kernels = TargetSparsity(target=80.0, kind="kernel").asked(model)
    assert kernels is not None
    assert kernels.names == ("0.weight",)
    TargetSparsity(target=80.0, kind="kernel").check(model)
    with pytest.raises(ValueError, match=r"^target_sparsity: expected .*kernels"):
        TargetSparsity(target=80.0, kind="kernel").check(nn.Linear(2, 2))


def test_an_optimizer_that_cannot_be_steered_is_refused() -> None:
    model, zero = two_groups(lam=0.0)
    defense = TargetSparsity(target=90.0)
    for optimizer, got in (
        (torch.optim.SGD(model.parameters()), "SGD"),
        (LinBreg(model.parameters(), regulariser=None, lam=1.0), "LinBreg"),
        (zero, "0.0"),
    ):
        with pytest.raises(ValueError, match=rf"^target_sparsity: expected .* got .*{got}"):
            defense.end_epoch(step(model, optimizer, weight_sparsity=50.0))
    with pytest.raises(ValueError, match=r"^kind: "):
        defense.end_epoch(step(model, two_groups()[1], weight_sparsity=None))


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    x = torch.from_numpy(np.asarray(bunch.data, dtype=np.float32)) / 16
    return x, torch.from_numpy(np.asarray(bunch.target)).long()


def trained(
    spec: SparseOptimizerSpec,
    defense: TargetSparsity,
    data: tuple[Tensor, Tensor],
    epochs: int,
    density: float,
) -> tuple[list[float], float]:
    """Sparsity of each epoch and the last epoch's training accuracy; saved and loaded half way."""
    x, y = data
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    order = torch.Generator().manual_seed(1)
    sparse_init(model, density, generator=order, variance="he")
    s = step(model, spec.build(model))
    history = []
    for s.epoch in range(epochs):
        right = 0
        for rows in torch.randperm(len(x), generator=order).split(64):
            assert s.optimizer is not None
            s.optimizer.zero_grad()
            out = model(x[rows])
            F.cross_entropy(out, y[rows]).backward()
            s.optimizer.step()
            right += int((out.argmax(1) == y[rows]).sum())
        s.sparsity = zero_shares(model)
        history.append(float(s.sparsity["weight_sparsity"] or 0))
        defense.end_epoch(s)
        if s.epoch == epochs // 2:
            file = io.BytesIO()
            torch.save(s.optimizer.state_dict(), file)
            file.seek(0)
            s.optimizer = spec.build(model)
            s.optimizer.load_state_dict(torch.load(file, weights_only=True))
    return history, right / len(x)


@pytest.mark.parametrize(
    ("spec", "density"),
    [
        (LinBregSpec(lr=0.1, lam=0.05), 0.02),
        (LinBregSpec(lr=0.1, lam=0.001, momentum=0.9), 1.0),
        (AdaBregSpec(lr=2e-3, lam=0.02), 0.02),
    ],
    ids=["linbreg", "linbreg-from-dense", "adabreg"],
)
def test_training_lands_on_the_target(spec: Any, density: float, digits: tuple[Tensor, Tensor]) -> None:
    history, accuracy = trained(spec, TargetSparsity(target=95.0), digits, 40, density)
    assert all(abs(h - 95) < 1 for h in history[-5:])
    assert accuracy > 0.9
    free, _ = trained(spec, TargetSparsity(), digits, 40, density)
    assert abs(free[-1] - 95) > 2

"""Parameters that an optimizer regularises by the patterns of their names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_sparse.config.optimizers import OPTIMIZERS, OptimizerSpec
from robustbench_sparse.config.plugins import SettingError, build, settings_of
from robustbench_sparse.config.sparse_optimizers import LinBregSpec
from robustbench_sparse.models.dense_residual import DenseResidual

NAMES = ("linbreg", "adabreg", "proxsgd")


def network() -> nn.Module:
    torch.manual_seed(0)
    return DenseResidual(layers=3, width=16).build(1, 8, 4)


def spec(name: str = "linbreg", **settings: Any) -> OptimizerSpec:
    base: Any = OptimizerSpec
    return build(OPTIMIZERS, {"name": name, **settings}, "optimizer", base)


def named(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[set[str], str, float]]:
    of = {id(p): name for name, p in model.named_parameters()}
    return [
        ({of[id(p)] for p in g["params"]}, type(g["regulariser"]).__name__, g["lam"])
        for g in optimizer.param_groups
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_pattern_that_matches_counts_and_the_rest_is_as_ever(name: str) -> None:
    model = network()
    made = spec(
        name,
        lam=0.5,
        groups=[
            {"match": "layers.1.*", "regulariser": None},
            {"match": "*skip", "regulariser": "l1", "lam": 0.07},
            {"match": "head.bias", "regulariser": "l1_nonnegative"},
        ],
    ).build(model)
    assert named(model, made) == [
        ({"layers.1.skip", "layers.1.linear.weight", "layers.1.linear.bias"}, "NoneType", 0.5),
        ({"layers.2.skip"}, "L1", 0.07),
        ({"head.bias"}, "L1Nonnegative", 0.5),
        ({"layers.0.linear.weight", "layers.2.linear.weight", "head.weight"}, "L1", 0.5),
        ({"layers.0.linear.bias", "layers.2.linear.bias"}, "NoneType", 0.5),
    ]


def test_without_groups_nothing_is_recorded_and_nothing_changes() -> None:
    assert "groups" not in settings_of(LinBregSpec())
    assert "groups" in settings_of(spec(groups=[{"match": "*skip", "regulariser": "l1"}]))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def test_skips_move_by_their_own_threshold() -> None:
    model = network()
    lam, lr = 0.005, 0.05
    optimizer = spec(lr=lr, linear=None, groups=[{"match": "*skip", "regulariser": "l1", "lam": lam}]).build(
        model
    )
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    skips = {n: p for n, p in model.named_parameters() if n.endswith("skip")}
    moved = {n: torch.zeros_like(p) for n, p in skips.items()}
    for _ in range(20):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        for n, p in skips.items():
            assert p.grad is not None
            moved[n] -= lr * p.grad
        optimizer.step()
        for n, p in skips.items():
            torch.testing.assert_close(p.detach(), torch.nn.functional.softshrink(moved[n], lam))
    assert any(bool(p.any()) for p in skips.values()), "some have crossed the threshold"
    assert any(not bool(p.all()) for p in skips.values()), "and some have not"


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        ({"match": "*skip"}, "groups.0: the key 'regulariser' is missing"),
        ({"regulariser": "l1"}, "groups.0: the key 'match' is missing"),
        ({"match": "*skip", "regulariser": "l1", "lambda": 1}, "groups.0: the key 'lambda' is unknown"),
        ({"match": 3, "regulariser": "l1"}, "groups.0: expected a text, got 3"),
        ({"match": "*skip", "regulariser": "l11"}, "groups: expected one of l1, "),
        (
            {"match": "*skip", "regulariser": "l1", "lam": -1},
            "groups: 0.lam: expected a finite number >= 0, got -1",
        ),
    ],
)
def test_what_is_no_group_is_refused_when_the_config_is_read(group: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingError) as caught:
        spec(groups=[group])
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        (
            [{"match": "*skp", "regulariser": "l1"}],
            "groups: 0.match: '*skp' matches no parameter; there are: ",
        ),
        (
            [{"match": "*skip", "regulariser": "l1"}, {"match": "layers.?.skip", "regulariser": "l1"}],
            "groups: 1.match: 'layers.?.skip' matches only what an earlier one matches",
        ),
        (
            [{"match": "*skip", "regulariser": {"name": "group_lasso", "group": "row"}}],
            "groups: 0.regulariser: layers.1.skip: group: expected a weight with rows",
        ),
    ],
)
def test_what_does_not_fit_the_network_is_refused(groups: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(ValueError, match=r"^groups") as caught:
        spec(groups=groups).build(network())
    assert str(caught.value).startswith(problem)

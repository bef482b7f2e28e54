"""Proximal maps against brute force, closed forms and the limits where care is needed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from defenses.regularisers import KEPT, REGULARISERS, Group, GroupL0, GroupLasso, group_norms

GROUPS: list[Group] = ["channel", "filter", "kernel", "row", "layer"]


def weight(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def slices(w: Tensor, group: Group) -> list[tuple[int | slice, ...]]:
    """The groups one by one, by plain indexing."""
    kept = KEPT[group]
    ranges = [range(w.shape[d]) if d in kept else [slice(None)] for d in range(w.ndim)]
    return list(itertools.product(*ranges))


@pytest.mark.parametrize("group", GROUPS)
def test_norms_and_values_are_those_of_the_groups_one_by_one(group: Group) -> None:
    w = weight(0, 4, 3, 2, 2)
    each = torch.stack([w[i].norm() for i in slices(w, group)])
    torch.testing.assert_close(group_norms(w, group).flatten(), each)
    size = w.numel() / len(each)
    torch.testing.assert_close(GroupLasso(group=group).value(w), each.sum())
    torch.testing.assert_close(GroupLasso(group=group, weighted=True).value(w), math.sqrt(size) * each.sum())
    w[slices(w, group)[0]] = 0
    assert GroupL0(group=group).value(w) == len(each) - 1


def test_channel_is_an_input_channel_and_rows_belong_to_linear_layers() -> None:
    assert group_norms(torch.ones(6, 1, 5, 5), "channel").shape == (1, 1, 1, 1)  # LeNet: 1 + 6 channels
    assert group_norms(torch.ones(16, 6, 5, 5), "channel").numel() == 6
    torch.testing.assert_close(group_norms(torch.ones(10, 7), "row"), torch.full((10, 1), math.sqrt(7)))


@pytest.mark.parametrize("group", ["channel", "kernel"])
def test_tensors_without_such_groups_are_refused(group: Group) -> None:
    with pytest.raises(ValueError, match="group: expected a weight"):
        group_norms(torch.ones(4), group)
    if group == "kernel":
        with pytest.raises(ValueError, match="group: expected a weight with kernels"):
            group_norms(torch.ones(4, 3), group)
    with pytest.raises(ValueError, match="group: expected channel or"):
        GroupLasso(group="column")  # type: ignore[arg-type]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("group", ["channel", "filter", "layer"])
@pytest.mark.parametrize("step", [0.1, 0.7, 1.5])
def test_group_lasso_prox_is_the_minimiser(group: Group, weighted: bool, step: float) -> None:
    for seed in range(2):
        w = weight(seed, 2, 3, 1, 2)
        j = GroupLasso(group=group, weighted=weighted)

        def objective(u: np.ndarray, w: Tensor = w, j: GroupLasso = j) -> float:
            t = torch.from_numpy(u).view_as(w)
            return float(step * j.value(t) + (t - w).square().sum() / 2)

        starts = [w.flatten().numpy(), np.full(w.numel(), 1e-3)]
        found = [
            minimize(objective, s, method="Powell", options={"xtol": 1e-8, "ftol": 1e-12}) for s in starts
        ]
        best = min(found, key=lambda r: r.fun)
        u = j.prox(w, step)
        assert objective(u.flatten().numpy()) <= best.fun + 1e-10
        # The objective is 1-strongly convex: ||u - best||^2 / 2 <= objective(best) - objective(u).
        assert np.linalg.norm(u.flatten().numpy() - best.x) < 1e-3


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("group", ["channel", "filter", "row"])
@pytest.mark.parametrize("step", [0.05, 0.5, 1.5])
def test_group_l0_prox_is_the_best_of_all_supports(group: Group, weighted: bool, step: float) -> None:
    for seed in range(6):
        w = weight(seed, 4, 3, 1, 2)
        j, each = GroupL0(group=group, weighted=weighted), slices(w, group)
        candidates = []
        for support in itertools.product([False, True], repeat=len(each)):
            u = torch.zeros_like(w)
            for index, used in zip(each, support, strict=True):
                u[index] = w[index] if used else 0  # on its support the minimiser is w itself
            candidates.append((float(step * j.value(u) + (u - w).square().sum() / 2), u))
        best = min(candidates, key=lambda c: c[0])[1]
        assert torch.equal(j.prox(w, step), best)


def test_prox_applies_the_step_once() -> None:
    w = torch.tensor([3.0, 4.0]).view(2, 1, 1, 1)  # one channel of norm 5
    u = GroupLasso().prox(w, 1.0)
    assert u.norm().item() == pytest.approx(4.0)
    torch.testing.assert_close(u, w * 0.8)


def test_group_lasso_inside_at_and_beyond_the_threshold() -> None:
    w = torch.tensor([3.0, 4.0], dtype=torch.double).view(2, 1, 1, 1)
    assert GroupLasso().prox(w, 4.999).norm() > 0
    assert GroupLasso().prox(w, 5.0).count_nonzero() == 0
    assert GroupLasso().prox(w, 5.001).count_nonzero() == 0


def test_group_l0_inside_at_and_beyond_the_threshold() -> None:
    w = torch.tensor([0.0, 2.0], dtype=torch.double).view(2, 1, 1, 1)  # sqrt(2 * 2) = 2
    assert torch.equal(GroupL0().prox(w, 1.999), w)
    assert GroupL0().prox(w, 2.0).count_nonzero() == 0  # kept only above the threshold
    assert GroupL0().prox(w, 2.001).count_nonzero() == 0


@pytest.mark.parametrize("name", REGULARISERS)
@pytest.mark.parametrize("step", [0.0, 0.3])
def test_zero_groups_stay_zero_and_finite(name: str, step: float) -> None:
    j = REGULARISERS[name]()
    w = weight(3, 4, 3, 2, 2).float()
    w[:, 1] = 0
    u = j.prox(w, step)
    assert u.isfinite().all()
    assert u[:, 1].count_nonzero() == 0
    if step == 0:
        assert torch.equal(u, w)
    leaf = w.clone().requires_grad_(True)
    value = j.value(leaf)
    if value.requires_grad:
        value.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, j.subgrad(w))
    assert j.subgrad(w).isfinite().all()
    assert j.subgrad(w)[:, 1].count_nonzero() == 0


def test_subgradient_of_group_lasso_satisfies_its_inequality() -> None:
    j = GroupLasso(weighted=True)
    w = weight(5, 4, 3, 2, 2)
    w[:, 0] = 0
    for seed in range(20):
        v = weight(100 + seed, 4, 3, 2, 2)
        assert j.value(v) >= j.value(w) + (j.subgrad(w) * (v - w)).sum()


def test_prox_returns_a_new_tensor() -> None:
    w = weight(1, 2, 2, 1, 1)
    for cls in REGULARISERS.values():
        assert cls().prox(w, 0.0).data_ptr() != w.data_ptr()

"""Thresholds at, below and above, by hand: hard, transformed l1, groups and their weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from defenses.regularisers import (
    KEPT,
    L0,
    L1,
    REGULARISERS,
    Group,
    GroupL0,
    GroupLasso,
    SparseGroupLasso,
    TransformedL1,
    group_norms,
)
from tests.helpers.regulariser_cases import slices

GROUPS: list[Group] = ["channel", "filter", "kernel", "row", "layer"]


def weight(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_soft_and_hard_threshold_at_the_tie() -> None:
    x = torch.tensor([-2.001, -2.0, -1.999, 0.0, 1.999, 2.0, 2.001], dtype=torch.double)
    soft = torch.tensor([-0.001, 0, 0, 0, 0, 0, 0.001], dtype=torch.double)
    torch.testing.assert_close(L1().prox(x, 2.0), soft)
    hard = torch.tensor([-2.001, 0, 0, 0, 0, 0, 2.001], dtype=torch.double)
    assert torch.equal(L0().prox(x, 2.0), hard)  # sqrt(2 * 2) = 2; kept only above it


@pytest.mark.parametrize("a", [0.01, 0.3, 1.0, 7.0, 1e4])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_transformed_l1_is_continuous_for_small_steps(a: float, share: float) -> None:
    step = share * a**2 / (2 * (a + 1))
    t = step * (a + 1) / a  # step times the slope of J at 0
    j = TransformedL1(a=a)
    assert j.threshold(step) == pytest.approx(t)
    x = torch.tensor([t * (1 - 1e-9), t, t * (1 + 1e-9)], dtype=torch.double)
    u = j.prox(x, step)
    assert u[:2].tolist() == [0, 0]
    assert 0 <= u[2] < 1e-3 * t  # no jump
    assert torch.equal(j.prox(-x, step), -u)


@pytest.mark.parametrize("a", [0.01, 0.3, 1.0, 7.0])
@pytest.mark.parametrize("times", [1.5, 4.0, 50.0])
def test_transformed_l1_jumps_for_large_steps_where_both_sides_are_as_good(a: float, times: float) -> None:
    step = times * a**2 / (2 * (a + 1))
    t = math.sqrt(2 * step * (a + 1)) - a / 2
    j = TransformedL1(a=a)
    assert j.threshold(step) == pytest.approx(t)
    x = torch.tensor([t * (1 - 1e-9), t * (1 + 1e-9)], dtype=torch.double)
    u = j.prox(x, step)
    assert u[0] == 0
    # At the threshold the other minimum is sqrt(2 step (a + 1)) - a, and its objective is that of 0.
    assert u[1].item() == pytest.approx(t - a / 2, rel=1e-6)
    there = step * j.value(u[1:]) + (u[1] - x[1]).square() / 2
    assert there.item() == pytest.approx(x[1].item() ** 2 / 2, rel=1e-6)


def test_both_thresholds_of_transformed_l1_meet() -> None:
    j = TransformedL1(a=2.0)
    meet = 2.0**2 / (2 * 3.0)
    assert j.threshold(meet) == pytest.approx(1.0)  # a / 2
    assert j.threshold(meet * (1 + 1e-12)) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_transformed_l1_tends_to_l1_and_to_l0(dtype: torch.dtype) -> None:
    x = (3 * weight(0, 500)).to(dtype)
    eps = torch.finfo(dtype).eps
    close = {"atol": 1e-5 + 16 * eps, "rtol": 16 * eps}  # what a = 1e7 truly differs by, and rounding
    for a in (1e7, 1e20, 1e30):  # 2/3 (a + |x|) cos(phi / 3) - 2a/3 would have lost all digits long before
        j = TransformedL1(a=a)
        for step in (0.01, 0.5, 2.0):
            torch.testing.assert_close(j.prox(x, step), L1().prox(x, step), **close)
        torch.testing.assert_close(j.value(x) / 500, L1().value(x) / 500, **close)
        torch.testing.assert_close(j.subgrad(x), L1().subgrad(x), **close)
    for a in (1e-9, 1e-30):
        j = TransformedL1(a=a)
        for step in (0.01, 0.5, 2.0):
            torch.testing.assert_close(j.prox(x, step), L0().prox(x, step), **close)
        torch.testing.assert_close(j.value(x) / 500, L0().value(x) / 500, **close)


def test_transformed_l1_is_the_papers_formula() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, mu, x = np.exp(rng.uniform(-3, 3)), np.exp(rng.uniform(-4, 1)), rng.normal() * 4
        r = a + abs(x)
        if mu <= a**2 / (2 * (a + 1)):
            t = mu * (a + 1) / a
        else:
            t = math.sqrt(2 * mu * (a + 1)) - a / 2
        u = 0.0
        if abs(x) > t:
            phi = math.acos(1 - 27 * mu * a * (a + 1) / (2 * r**3))
            u = math.copysign(2 / 3 * r * math.cos(phi / 3) - 2 * a / 3 + abs(x) / 3, x)
        got = TransformedL1(a=float(a)).prox(torch.tensor([x], dtype=torch.double), float(mu)).item()
        assert got == pytest.approx(u, abs=1e-7)


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


@pytest.mark.parametrize(
    ("group", "count", "size"),
    [("channel", 3, 16), ("filter", 4, 12), ("kernel", 12, 4), ("row", 4, 12), ("layer", 1, 48)],
)
def test_groups_of_a_convolution_and_their_sizes(group: Group, count: int, size: int) -> None:
    w = torch.ones(4, 3, 2, 2)
    norms = group_norms(w, group)
    assert norms.numel() == count
    assert (norms == math.sqrt(size)).all()
    assert GroupLasso(group=group, weighted=True).weight(w, norms) == pytest.approx(math.sqrt(size))
    assert GroupLasso(group=group).weight(w, norms) == 1
    # A group of ones has norm sqrt(n): weighted, every step >= 1 zeroes it, whatever its size.
    for cls, step in ((GroupLasso, 1.0), (GroupL0, math.sqrt(size) / 2)):
        assert not cls(group=group, weighted=True).prox(w, step * (1 + 1e-6)).any()
        assert cls(group=group, weighted=True).prox(w, step * (1 - 1e-4)).all()


def test_groups_of_a_linear_weight() -> None:
    w = weight(1, 10, 7)
    torch.testing.assert_close(group_norms(w, "row").flatten(), torch.stack([r.norm() for r in w]))
    columns = torch.stack([w[:, g].norm() for g in range(7)])
    torch.testing.assert_close(group_norms(w, "channel").flatten(), columns)


def test_channel_is_an_input_channel() -> None:
    assert group_norms(torch.ones(6, 1, 5, 5), "channel").shape == (1, 1, 1, 1)  # LeNet: 1 + 6 channels
    assert group_norms(torch.ones(16, 6, 5, 5), "channel").numel() == 6


@pytest.mark.parametrize("name", ["group_lasso", "group_l0", "sparse_group_lasso"])
@pytest.mark.parametrize("group", KEPT)
def test_tensors_without_such_groups_are_refused(name: str, group: str) -> None:
    j = REGULARISERS[name](group=group)  # type: ignore[call-arg]
    for call in (j.value, lambda w: j.prox(w, 0.1)):
        with pytest.raises(ValueError, match="group: expected a weight"):
            call(torch.ones(4))
    if group == "kernel":
        with pytest.raises(ValueError, match="group: expected a weight with kernels"):
            j.value(torch.ones(4, 3))


def test_prox_applies_the_step_once() -> None:
    w = torch.tensor([3.0, 4.0]).view(2, 1, 1, 1)  # one channel of norm 5
    u = GroupLasso().prox(w, 1.0)
    assert u.norm().item() == pytest.approx(4.0)
    torch.testing.assert_close(u, w * 0.8)


def test_group_thresholds_inside_at_and_beyond() -> None:
    w = torch.tensor([3.0, 4.0], dtype=torch.double).view(2, 1, 1, 1)
    assert GroupLasso().prox(w, 4.999).norm() > 0
    assert not GroupLasso().prox(w, 5.0).any()
    assert not GroupLasso().prox(w, 5.001).any()
    w = torch.tensor([0.0, 2.0], dtype=torch.double).view(2, 1, 1, 1)  # sqrt(2 * 2) = 2
    assert torch.equal(GroupL0().prox(w, 1.999), w)
    assert not GroupL0().prox(w, 2.0).any()  # kept only above the threshold
    assert not GroupL0().prox(w, 2.001).any()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("weighted", [False, True])
def test_sparse_group_lasso_has_l1_and_the_group_lasso_at_its_ends(group: Group, weighted: bool) -> None:
    w = weight(2, 4, 3, 2, 2)
    lasso = GroupLasso(group=group, weighted=weighted)
    for mix, end in ((0.0, lasso), (1.0, L1())):
        j = SparseGroupLasso(mix=mix, group=group, weighted=weighted)
        assert torch.equal(j.prox(w, 0.4), end.prox(w, 0.4))
        assert torch.equal(j.value(w), end.value(w))
        assert torch.equal(j.subgrad(w), end.subgrad(w))

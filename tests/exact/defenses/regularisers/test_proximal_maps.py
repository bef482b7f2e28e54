"""Every regulariser of the table: values, subgradients and the laws that proximal maps obey.

All of them are tested by name: a new one without a case in ``regulariser_cases`` fails.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

from defenses.regularisers import REGULARISERS, L1Nonnegative, Nuclear, Regulariser, Zero
from tests.helpers.regulariser_cases import (
    CASES,
    SETS,
    build,
    log_uniform,
    prox,
    rng,
    shape,
    tensor,
    with_zeros,
)

CONVEX = [name for name in REGULARISERS if name not in CASES or CASES[name].convex]


def test_every_regulariser_has_a_case() -> None:
    assert set(CASES) == set(REGULARISERS)


@pytest.mark.parametrize("name", REGULARISERS)
def test_settings_are_frozen_by_keyword_and_documented(name: str) -> None:
    cls = REGULARISERS[name]
    assert isinstance(cls(), Regulariser)
    params = cls.__dataclass_params__  # type: ignore[attr-defined]
    assert params.frozen
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        assert f.kw_only
        assert any(re.search(rf"^ +{f.name}: ", c.__doc__ or "", re.M) for c in cls.__mro__)


@pytest.mark.parametrize("name", REGULARISERS)
def test_values_are_those_of_plain_loops(name: str) -> None:
    case = CASES[name]
    for k in range(SETS):
        g = rng(1, k)
        settings = case.settings(g)
        w = with_zeros(g, g.normal(size=shape(g)))
        for v in (w, case.domain(w)):
            assert float(build(name, settings).value(tensor(v))) == pytest.approx(case.value(v, **settings))


@pytest.mark.parametrize("name", REGULARISERS)
def test_gradient_of_the_value_is_the_subgradient(name: str) -> None:
    case = CASES[name]
    for k in range(SETS):
        g = rng(2, k)
        j = build(name, case.settings(g))
        w = tensor(case.domain(with_zeros(g, g.normal(size=shape(g)))))
        leaf = w.clone().requires_grad_(True)
        value = j.value(leaf)
        assert value.shape == ()
        if value.requires_grad:
            value.backward()  # type: ignore[no-untyped-call]
        grad = torch.zeros_like(w) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(grad, j.subgrad(w))
        if name != "nuclear":  # it has no entries of its own
            assert not j.subgrad(w)[w == 0].any()
        assert not j.subgrad(torch.zeros_like(w)).any()


@pytest.mark.parametrize("name", CONVEX)
def test_subgradients_satisfy_their_inequality(name: str) -> None:
    case = CASES[name]
    for k in range(SETS):
        g = rng(3, k)
        j, size = build(name, case.settings(g)), shape(g)
        w = tensor(case.domain(with_zeros(g, g.normal(size=size))))
        for scale in (0.1, 1, 10):
            v = tensor(case.domain(with_zeros(g, scale * g.normal(size=size))))
            slack = 1e-9 * (1 + scale)
            assert j.value(v) >= j.value(w) + (j.subgrad(w) * (v - w)).sum() - slack


@pytest.mark.parametrize("name", REGULARISERS)
def test_prox_beats_every_random_point_and_is_monotone(name: str) -> None:
    case = CASES[name]
    for k in range(SETS):
        g = rng(4, k)
        settings, size, step = case.settings(g), shape(g), log_uniform(g, 0.01, 5)
        j = build(name, settings)
        x, y = (with_zeros(g, 2 * g.normal(size=size)) for _ in range(2))
        p, q = prox(j, x, step), prox(j, y, step)
        assert ((p - q) * (x - y)).sum() >= -1e-9
        if case.convex:  # firmly non-expansive, so non-expansive
            assert ((p - q) * (x - y)).sum() >= np.square(p - q).sum() - 1e-9
            assert np.linalg.norm(p - q) <= np.linalg.norm(x - y) + 1e-9

        def objective(u: np.ndarray, x=x, step=step, settings=settings) -> float:  # type: ignore[no-untyped-def]
            return step * case.value(u, **settings) + np.square(u - x).sum() / 2

        best = objective(p)
        others = [np.zeros(size), x, q, *(p + s * g.normal(size=size) for s in (1e-3, 1e-2, 0.1))]
        others += [p * (1 + 1e-3), p * (1 - 1e-3), *(p * (g.random(size) > 0.3) for _ in range(3))]
        assert best <= min(objective(case.domain(u)) for u in others) + 1e-9


@pytest.mark.parametrize("name", CONVEX)
def test_moreau_identity(name: str) -> None:
    case = CASES[name]
    for k in range(SETS if name != "sparse_group_lasso" else 40):
        g = rng(5, k)
        settings, step = case.settings(g), log_uniform(g, 0.01, 5)
        x = with_zeros(g, 2 * g.normal(size=shape(g, most=2)))
        assert case.conjugate is not None
        dual = case.conjugate(x / step, **settings)
        np.testing.assert_allclose(prox(build(name, settings), x, step) + step * dual, x, atol=2e-7)


@pytest.mark.parametrize("name", REGULARISERS)
def test_step_0_changes_nothing_or_projects(name: str) -> None:
    case = CASES[name]
    for k in range(20):
        g = rng(6, k)
        j = build(name, case.settings(g))
        w = tensor(with_zeros(g, g.normal(size=shape(g)))).float()
        w.view(-1)[0] = 1e-30  # its square is 0 in single precision
        u = j.prox(w, 0.0)
        assert u.data_ptr() != w.data_ptr()
        if not case.indicator:
            assert torch.equal(u, w)
        assert torch.equal(j.prox(u, 0.0), u)
        assert j.value(u).isfinite()
        # It is what small steps tend to.
        torch.testing.assert_close(j.prox(w, 1e-12), u, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", REGULARISERS)
def test_types_are_kept_and_zeros_stay_zero(name: str, dtype: torch.dtype) -> None:
    j = REGULARISERS[name]()
    g = torch.Generator().manual_seed(3)
    w = torch.randn(4, 3, 2, 2, generator=g).to(dtype)
    w[:, 1] = 0
    for step in (0.0, 0.3, 1e4):
        for v in (w, torch.zeros_like(w)):
            u, s, value = j.prox(v, step), j.subgrad(v), j.value(v)
            assert u.dtype == s.dtype == value.dtype == dtype
            assert u.shape == s.shape == v.shape
            assert u.isfinite().all()
            assert s.isfinite().all()
            assert not value.isnan()
            assert not u[:, 1].any()
            assert not s[:, 1].any() or name == "nuclear"
    assert not j.prox(w, 1e4).any()
    # Rounded once or twice, but the same weights as in double precision.
    exact = j.prox(w.double(), 0.3)
    torch.testing.assert_close(
        j.prox(w, 0.3).double(), exact, atol=8 * torch.finfo(dtype).eps, rtol=8 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("name", sorted({*REGULARISERS} - {"zero", "nuclear"}))
def test_a_weight_that_is_no_number_is_not_hidden(name: str) -> None:
    w = torch.full((2, 2, 1, 1), float("nan"))
    assert REGULARISERS[name]().prox(w, 0.1).isnan().any()


def test_indicators_outside_their_domain() -> None:
    w = torch.tensor([0.5, -1e-6])
    assert L1Nonnegative().value(w) == float("inf")
    assert L1Nonnegative().prox(w, 0.0).tolist() == [0.5, 0.0]
    assert L1Nonnegative().value(w.clamp_min(0)) == 0.5
    assert L1Nonnegative().subgrad(w).tolist() == [1.0, 0.0]
    assert Zero().value(w) == float("inf")
    assert Zero().value(torch.zeros(3)) == 0
    assert not Zero().prox(w, 0.0).any()


def test_nuclear_norm_lowers_the_rank() -> None:
    u, _, vh = torch.linalg.svd(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double())
    w = (u @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5]).double()) @ vh[:4]).view(4, 3, 2, 1)
    p = Nuclear().prox(w, 1.5)
    torch.testing.assert_close(torch.linalg.svdvals(p.flatten(1)), torch.tensor([1.5, 0.5, 0, 0]).double())
    with pytest.raises(ValueError, match="nuclear: expected a weight of two dimensions or more"):
        Nuclear().prox(torch.ones(3), 0.0)

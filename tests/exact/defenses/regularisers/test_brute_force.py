"""Proximal maps against minimisers that know nothing of them: grids in 1-D, scipy for groups and matrices."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import minimize

from defenses.regularisers import REGULARISERS
from tests.helpers.regulariser_cases import (
    CASES,
    SETS,
    Array,
    Case,
    build,
    log_uniform,
    prox,
    rng,
    shape,
    slices,
)

ELEMENTWISE = [name for name, case in CASES.items() if case.rho is not None]
GROUPED = ["group_lasso", "group_l0", "sparse_group_lasso"]


def test_every_regulariser_is_minimised_here() -> None:
    assert {*ELEMENTWISE, *GROUPED, "nuclear"} == set(REGULARISERS)


def grid_minimum(objective: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """For every x (N,) the smallest value of the objective, (G, N) -> (G, N), and where: grids within grids."""
    wide = np.abs(x) + 0.5
    extra = np.stack([x, np.zeros_like(x)])
    centre = np.zeros_like(x)
    for _ in range(4):
        u = np.concatenate([centre + wide * np.linspace(-1, 1, 2001)[:, None], extra])
        f = objective(u)
        best = f.argmin(0)
        centre = np.take_along_axis(u, best[None], 0)[0]
        extra = np.concatenate([extra[:2], centre[None]])
        wide = wide / 500
    return f.min(0), centre


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_prox_is_the_grid_minimum(name: str) -> None:
    case = CASES[name]
    rho = case.rho
    assert rho is not None
    for k in range(SETS):
        g = rng(10, k)
        settings, step = case.settings(g), log_uniform(g, 0.005, 5)
        x = np.concatenate([g.normal(size=4) * log_uniform(g, 0.1, 5), g.uniform(-1, 1, 2), [0.0]])

        def objective(u: Array, x=x, step=step, settings=settings) -> Array:  # type: ignore[no-untyped-def]
            value: Array = step * rho(u, **settings) + np.square(u - x) / 2
            return value

        p = prox(build(name, settings), x, step)
        lowest, where = grid_minimum(objective, x)
        assert (objective(p[None])[0] <= lowest + 1e-12).all()
        np.testing.assert_allclose(p, where, atol=1e-5)  # jumps too: no x lies on one by chance


def scipy_minimum(
    objective: Callable[[Array], float], starts: list[Array], jacobian: bool = False
) -> tuple[float, Array]:
    options = {"gtol": 1e-10} if jacobian else {"xtol": 1e-7, "ftol": 1e-13}
    method = "BFGS" if jacobian else "Powell"
    found = [minimize(objective, s, method=method, jac=jacobian or None, options=options) for s in starts]
    best = min(found, key=lambda r: r.fun)
    return float(best.fun), best.x


def one_group(case: Case, k: int, name: str) -> tuple[Array, Array, float, Callable[[Array], float]]:
    """A random weight's group before and after the proximal map, and the objective of that group alone."""
    g = rng(11, k)
    settings, step, size = case.settings(g), log_uniform(g, 0.02, 3), shape(g, most=2)
    x = g.normal(size=size)
    p = prox(build(name, settings), x, step)
    each = slices(x, settings["group"])
    i = each[g.integers(len(each))]
    inside = x[i].reshape(-1)[:5]
    c = np.sqrt(x[i].size) if settings["weighted"] else 1.0
    rest = np.square(p[i].reshape(-1)[5:]).sum()  # of large groups only five entries are free
    fixed = np.abs(p[i].reshape(-1)[5:]).sum()
    mix = settings.get("mix", 0.0)

    def objective(u: Array) -> float:
        norm = np.sqrt(np.square(u).sum() + rest)
        j = (1 - mix) * c * (norm if name != "group_l0" else float(norm != 0))
        return float(step * (j + mix * (np.abs(u).sum() + fixed)) + np.square(u - inside).sum() / 2)

    return inside, p[i].reshape(-1)[:5], step, objective


@pytest.mark.parametrize("name", GROUPED)
def test_group_prox_is_the_minimum_scipy_finds(name: str) -> None:
    case = CASES[name]
    for k in range(SETS):
        x, p, _, objective = one_group(case, k, name)
        lowest, where = scipy_minimum(objective, [x, np.full_like(x, 1e-3), np.zeros_like(x)])
        assert objective(p) <= lowest + 1e-9
        if case.convex:  # strongly so: ||p - where||^2 / 2 <= the difference of the objectives
            assert np.linalg.norm(p - where) < 2e-3


def test_group_l0_is_the_best_of_all_supports() -> None:
    for k in range(SETS):
        g = rng(12, k)
        settings, step = CASES["group_l0"].settings(g), log_uniform(g, 0.02, 3)
        x = g.normal(size=(3, 2, 2, 1))
        each = slices(x, settings["group"])
        candidates = []
        for support in itertools.product([False, True], repeat=len(each)):
            u = np.zeros_like(x)
            for i, used in zip(each, support, strict=True):
                u[i] = x[i] if used else 0  # on its support the minimiser is x itself
            f = step * CASES["group_l0"].value(u, **settings) + np.square(u - x).sum() / 2
            candidates.append((f, u))
        best = min(candidates, key=lambda c: c[0])[1]
        np.testing.assert_array_equal(prox(build("group_l0", settings), x, step), best)


def test_nuclear_prox_is_the_minimum_scipy_finds() -> None:
    # ||M||_* is the least (||A||^2 + ||B||^2) / 2 of all A B = M: smooth, and without spurious minima.
    for k in range(SETS):
        g = rng(13, k)
        x, step = g.normal(size=(int(g.integers(1, 4)), int(g.integers(1, 4)))), log_uniform(g, 0.02, 3)
        rows, columns = x.shape
        rank = min(rows, columns)

        def split(z: Array, rows=rows, rank=rank) -> tuple[Array, Array]:  # type: ignore[no-untyped-def]
            return z[: rows * rank].reshape(rows, rank), z[rows * rank :].reshape(rank, -1)

        def objective(z: Array, x=x, step=step, split=split):  # type: ignore[no-untyped-def]
            a, b = split(z)
            r = a @ b - x
            f = step * np.square(z).sum() / 2 + np.square(r).sum() / 2
            return f, step * z + np.concatenate([(r @ b.T).ravel(), (a.T @ r).ravel()])

        starts = [s * g.normal(size=rank * (rows + columns)) for s in (1.0, 0.1)]
        lowest, z = scipy_minimum(objective, starts, jacobian=True)
        p = prox(build("nuclear", {}), x[:, :, None], step)[:, :, 0]
        assert step * CASES["nuclear"].value(p) + np.square(p - x).sum() / 2 <= lowest + 1e-9
        a, b = split(z)
        np.testing.assert_allclose(p, a @ b, atol=1e-4)

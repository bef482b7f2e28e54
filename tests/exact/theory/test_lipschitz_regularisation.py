"""Lipschitz regularisation where its minimisers are known; Roith, thesis, 1.2.2 (CLIP, arXiv:2103.12531, section 3).

Min over theta of loss(theta) + lambda Lip(f_theta). Minimisers come from linear programs, bounded least squares and
closed forms, not from training; our CLIP is then held against them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog, lsq_linear, minimize, minimize_scalar
from torch import Tensor, nn

from attacks.base import Threat
from defenses import CLIP, Step
from defenses.robust.clip import ascend

Array = npt.NDArray[np.float64]
KNOTS = 21
H = 1 / (KNOTS - 1)
LAMS = (1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A minimiser: a piecewise linear function by its values at the knots, its loss and its Lipschitz constant."""

    values: Array  # (KNOTS,)
    loss: float
    lipschitz: float

    def objective(self, lam: float) -> float:
        return self.loss + lam * self.lipschitz


def data() -> tuple[npt.NDArray[np.int64], Array]:
    """Knots at which there are labels, and the labels: nine of them, so that their median is one."""
    random = np.random.default_rng(2)
    places = np.array([0, 2, 5, 6, 10, 13, 16, 17, 20])
    return places, np.sin(2 * np.pi * places * H) + 0.3 * random.standard_normal(len(places))


def least_absolute(lam: float, lowest: float | None = None) -> Fit:
    """Mean of |f(x) - y|, a linear program in the values, the constant t and the errors e.

    Args:
        lam: lambda.
        lowest: values that networks can take begin here; None for no bound.
    """
    places, y = data()
    n, size = len(places), KNOTS + 1 + len(places)
    cost = np.concatenate((np.zeros(KNOTS), [lam], np.full(n, 1 / n)))
    rows, bounds = [], []
    for sign in (1, -1):
        for j in range(KNOTS - 1):  # sign (f_(j+1) - f_j) <= h t
            row = np.zeros(size)
            row[[j, j + 1, KNOTS]] = -sign, sign, -H
            rows.append(row)
            bounds.append(0.0)
        for i, (place, label) in enumerate(zip(places, y, strict=True)):  # sign (f - y) <= e
            row = np.zeros(size)
            row[[place, KNOTS + 1 + i]] = sign, -1
            rows.append(row)
            bounds.append(sign * label)
    free = [(lowest, None)] * KNOTS + [(0, None)] * (1 + n)
    found = linprog(cost, A_ub=np.array(rows), b_ub=bounds, bounds=free, method="highs")
    assert found.success
    return fit_of(found.x[:KNOTS], squared=False)


def least_squares(lam: float) -> Fit:
    """Mean of (f(x) - y)^2: for a bound t on the slopes a bounded least squares problem, over t a convex function."""
    places, y = data()
    n = len(places)
    design = np.hstack([np.ones((n, 1)), H * (np.arange(KNOTS - 1) < places[:, None])]) / np.sqrt(n)

    def values(t: float) -> Array:
        bounds = np.full(KNOTS, max(t, 1e-12))
        bounds[0] = np.inf
        found = lsq_linear(design, y / np.sqrt(n), (-bounds, bounds), tol=1e-14, method="bvls")
        return np.concatenate((found.x[:1], found.x[0] + H * np.cumsum(found.x[1:])))

    def objective(t: float) -> float:
        return fit_of(values(t)).loss + lam * t

    steepest = np.abs(np.diff(y) / (H * np.diff(places))).max()
    best = minimize_scalar(objective, bounds=(0, 1.01 * steepest), method="bounded", options={"xatol": 1e-10})
    return fit_of(values(best.x))


def fit_of(values: Array, squared: bool = True) -> Fit:
    places, y = data()
    errors = values[places] - y
    loss = np.square(errors).mean() if squared else np.abs(errors).mean()
    return Fit(values=values, loss=float(loss), lipschitz=float(np.abs(np.diff(values)).max() / H))


def network(values: Array) -> nn.Sequential:
    """The function on [0, 1] as a ReLU network in float64: its kinks are the knots."""
    slopes = np.diff(values) / H
    model = nn.Sequential(nn.Linear(1, KNOTS - 1), nn.ReLU(), nn.Linear(KNOTS - 1, 1)).double()
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[0].bias.copy_(torch.from_numpy(-H * np.arange(KNOTS - 1)))
        model[2].weight.copy_(torch.from_numpy(np.diff(slopes, prepend=0.0))[None])
        model[2].bias.fill_(float(values[0]))
    return model


# Monotonicity (CLIP, proposition 2) --------------------------------------------------------------------------------


@pytest.mark.parametrize("solve", [least_absolute, least_squares])
def test_with_lambda_the_loss_rises_and_the_lipschitz_constant_falls(solve) -> None:  # type: ignore[no-untyped-def]
    fits = [solve(lam) for lam in LAMS]
    for (lam, fit), other in itertools.product(zip(LAMS, fits, strict=True), fits):
        assert fit.objective(lam) <= other.objective(lam) + 1e-8  # they are minimisers
    losses, constants = np.array([f.loss for f in fits]), np.array([f.lipschitz for f in fits])
    assert (np.diff(losses) >= -1e-7).all()
    assert (np.diff(constants) <= 1e-5).all()
    assert len(np.unique(losses.round(4))) >= 4  # and they do change
    # Of functions that are no minimisers nothing of the kind is true: scaled ones, in another order.
    scaled = [fit_of(s * fits[0].values) for s in (1.0, 1.3, 0.9)]
    assert (
        not (np.diff([f.loss for f in scaled]) >= 0).all()
        or not (np.diff([f.lipschitz for f in scaled]) <= 0).all()
    )


def test_clips_pairs_find_the_constants_of_the_minimisers() -> None:
    """The quotient of (1.3)'s approximation, ascended from random pairs, is the network's own constant."""
    found = []
    for lam in LAMS[:8]:
        fit = least_absolute(lam)
        model = network(fit.values)
        at = torch.linspace(0, 1, KNOTS, dtype=torch.float64)[:, None]
        np.testing.assert_allclose(model(at)[:, 0].detach().numpy(), fit.values, atol=1e-12)
        first = torch.rand(200, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        second = (first + 0.02).clamp(0, 1)
        size = torch.full((200,), 1e-3, dtype=torch.float64)
        for _ in range(60):
            first, second, size, values = ascend(model, first, second, size, 1.3, box=True)
        assert values.max().item() <= fit.lipschitz * (1 + 1e-9) + 1e-9
        assert values.max().item() >= 0.999 * fit.lipschitz - 1e-9
        found.append(values.max().item())
    assert (np.diff(found) <= 1e-3).all()


# Proposition 1.1 ---------------------------------------------------------------------------------------------------


def objective(theta: Array, lam: float, mu: float) -> float:
    """f(x) = w_2 tanh(w_1 x) on x = -1, 1 with y = x; Lip(f) = |w_1 w_2|."""
    w_1, w_2 = theta
    return float((w_2 * np.tanh(w_1) - 1) ** 2 + lam * abs(w_1 * w_2) + mu * np.hypot(w_1, w_2))


def best_within(radius: float, lam: float, mu: float) -> tuple[Array, float]:
    """The best of a fine grid of (w_1, Lip) on the disc, made better."""
    w_1, constant = np.meshgrid(np.geomspace(1e-4, radius, 400), np.linspace(0, 1.5, 301))
    grid = np.stack([w_1.ravel(), (constant / w_1).ravel()])
    grid = grid[:, np.linalg.norm(grid, axis=0) <= radius]
    start = grid[:, np.argmin([objective(g, lam, mu) for g in grid.T])]
    options = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 2000}
    end = minimize(objective, start, (lam, mu), method="Nelder-Mead", options=options)
    inside = end.x if np.linalg.norm(end.x) <= radius and end.fun <= objective(start, lam, mu) else start
    return inside, objective(inside, lam, mu)


def test_proposition_1_1_with_a_norm_there_is_a_minimiser_and_without_there_may_be_none() -> None:
    lam = 0.5
    # Linear functions c x come closer and closer (w_1 -> 0, w_2 = c / w_1), and none is among the networks.
    infimum = (lam / 2) ** 2 + lam * (1 - lam / 2)
    far = [best_within(radius, lam, 0.0) for radius in (2.0, 8.0, 32.0)]
    values = [value for _, value in far]
    assert values[0] > values[1] > values[2] > infimum
    assert values[2] == pytest.approx(infimum, abs=1e-3)
    assert np.linalg.norm(far[2][0]) > 0.9 * 32
    for mu in (0.1, 0.01):
        reach = objective(np.zeros(2), lam, mu) / mu  # beyond it the norm alone costs more than theta = 0
        inner, outer = best_within(reach, lam, mu), best_within(4 * reach, lam, mu)
        assert np.linalg.norm(inner[0]) < 0.5 * reach
        assert inner[1] == pytest.approx(outer[1], abs=1e-9)
        np.testing.assert_allclose(inner[0], outer[0], atol=1e-3)
        assert inner[1] > infimum


# Proposition 1.2: lambda to 0 --------------------------------------------------------------------------------------


def smallest_constant_of_a_fit() -> float:
    """The least Lipschitz constant with loss 0: the largest slope between neighbouring samples."""
    places, y = data()
    return float(np.abs(np.diff(y) / (H * np.diff(places))).max())


def test_proposition_1_2_small_lambda_gives_the_fit_of_the_smallest_constant() -> None:
    smallest = smallest_constant_of_a_fit()
    fit = least_absolute(1e-4)  # of this loss already for a lambda above 0
    assert fit.loss == pytest.approx(0, abs=1e-12)
    assert fit.lipschitz == pytest.approx(smallest, rel=1e-9)
    rough = fit.values.copy()
    rough[[1, 3, 8]] += 1, -1, 1  # as good a fit, between the samples
    assert fit_of(rough, squared=False).loss == pytest.approx(fit.loss)
    assert fit_of(rough).lipschitz > 1.5 * smallest
    gaps = []
    for lam in (1e-3, 1e-4, 1e-5):  # of squares only in the limit
        squared = least_squares(lam)
        gaps.append(smallest - squared.lipschitz)
        assert squared.loss < 10 * lam
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.005 * smallest


# Proposition 1.3: lambda to infinity -------------------------------------------------------------------------------


def test_proposition_1_3_large_lambda_gives_the_barycentre_of_the_labels() -> None:
    y = data()[1]
    for solve, centre in ((least_absolute, np.median(y)), (least_squares, y.mean())):
        fit = solve(10.0)
        np.testing.assert_allclose(fit.values, centre, atol=1e-6)
    assert abs(np.median(y) - y.mean()) > 0.02  # two barycentres: the loss decides
    assert np.ptp(least_absolute(LAMS[4]).values) > 0.1


@pytest.mark.parametrize("shift", [-0.5, 0.5])
def test_proposition_1_3_is_about_constants_that_the_network_can_be(shift: float) -> None:
    centre = float(np.median(data()[1]))
    fit = least_absolute(10.0, lowest=centre + shift)
    np.testing.assert_allclose(fit.values, max(centre, centre + shift), atol=1e-9)


# CLIP itself -------------------------------------------------------------------------------------------------------


def trained(model: nn.Module, x: Tensor, y: Tensor, lam: float, lr: float, steps: int) -> None:
    """Gradient descent on mean squared error and CLIP's penalty, the rate falling to 0 at the end."""
    clip = CLIP(lam=lam, pairs=16, source="train", init_noise=0.5, renew_every=None)

    def draw(split: str, count: int, generator: torch.Generator) -> Tensor:
        return x[torch.randint(len(x), (count,), generator=generator)]

    s = Step(model, None, Threat(), torch.Generator().manual_seed(0), draw)
    clip.begin(s)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for i in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / steps)
        penalty = clip.penalty(s)
        loss = F.mse_loss(model(x), y, reduction="none").sum(1).mean()
        optimizer.zero_grad()
        (loss + (0 if penalty is None else penalty)).backward()
        optimizer.step()


def test_clip_on_a_line_reaches_the_soft_threshold() -> None:
    """Of f(x) = a x + b and squares: a = sign(cov) max(|cov| - lambda / 2, 0) / var, b = mean y - a mean x."""
    random = torch.Generator().manual_seed(1)
    x = torch.rand(40, 1, generator=random)
    x = (x - x.mean()) / x.std(correction=0) + 0.7
    y = -0.8 * x + 0.3 + 0.2 * torch.randn(40, 1, generator=random)
    covariance = float(((x - x.mean()) * (y - y.mean())).mean())
    slopes, losses = [], []
    for lam in (0.0, 0.4, 1.0, 2.5):
        model = nn.Linear(1, 1)
        nn.init.zeros_(model.bias)
        nn.init.constant_(model.weight, 0.5)
        trained(model, x, y, lam, lr=0.1, steps=600)
        expected = np.sign(covariance) * max(abs(covariance) - lam / 2, 0)
        assert model.weight.item() == pytest.approx(expected, abs=0.01)
        # Where a = 0 it jumps to and fro by the learning rate, and b follows with a delay.
        assert model.bias.item() == pytest.approx(float(y.mean()) - expected * 0.7, abs=0.02)
        slopes.append(abs(model.weight.item()))
        losses.append(F.mse_loss(model(x), y).item())
    assert slopes[0] > slopes[1] > slopes[2] > slopes[3]
    assert losses[0] < losses[1] < losses[2] < losses[3]
    assert losses[3] == pytest.approx(float(y.var(correction=0)), rel=0.01)  # the labels' mean


def test_clip_on_a_linear_map_clips_its_singular_values() -> None:
    """With X^T X / n = I, W = prox of lambda / 2 ||.||_2 at the least squares solution: sigma_i -> min(sigma_i, t)."""
    random = torch.Generator().manual_seed(3)
    x = torch.linalg.qr(torch.randn(50, 4, generator=random)).Q * 50**0.5
    u, v = (torch.linalg.qr(torch.randn(4, 4, generator=random)).Q for _ in range(2))
    target = u @ torch.diag(torch.tensor([2.0, 1.2, 0.7, 0.3])) @ v
    y = x @ target.T
    # sum of (sigma_i - t)_+ = lambda / 2: for 0.6 that is 2 - t, for 2.2 it is (2 - t) + (1.2 - t).
    for lam, t in ((0.6, 1.7), (2.2, 1.05)):
        model = nn.Linear(4, 4, bias=False)
        nn.init.orthogonal_(model.weight, generator=torch.Generator().manual_seed(0))
        trained(model, x, y, lam, lr=0.1, steps=400)
        expected = u @ torch.diag(torch.tensor([2.0, 1.2, 0.7, 0.3]).clamp_max(t)) @ v
        torch.testing.assert_close(model.weight.detach(), expected, rtol=0, atol=0.04)
        assert torch.linalg.matrix_norm(model.weight, 2).item() == pytest.approx(t, rel=0.03)

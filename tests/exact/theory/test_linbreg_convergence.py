"""LinBreg against what BREG-I (arXiv:2105.04319) proves of it for strongly convex losses and stochastic gradients.

The loss is L(theta) = <theta - theta*, A (theta - theta*)> / 2, the eigenvalues of A from mu to L; J = lam ||.||_1; the
gradient's noise is Gaussian with E ||noise||^2 = sigma^2. Rows of one parameter are independent runs: J acts entry by
entry. D_k = D_{J_delta}^{v_k}(theta*, theta_k), d_k its expectation.

What is in expectation is checked on means over the runs, which may exceed the bound by ``Z`` standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from defenses import L1, LinBreg, Regulariser

Z = 4.5


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A quadratic loss with a sparse minimiser, a regulariser, and the noise of gradients."""

    mu: float = 1.0
    top: float = 2.0  # L
    lam: float = 0.2
    delta: float = 1.0
    sigma: float = 1.0
    star: Tensor = field(default_factory=lambda: torch.tensor([1.0, 0, 0, -0.5, 0, 2.0], dtype=torch.float64))

    @property
    def matrix(self) -> Tensor:
        d = len(self.star)
        mixed = torch.randn(d, d, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        q = torch.linalg.qr(mixed).Q
        return q @ torch.diag(torch.linspace(self.mu, self.top, d, dtype=torch.float64)) @ q.T

    @property
    def nu(self) -> float:
        """A constant of assumption 5 with theta* for its first point, for all theta and all subgradients.

        Where theta_i = 0 or has the other sign, D_J,i <= 2 lam |theta*_i| <= 2 lam e_i^2 / |theta*_i|, e = theta* -
        theta; elsewhere it is 0. So D_{J_delta} <= (1 / (2 delta) + 2 lam / min |theta*_i|) ||e||^2.
        """
        smallest = float(self.star[self.star != 0].abs().min())
        return self.mu / (1 / self.delta + 4 * self.lam / smallest)

    def loss(self, theta: Tensor) -> Tensor:
        e = theta - self.star
        return ((e @ self.matrix) * e).sum(-1) / 2

    def j(self, theta: Tensor) -> Tensor:
        return self.lam * theta.abs().sum(-1)

    def distance(self, theta: Tensor, v: Tensor) -> Tensor:
        """D_{J_delta}^v(theta*, theta)."""

        def elastic(t: Tensor) -> Tensor:
            return self.j(t) + t.square().sum(-1) / (2 * self.delta)

        return elastic(self.star) - elastic(theta) - (v * (self.star - theta)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Course:
    """What was measured of all runs, (K + 1, S) or (K, S)."""

    tau: Tensor  # (K, 1)
    distance: Tensor  # D_k
    error: Tensor  # ||theta* - theta_k||^2
    loss: Tensor
    moved: Tensor  # ||theta_(k+1) - theta_k||^2, (K, S)
    symmetric: Tensor  # D_J^sym(theta_(k+1), theta_k), (K, S)
    forward: Tensor  # D_J^{p_k}(theta_(k+1), theta_k), (K, S)


def follow(
    problem: Problem,
    tau: Callable[[int], float],
    steps: int,
    runs: int = 1,
    start: float = 0.0,
    regulariser: Regulariser | None = None,
) -> Course:
    """Let LinBreg go from theta_0 = ``start`` in every entry, and measure."""
    random = torch.Generator().manual_seed(11)
    matrix, d = problem.matrix, len(problem.star)
    p = nn.Parameter(torch.full((runs, d), start, dtype=torch.float64))
    optimizer = LinBreg([p], lam=problem.lam, delta=problem.delta, regulariser=regulariser or L1())
    group = optimizer.param_groups[0]
    measured: dict[str, list[Tensor]] = {
        k: [] for k in ("distance", "error", "loss", "moved", "symmetric", "forward")
    }

    def look() -> tuple[Tensor, Tensor]:
        theta, v = p.detach().clone(), optimizer.subgradient(p)
        measured["distance"].append(problem.distance(theta, v))
        measured["error"].append((theta - problem.star).square().sum(-1))
        measured["loss"].append(problem.loss(theta))
        return theta, v - theta / problem.delta

    theta, subgradient = look()
    for k in range(steps):
        noise = torch.randn(runs, d, generator=random, dtype=torch.float64) * (problem.sigma / math.sqrt(d))
        p.grad = (theta - problem.star) @ matrix + noise
        group["lr"] = tau(k)
        optimizer.step()
        before, old = theta, subgradient
        theta, subgradient = look()
        step = theta - before
        measured["moved"].append(step.square().sum(-1))
        measured["symmetric"].append(((subgradient - old) * step).sum(-1))
        measured["forward"].append(problem.j(theta) - problem.j(before) - (old * step).sum(-1))
    return Course(
        tau=torch.tensor([[tau(k)] for k in range(steps)], dtype=torch.float64),
        **{k: torch.stack(v) for k, v in measured.items()},
    )


def excess(values: Tensor) -> Tensor:
    """By how many standard errors the means over the runs are above 0; (K, S) -> (K,)."""
    return values.mean(1) / (values.std(1) / math.sqrt(values.shape[1])).clamp_min(1e-300)


def power(c: float, p: float) -> Callable[[int], float]:
    return lambda k: c / (k + 1) ** p


def theorem_6(problem: Problem, course: Course) -> Tensor:
    """Left minus right side of (3.8) in every step and run, (K, S).

    With the delta of its proof, sigma / 2 (delta tau^2 + ||step||^2 / delta): as printed it is meant for delta = 1.
    """
    delta, tau = problem.delta, course.tau
    left = course.distance.diff(dim=0) + problem.mu / 4 * tau * course.error[1:]
    return left - problem.sigma / 2 * (delta * tau**2 + course.moved / delta)


def theorem_11(problem: Problem, course: Course) -> Tensor:
    """Left minus right side of (3.10) in every step and run, (K, S)."""
    delta, tau, nu = problem.delta, course.tau, problem.nu
    factor = 1 - tau * nu * (1 - tau * 2 * delta**2 * problem.top**2 / nu)
    return course.distance[1:] - factor * course.distance[:-1] - delta * tau**2 * problem.sigma**2


class TwiceLambda(L1):
    """A known mistake: the multiplier of J is applied twice."""

    def prox(self, w: Tensor, step: float) -> Tensor:
        return super().prox(w, 2 * step)


# Theorem 2 and corollary 3 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0])
def test_corollary_3_what_is_summed_stays_below_the_bound_of_its_proof(delta: float) -> None:
    """sum_k E D_J^sym + C / (2 delta) E ||step||^2 <= tau_0 E L(theta_0) + delta sigma^2 / (2c) sum_k tau_k^2.

    For every c with C = 2 - delta L tau_0 - c > 0, decreasing tau; the sums to infinity are finite for p > 1/2.
    """
    problem = Problem(delta=delta)
    first = 1 / (delta * problem.top)  # half of what is allowed
    course = follow(problem, power(first, 0.75), 800, runs=1000)
    squares = course.tau[:, 0].square().cumsum(0)
    for c in (0.2, 0.5, 0.8):
        rest = 2 - delta * problem.top * first - c
        summed = (course.symmetric + rest / (2 * delta) * course.moved).cumsum(0).mean(1)
        bound = first * course.loss[0].mean() + delta * problem.sigma**2 / (2 * c) * squares
        assert (summed <= bound).all()
        assert summed[-1] > 0.05 * bound[-1]  # and not by a mile
    assert (course.symmetric >= -1e-12).all()
    # Summable: what a factor of four in steps adds gets less and less.
    added = course.moved.mean(1).cumsum(0)[[12, 49, 199, 799]].diff()
    assert (added.diff() < 0).all()


def test_corollary_3_asks_for_square_summable_steps() -> None:
    problem = Problem()
    course = follow(problem, lambda k: 0.1, 800, runs=200)
    added = course.moved.mean(1)
    # A constant is added in every step: the sum has no end.
    early, late = float(added[200:400].mean()), float(added[600:].mean())
    assert late == pytest.approx(early, rel=0.05)
    assert late > 0.2 * 0.1**2 * problem.sigma**2


@pytest.mark.parametrize("delta", [0.5, 2.0])
def test_theorem_2_without_noise_the_loss_falls_by_as_much_as_it_says(delta: float) -> None:
    problem = Problem(delta=delta, sigma=0.0)
    tau = 1.9 / (delta * problem.top)
    course = follow(problem, lambda k: tau, 100, start=3.0)
    rest = 2 - delta * problem.top * tau
    fall = course.symmetric / tau + rest / (2 * delta * tau) * course.moved
    assert (course.loss.diff(dim=0) + fall <= 1e-12).all()


# Theorem 6, remark 8, corollary 10 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("start", [0.0, 3.0])
def test_theorem_6_the_decay_in_every_step(delta: float, start: float) -> None:
    """(3.8), for steps of remark 7 that are as large as the theorem allows."""
    problem = Problem(delta=delta)
    largest = problem.mu / (2 * delta * problem.top**2)
    course = follow(problem, power(largest, 0.6), 300, runs=1500, start=start)
    assert excess(theorem_6(problem, course)).max() <= Z
    # Its proof has a little more: the Bregman distance of J between the iterates may stand on the left.
    assert excess(theorem_6(problem, course) + course.forward).max() <= Z
    assert course.distance.min() >= -1e-12


def test_theorem_6_the_noise_has_to_stand_on_the_right() -> None:
    problem = Problem()
    course = follow(problem, lambda k: 0.1, 300, runs=1500)
    assert excess(theorem_6(problem, course)).max() <= Z
    quiet = course.distance.diff(dim=0) + problem.mu / 4 * course.tau * course.error[1:]
    assert excess(quiet[150:].mean(0, keepdim=True)).item() > Z


@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("start", [0.0, 3.0, -1.0])
def test_remark_8_without_noise_bregman_distances_fall_in_every_step(delta: float, start: float) -> None:
    problem = Problem(delta=delta, sigma=0.0)
    tau = problem.mu / (2 * delta * problem.top**2)
    course = follow(problem, lambda k: tau, 200, start=start)
    assert (theorem_6(problem, course) <= 1e-13).all()
    assert (course.distance.diff(dim=0) <= 1e-13).all()
    assert course.distance[-1].item() < 1e-10 * course.distance[0].item()


@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0])
def test_theorem_6_does_not_hold_for_steps_that_are_too_large(delta: float) -> None:
    problem = Problem(delta=delta, sigma=0.0)
    course = follow(problem, lambda k: 2.2 / (delta * problem.top), 60, start=3.0)
    assert theorem_6(problem, course).max() > 1e-4
    course = follow(problem, lambda k: 4 / (delta * problem.top), 60, start=3.0)
    assert course.distance[-1].item() > 1e6 * course.distance[0].item()


def test_a_prox_that_applies_lambda_twice_breaks_theorems_6_and_11() -> None:
    problem = Problem(delta=2.0)
    tau = power(problem.mu / (2 * problem.delta * problem.top**2), 0.6)
    wrong, right = (follow(problem, tau, 300, runs=500, regulariser=r) for r in (TwiceLambda(), L1()))
    for theorem in (theorem_6, theorem_11):
        assert excess(theorem(problem, wrong)).max() > 3 * Z
        assert excess(theorem(problem, right)).max() <= Z
    assert wrong.distance.min() < -0.05  # no Bregman distance at all: v is no subgradient there


def test_theorem_6_and_corollary_10_iterates_and_distances_converge() -> None:
    problem = Problem()
    tau = power(problem.mu / (2 * problem.top**2), 0.6)
    course = follow(problem, tau, 4000, runs=100, start=1.0)
    # The sum over (3.8): all that the iterates are off, weighted by the steps, is finite.
    off = (problem.mu / 4 * course.tau * course.error[1:]).sum(0)
    right = course.distance[0] + problem.sigma / 2 * (course.tau**2 + course.moved).sum(0)
    assert excess((off - right)[None]).item() <= Z
    error, distance = (m.mean(1)[[0, 40, 400, 4000]] for m in (course.error, course.distance))
    assert (error.diff() < 0).all()
    assert (distance.diff() < 0).all()
    assert error[-1] < 1e-3 * error[0]
    assert distance[-1] < 1e-3 * distance[0]
    # It is the steps going to 0 that does it.
    constant = follow(problem, lambda k: 0.1, 1000, runs=100, start=1.0)
    assert constant.distance[500:].mean() > 10 * distance[-1]


# Assumption 5, theorem 11, corollary 12 ----------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.5, 2.0])
def test_assumption_5_holds_with_the_constant_used_here(delta: float) -> None:
    problem = Problem(delta=delta)
    random = torch.Generator().manual_seed(0)
    shape = (20_000, len(problem.star))
    size = 10 ** torch.empty(shape[0], 1, dtype=torch.float64).uniform_(-2, 1, generator=random)
    theta = problem.star + size * torch.randn(shape, generator=random, dtype=torch.float64)
    theta = torch.where(torch.rand(shape, generator=random) < 0.4, 0.0, theta)
    free = torch.empty(shape, dtype=torch.float64).uniform_(-1, 1, generator=random)
    v = problem.lam * torch.where(theta == 0, free, theta.sign()) + theta / delta
    gradient = (theta - problem.star) @ problem.matrix
    left = problem.loss(problem.star) - problem.loss(theta) - (gradient * (problem.star - theta)).sum(-1)
    assert (left >= problem.nu * problem.distance(theta, v) - 1e-12).all()
    # In one dimension it is the best there is: theta = 0 with the subgradient that points away.
    line = Problem(delta=delta, top=1.0, star=torch.tensor([0.5], dtype=torch.float64))
    zero = torch.zeros(1, dtype=torch.float64)
    there = line.distance(zero, torch.full_like(zero, -line.lam))
    assert line.nu * there.item() == pytest.approx(line.mu * 0.5**2 / 2)


@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    "tau", [power(0.02, 0.0), power(0.1, 0.3), power(0.5, 1.0)], ids=["0.02", "0.1 k^-0.3", "0.5 k^-1"]
)
def test_theorem_11_the_recursion_of_distances(delta: float, tau: Callable[[int], float]) -> None:
    """(3.10), which asks nothing of the steps."""
    problem = Problem(delta=delta)
    course = follow(problem, tau, 300, runs=1500, start=1.0)
    assert excess(theorem_11(problem, course)).max() <= Z


@pytest.mark.parametrize("eps", [0.3, 0.1, 0.03])
def test_theorem_11_constant_steps_come_as_close_as_one_likes(eps: float) -> None:
    """(3.11) with tau <= eps nu~ / (delta sigma^2), nu~ = nu - 2 delta^2 L^2 tau >= nu / 2."""
    problem = Problem()
    tau = min(eps * problem.nu / (2 * problem.sigma**2), problem.nu / (4 * problem.top**2))
    steps = math.ceil(12 / (tau * problem.nu))
    course = follow(problem, lambda k: tau, steps, runs=50)
    late = course.distance[steps // 2 :].mean()
    assert late <= eps
    assert late > 0.005 * eps  # constant steps do not come to rest
    assert course.distance[0].mean() > 3


def test_theorem_11_steps_that_fall_slowly_suffice() -> None:
    """(3.12) does not ask for a finite sum of squares: tau_k = c / (k + 1)^(1/3)."""
    problem = Problem()
    distance = follow(problem, power(0.05, 1 / 3), 4000, runs=100).distance.mean(1)
    assert (distance[[0, 40, 400, 4000]].diff() < 0).all()
    assert distance[3000:].mean() < 2e-3 * distance[0]
    # Steps with a finite sum stop on the way.
    stuck = follow(problem, power(0.05, 1.5), 4000, runs=100).distance.mean(1)
    assert stuck[4000] > 0.5 * stuck[0]
    assert stuck[4000] == pytest.approx(stuck[1000].item(), rel=0.02)


def test_corollary_12_the_rate_of_steps_c_over_k() -> None:
    """d_k <= C / k with C = max(k_1 d_(k_1), delta sigma^2 c^2 / (c nu~ - 1)), by induction over (3.10).

    That needs c nu~ > 1: the steps have to be small, which is what starting at a late k does, but c must not be.
    """
    problem, c, first, steps = Problem(), 6.0, 480, 4000
    slack = problem.nu - 2 * problem.top**2 * c / first  # nu~
    assert c * slack > 1
    course = follow(problem, lambda k: c / (k + first), steps, runs=200)
    k = torch.arange(steps + 1, dtype=torch.float64) + first
    d, spread = course.distance.mean(1), course.distance.std(1) / math.sqrt(200)
    for begin in (0, 500, 2000):
        largest = max(float(k[begin] * d[begin]), problem.sigma**2 * c**2 / (c * slack - 1))
        assert (k * (d - Z * spread))[begin:].max() <= largest
    late = (k * d)[1000:].view(-1)
    assert late.max() < 2 * late.min()  # C / k, and no faster
    # A small c is slower: errors fall like k^-(c delta mu), so distances like k^-(2 c delta mu).
    slow = follow(problem, lambda k: 0.2 / (k + 16), steps, runs=200, start=1.0).distance.mean(1)
    k = torch.arange(steps + 1) + 16
    assert k[-1] * slow[-1] > 3 * k[400] * slow[400]

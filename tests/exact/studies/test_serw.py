"""Senile reinforced random walks: the simulation against exact values, these against closed forms and brute force."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from scipy.special import hyp2f1

from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.studies import serw as module
from robustbench_sparse.studies.senile_exact import SUB_DIFFUSIVE, Limits, limits, mean_squares, survival
from robustbench_sparse.studies.senile_noise import PERTURBATIONS
from robustbench_sparse.studies.senile_walk import Walk, first_stays, walk
from robustbench_sparse.studies.serw import ODD_EVER, SCALED, SQUARE, SeRW

NOISES = [p for p in PERTURBATIONS if p != "none"]


def moments_by_hand(law: Walk, n: int) -> tuple[float, float]:
    """E |S_n|^2 and E |S_n|^4 by carrying the whole law of (place, direction, m) from step to step."""
    d = law.dimension
    steps = [tuple(s * (i == j) for j in range(d)) for i in range(d) for s in (1, -1)]
    now = {(step, k, 1): 1 / (2 * d) for k, step in enumerate(steps)}
    chances = law.retrace(1, n)
    for _ in range(n - 1):
        after: dict[tuple[tuple[int, ...], int, int], float] = defaultdict(float)
        for (place, direction, m), probability in now.items():
            for k, step in enumerate(steps):
                back = k == direction ^ 1
                chance = chances[m - 1] if back else (1 - chances[m - 1]) / (2 * d - 1)
                there = tuple(a + b for a, b in zip(place, step, strict=True))
                after[there, k, m + 1 if back else 1] += probability * chance
        now = after
    square = {key: sum(a * a for a in key[0]) for key in now}
    return sum(p * square[k] for k, p in now.items()), sum(p * square[k] ** 2 for k, p in now.items())


def diffusion(dimension: int, perturbation: str, delta: float) -> float:
    return limits(Walk(dimension=dimension, perturbation=perturbation, delta=delta)).diffusion


def stays(perturbation: str, delta: float) -> float:
    return limits(Walk(dimension=1, perturbation=perturbation, delta=delta)).stays


# Exact values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3])
def test_without_perturbation_the_stays_have_closed_forms(d: int) -> None:
    law = Walk(dimension=d)
    closed = [math.factorial(n) * math.factorial(2 * d) / math.factorial(n + 2 * d - 1) for n in range(1, 30)]
    np.testing.assert_allclose(survival(law, 29), closed, rtol=1e-12)
    assert limits(law).stays == (math.inf if d == 1 else d / (d - 1))


def test_one_dimension_has_the_published_constants() -> None:
    law = Walk(dimension=1)
    np.testing.assert_allclose(survival(law, 1000), 2 / np.arange(2, 1002), rtol=1e-12)
    assert limits(law).odd == pytest.approx(2 * (1 - math.log(2)), abs=1e-9)
    assert limits(law).diffusion == 0
    # log(n) / n E S_n^2 goes to its limit like 1 / log n, too slowly to be seen; n / E S_n^2 is log(n) / limit + b.
    square = mean_squares(law, 20_000)
    at = [n / square[n - 1] for n in (20, 200, 2_000, 20_000)]
    slopes = [math.log(10) / (b - a) for a, b in itertools.pairwise(at)]
    assert slopes[0] > slopes[1] > slopes[2] > SUB_DIFFUSIVE
    assert slopes[2] == pytest.approx(SUB_DIFFUSIVE, rel=0.03)
    assert pytest.approx((1 - math.log(2)) / (2 * math.log(2) - 1)) == SUB_DIFFUSIVE


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("delta", [0.1, 0.01, 1e-4])
def test_model_one_is_a_hypergeometric_series(d: int, delta: float) -> None:
    # (1 + m) / (2d + m) - delta = (1 - delta) (m + a) / (m + 2d)
    a = (1 - 2 * d * delta) / (1 - delta)
    found = limits(Walk(dimension=d, perturbation="I", delta=delta))
    assert found.stays == pytest.approx(hyp2f1(1 + a, 1, 2 * d + 1, 1 - delta), rel=1e-9)
    assert found.odd == pytest.approx(hyp2f1(1 + a, 1, 2 * d + 1, delta - 1), rel=1e-9)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_diffusion_constant_of_the_simple_walk_is_one(d: int) -> None:
    simple = Limits(stays=2 * d / (2 * d - 1), odd=2 * d / (2 * d + 1), dimension=d)
    assert simple.diffusion == pytest.approx(1)


@pytest.mark.parametrize(
    "law",
    [
        Walk(dimension=1),
        Walk(dimension=2),
        Walk(dimension=3),
        Walk(dimension=1, perturbation="I", delta=0.2),
        Walk(dimension=2, perturbation="II:half_cauchy", delta=0.1),
        Walk(dimension=2, perturbation="III:lognormal", delta=0.3),
    ],
    ids=str,
)
def test_mean_squares_are_those_of_brute_force(law: Walk) -> None:
    exact = mean_squares(law, 7)
    for n in range(1, 8):
        assert exact[n - 1] == pytest.approx(moments_by_hand(law, n)[0], rel=1e-12)


@pytest.mark.parametrize(
    ("d", "perturbation"), [(2, "none"), (1, "I"), (2, "I"), (1, "II:pareto"), (2, "III:lognormal")]
)
def test_mean_squares_grow_at_the_rate_of_the_diffusion_constant(d: int, perturbation: str) -> None:
    """Theorem 2.2."""
    law = Walk(dimension=d, perturbation=perturbation, delta=0.0 if perturbation == "none" else 0.1)
    square = mean_squares(law, 4000)
    assert square[3999] - square[1999] == pytest.approx(2000 * limits(law).diffusion, rel=2e-3)


# The noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize(("delta", "m"), [(0.3, 1), (0.3, 20), (0.01, 3)])
def test_what_noise_takes_on_average_is_what_its_draws_take(name: str, delta: float, m: int) -> None:
    noise = PERTURBATIONS[name]
    assert noise is not None
    m_ = np.full(200_000, float(m))
    c = (1 + m_) / (2 + m_)
    drawn = np.minimum(delta * noise.sample(np.random.default_rng(5), m_), c)
    error = drawn.std() / math.sqrt(len(drawn))
    assert (drawn >= 0).all()
    assert noise.taken(delta, c[:1], m_[:1])[0] == pytest.approx(drawn.mean(), abs=4 * error + 1e-12)


# The simulation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "law",
    [
        Walk(dimension=1),
        Walk(dimension=2),
        Walk(dimension=3, perturbation="I", delta=0.2),
        Walk(dimension=2, perturbation="II:exponential", delta=0.2),
    ],
    ids=str,
)
def test_walkers_have_the_moments_of_brute_force(law: Walk) -> None:
    w, n = 100_000, 6
    counts = walk(law, w, [1, n], np.random.default_rng(3))
    assert counts.walkers == w
    assert counts.square[0] == w  # one step away, all of them
    assert counts.traversed.sum() == w
    assert counts.traversed[0] == 0
    second, fourth = moments_by_hand(law, n)
    error = math.sqrt((fourth - second**2) / w)
    assert counts.square[1] / w == pytest.approx(second, abs=4 * error)
    assert counts.fourth[1] / w == pytest.approx(fourth, rel=0.03)
    exactly = -np.diff(survival(law, n + 1))
    for i in range(1, n):
        share = exactly[i - 1]
        error = math.sqrt(share * (1 - share) / w)
        assert counts.traversed[i] / w == pytest.approx(share, abs=4.5 * error)


def test_draws_of_tau_have_its_law() -> None:
    tau = first_stays(200_000, np.random.default_rng(0))
    assert tau.min() == 1
    for n in (2, 5, 50, 1000):
        share = 2 / (n + 1)
        assert (tau >= n).mean() == pytest.approx(share, abs=4 * math.sqrt(share / 200_000))


@pytest.fixture(scope="module")
def small() -> pd.DataFrame:
    return SeRW(walkers=10_000, steps=100, deltas=(0.1, 0.02)).run(Silent()).table


def test_intervals_of_the_study_hold_the_exact_values(small: pd.DataFrame) -> None:
    asked = small[small["simulated"].notna()]
    held = (asked["low"] <= asked["exact"]) & (asked["exact"] <= asked["high"])
    assert len(asked) > 300
    assert 0.9 < held.mean() < 0.995  # of 95 %
    middle, half = (asked["low"] + asked["high"]) / 2, (asked["high"] - asked["low"]) / 2
    assert ((asked["exact"] - middle).abs() <= 2.2 * half).all()  # 4.3 standard errors
    assert (half > 0).all()


def test_the_study_has_a_row_for_each_theorem_and_number(small: pd.DataFrame) -> None:
    assert set(small["theorem"]) == {
        "proposition 2.2.1", "theorem 2.2", "theorem 2.3", "theorem 2.4", "theorem 2.5", "theorem 2.6",
    }  # fmt: skip
    ever = small[small["quantity"] == ODD_EVER]
    assert len(ever) == 1
    assert ever["low"].item() <= 2 * (1 - math.log(2)) <= ever["high"].item()
    scaled = small[small["quantity"] == SCALED]
    assert set(scaled["limit"]) == {SUB_DIFFUSIVE}
    assert set(scaled["dimension"]) == {1}
    nu = small[(small["quantity"] == SQUARE) & (small["model"] == "I") & (small["dimension"] == 2)]
    assert set(nu["limit"]) == {diffusion(2, "I", 0.1), diffusion(2, "I", 0.02)}


def test_another_rule_is_not_mistaken_for_this_one() -> None:
    counts = walk(Walk(dimension=2), 100_000, [50], np.random.default_rng(0))
    exact = mean_squares(Walk(dimension=2, perturbation="I", delta=0.02), 50)[-1]
    error = math.sqrt(counts.fourth[0] / counts.walkers - (counts.square[0] / counts.walkers) ** 2) / 316
    assert abs(counts.square[0] / counts.walkers - exact) > 6 * error


def test_the_seed_and_nothing_else_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"walkers": 500, "steps": 10, "dimensions": (1,), "perturbations": ("I", "II:pareto")}
    first = SeRW(**settings).run(Silent()).table
    pd.testing.assert_frame_equal(first, SeRW(**settings).run(Silent()).table)
    other = SeRW(**settings, seed=1).run(Silent()).table
    assert not np.array_equal(first["simulated"].dropna(), other["simulated"].dropna())
    fewer = SeRW(**{**settings, "perturbations": ("II:pareto",)}).run(Silent()).table
    kept = first[first["noise"] == "pareto"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, fewer)  # a law's draws do not depend on the others
    monkeypatch.setattr(module, "CHUNK", 120)
    parts = SeRW(**settings).run(Silent()).table
    assert set(parts["walkers"]) == {500, 0}
    assert parts["simulated"].notna().sum() == first["simulated"].notna().sum()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seed", -1),
        ("dimensions", ()),
        ("dimensions", (0,)),
        ("dimensions", (2, 2)),
        ("perturbations", ("IV",)),
        ("deltas", (0.0,)),
        ("deltas", (0.7,)),
        ("walkers", 1),
        ("steps", 1),
    ],
)
def test_settings_are_checked(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{setting}: expected"):
        SeRW(**{setting: value})


# The theorems' rates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["I", "II:exponential", "III:lognormal"])
def test_theorems_2_3_to_2_5_one_dimension_diffuses_at_the_rate_of_the_logarithm(name: str) -> None:
    nus = [diffusion(1, name, delta) for delta in (1e-2, 1e-3, 1e-4)]
    assert nus[0] > nus[1] > nus[2] > 0
    scaled = [nu * abs(math.log(delta)) for nu, delta in zip(nus, (1e-2, 1e-3, 1e-4), strict=True)]
    assert scaled[0] > scaled[1] > scaled[2] > SUB_DIFFUSIVE  # down to the constant of the walk without noise
    assert scaled[2] < 1.15 * SUB_DIFFUSIVE
    # E tau = 2 |log delta| + a constant
    assert stays(name, 1e-4) - stays(name, 1e-3) == pytest.approx(2 * math.log(10), rel=0.02)


@pytest.mark.parametrize(("name", "power"), [("II:half_cauchy", 1.0), ("II:pareto", 0.5)])
def test_theorem_2_4_heavier_tails_of_the_first_two_cases(name: str, power: float) -> None:
    """E tau grows like 2 |log delta^j|; for f(x) = O(x^-2), j = 1, a logarithm of a logarithm stands beside it."""
    deltas = (1e-3, 1e-4) if power == 1 else (1e-7, 1e-8)
    rise = stays(name, deltas[1]) - stays(name, deltas[0])
    beside = 2 * math.log(math.log(1e4) / math.log(1e3)) if power == 1 else 0.0
    assert rise == pytest.approx(2 * power * math.log(10) - beside, rel=0.05)


def test_theorem_2_4_the_heaviest_tail_is_close_to_residual_diffusion() -> None:
    deltas = (1e-10, 1e-50, 1e-100, 1e-300)
    nus = [diffusion(1, "II:log_tail", delta) for delta in deltas]
    double = [nu * math.log(abs(math.log(delta))) for nu, delta in zip(nus, deltas, strict=True)]
    assert all(a > b > SUB_DIFFUSIVE for a, b in itertools.pairwise(double))
    assert double[-1] < 1.2 * SUB_DIFFUSIVE
    single = [nu * abs(math.log(delta)) for nu, delta in zip(nus, deltas, strict=True)]
    assert single[-1] > 10 * single[0]  # far from O(1 / |log delta|)


def test_theorem_2_5_needs_more_than_finite_expectations() -> None:
    """Gamma noise of mean 1 and variance m^2 leaves P(tau >= n) of the order 1/n, and so no diffusion."""
    law = Walk(dimension=1, perturbation="III:gamma", delta=0.1)
    at_least = survival(law, 100_000)
    scaled = [n * at_least[n - 1] for n in (1000, 10_000, 100_000)]
    assert scaled[0] == pytest.approx(scaled[2], rel=0.02)
    assert scaled[2] > 0.3
    assert math.isinf(limits(law).stays)
    lognormal = Walk(dimension=1, perturbation="III:lognormal", delta=0.1)
    assert 1000 * survival(lognormal, 1000)[-1] < 1e-4


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("name", ["I", "II:exponential", "II:half_cauchy", "II:pareto", "III:lognormal"])
def test_theorem_2_6_enhancement_over_the_diffusive_walk(d: int, name: str) -> None:
    def rate(delta: float) -> float:
        return {"II:half_cauchy": -delta * math.log(delta), "II:pareto": math.sqrt(delta)}.get(name, delta)

    start = limits(Walk(dimension=d)).diffusion
    shares = [(diffusion(d, name, delta) - start) / rate(delta) for delta in (1e-3, 1e-4)]
    assert shares[0] > 0
    assert shares[1] == pytest.approx(shares[0], rel=0.1)


def test_theorem_2_6_the_third_case_goes_like_the_inverse_logarithm() -> None:
    """The thesis has log^-2: it leaves out P(xi > c / delta) = 1 / log(c / delta), which is larger."""
    start = limits(Walk(dimension=2)).diffusion
    deltas = (1e-50, 1e-100, 1e-300)
    once = [(diffusion(2, "II:log_tail", delta) - start) * abs(math.log(delta)) for delta in deltas]
    assert once == pytest.approx([once[0]] * 3, rel=0.03)
    twice = [value * abs(math.log(delta)) for value, delta in zip(once, deltas, strict=True)]
    assert twice[2] > 5 * twice[0]

"""What is known of the senile reinforced random walk without simulation; Dinh, thesis, ch. 2; Holmes & Sakai 2007.

xi is drawn anew in every step, so P(tau >= n) is the product of the chances to stay, each averaged over xi. Everything
else follows from it: the walk is a chain of independent stays on edges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from robustbench_sparse.studies.base import Array
from robustbench_sparse.studies.senile_walk import Walk

# Proposition 2.2.1: log(n) / n E S_n^2 for d = 1 tends to this.
SUB_DIFFUSIVE = (1 - math.log(2)) / (2 * math.log(2) - 1)
_SMALL = 1e-13  # of a series: what is left out, as a share of its sum
_MOST = 1 << 26  # terms of a series
_BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Exact values of a law.

    Attributes:
        stays: E tau, infinity where the series diverges, nan where it was not summed to its end.
        odd: P(tau odd).
        dimension: of the walk.
    """

    stays: float
    odd: float
    dimension: int

    @property
    def diffusion(self) -> float:
        """nu = lim E |S_n|^2 / n = P(tau odd) / ((1 - P(tau odd) / d) E tau); theorem 2.2.

        For d = 1 that is P(tau odd) / (P(tau even) E tau), (2.2). In higher dimensions (2.2) is larger than nu: of the
        simple random walk, where P(tau odd) = 2d / (2d + 1), it is 2d - 1 and not 1. The general form comes from the
        covariance of stays: after an odd one along e the next direction's mean is e / (2d - 1), else the opposite.
        """
        return self.odd / ((1 - self.odd / self.dimension) * self.stays)


def survival(law: Walk, n: int) -> Array:
    """P(tau >= i) for i = 1 to n, (n,); for d = 1 and delta = 0 it is 2 / (i + 1)."""
    chances: Array = np.concatenate((np.ones(1), law.retrace(1, n - 1)))
    return chances.cumprod()


def limits(law: Walk) -> Limits:
    """E tau and P(tau odd) as sums over P(tau >= n), and so the diffusion constant.

    Without perturbation E tau = d / (d - 1), infinite for d = 1; a perturbation that vanishes leaves it infinite there.
    Series that do not end within 2^26 terms give nan.
    """
    d, noise = law.dimension, law.noise
    endless = noise is None or (noise.vanishes and d == 1)
    stays, odd, last, n, block = 0.0, 0.0, 1.0, 1, _BLOCK
    while True:
        terms = last * np.concatenate((np.ones(1), law.retrace(n, n + block - 2))).cumprod()
        signs = np.where((n + np.arange(block)) % 2 == 1, 1.0, -1.0)
        stays += float(terms.sum())
        odd += float((signs * terms).sum())
        n += block
        last = float(terms[-1] * law.retrace(n - 1, n - 1)[0])
        if n * last < _SMALL * stays or n > _MOST or endless:
            break
        block = min(2 * block, 1 << 21)
    odd += (0.5 if n % 2 == 1 else -0.5) * last  # an alternating series: half of the term that comes next
    if endless:
        stays = math.inf if d == 1 else d / (d - 1)
    elif n > _MOST:
        stays = math.nan
    return Limits(stays=stays, odd=odd, dimension=d)


def mean_squares(law: Walk, n: int) -> Array:
    """E |S_i|^2 for i = 1 to n, exactly, by renewal at the end of the first stay; (n,).

    Let e be the first direction, A_i = E <S_i, e> and M_i = E |S_i|^2. A stay of t steps ends at e for odd t and at 0
    for even t; the next direction has the mean e / (2d - 1) or -e / (2d - 1), and from there the walk is a new one:

        A_i = sum_{t < i} P(tau = t) (1{t odd} +- A_{i-t} / (2d - 1)) + P(tau >= i) 1{i odd},
        M_i = sum_{t < i} P(tau = t) (1{t odd} (1 + 2 A_{i-t} / (2d - 1)) + M_{i-t}) + P(tau >= i) 1{i odd}.
    """
    others = 2 * law.dimension - 1
    at_least = survival(law, n + 1)
    exactly = at_least[:-1] - at_least[1:]  # P(tau = t), t from 1
    odd = np.arange(1, n + 1) % 2 == 1
    ends_odd = np.cumsum(np.where(odd, exactly, 0))
    # Reversed, so that the sums over t are products of slices: entry n - t of `back` is for t.
    signed, only_odd = np.where(odd, exactly, -exactly)[::-1], np.where(odd, exactly, 0)[::-1]
    every = exactly[::-1]
    along, square = np.zeros(n), np.zeros(n)
    for i in range(1, n + 1):
        staying = at_least[i - 1] * (i % 2)
        ended = ends_odd[i - 2] if i > 1 else 0.0
        past = slice(n - i + 1, n)  # t = i - 1 down to 1, beside walks of 1 to i - 1 steps
        before = along[: i - 1]
        along[i - 1] = ended + signed[past] @ before / others + staying
        square[i - 1] = (
            ended + 2 / others * (only_odd[past] @ before) + every[past] @ square[: i - 1] + staying
        )
    return square

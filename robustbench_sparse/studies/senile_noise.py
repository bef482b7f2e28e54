"""The noise xi by which a walk's chance to turn back is lowered; Dinh, thesis, 2.2 and 2.4.

What the law of tau needs of it is E min(delta xi, c) alone, c the chance without noise: see ``Noise.taken``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import expi, gammainc, ndtr

from robustbench_sparse.studies.base import Array

_E = float(np.e)


@dataclass(frozen=True, kw_only=True)
class Noise(ABC):
    """A non-negative random variable xi, which may depend on m, the times that the last edge was traversed.

    Attributes:
        fixed: xi is one number, so that nothing is drawn.
        vanishes: E min(delta xi, c) is summable over m, so that P(tau >= n) falls as slowly as without noise.
    """

    fixed: ClassVar[bool] = False
    vanishes: ClassVar[bool] = False

    @abstractmethod
    def sample(self, random: np.random.Generator, m: Array) -> Array:
        """A draw of xi for each entry of ``m`` (W,), whole numbers >= 1; (W,)."""

    @abstractmethod
    def taken(self, delta: float, c: Array, m: Array) -> Array:
        """E min(delta xi, c): what the chance c loses on average, exactly.

        Args:
            delta: > 0.
            c: chances in (0, 1), shaped like ``m``.
            m: consecutive traversals, (N,).
        """


@dataclass(frozen=True, kw_only=True)
class One(Noise):
    """xi = 1: model I."""

    fixed: ClassVar[bool] = True

    def sample(self, random: np.random.Generator, m: Array) -> Array:
        """Ones."""
        return np.ones_like(m)

    def taken(self, delta: float, c: Array, m: Array) -> Array:
        """min(delta, c)."""
        return np.minimum(delta, c)


@dataclass(frozen=True, kw_only=True)
class Exponential(Noise):
    """Exponential of mean 1: a finite expectation."""

    def sample(self, random: np.random.Generator, m: Array) -> Array:
        """Draws."""
        return random.standard_exponential(len(m))

    def taken(self, delta: float, c: Array, m: Array) -> Array:
        """delta (1 - e^(-c/delta))."""
        return -delta * np.expm1(-c / delta)


@dataclass(frozen=True, kw_only=True)
class HalfCauchy(Noise):
    """|Cauchy|, density 2 / (pi (1 + x^2)): case 1, f(x) = O(x^-2), the thesis's example 2.4.1."""

    def sample(self, random: np.random.Generator, m: Array) -> Array:
        """Draws."""
        return np.abs(random.standard_cauchy(len(m)))

    def taken(self, delta: float, c: Array, m: Array) -> Array:
        """The integral of P(delta xi > u) = 1 - 2/pi arctan(u/delta) over [0, c]."""
        return 2 / np.pi * (c * np.arctan2(delta, c) + delta / 2 * np.log1p((c / delta) ** 2))


@dataclass(frozen=True, kw_only=True)
class Pareto(Noise):
    """P(xi > x) = (1 + x)^-j: case 2, f(x) = O(x^-(1+j)).

    Args:
        j: in (0, 1).
    """

    j: float = 0.5

    def sample(self, random: np.random.Generator, m: Array) -> Array:
        """Draws."""
        return random.pareto(self.j, len(m))

    def taken(self, delta: float, c: Array, m: Array) -> Array:
        """delta ((1 + c/delta)^(1-j) - 1) / (1 - j)."""
        return delta * ((1 + c / delta) ** (1 - self.j) - 1) / (1 - self.j)


@dataclass(frozen=True, kw_only=True)
class LogTail(Noise):
    """P(xi > x) = 1 / log(e + x): case 3, f(x) = O(1 / (x log^2 x))."""

    def sample(self, random: np.random.Generator, m: Array) -> Array:
        """Draws; infinity for what float64 does not hold."""
        with np.errstate(over="ignore"):
            return np.exp(1 / (1 - random.random(len(m)))) - _E

    def taken(self, delta: float, c: Array, m: Array) -> Array:
        """delta (li(e + c/delta) - li(e)), li the logarithmic integral, Ei(log x)."""
        lost: Array = delta * (expi(np.log(_E + c / delta)) - expi(1.0))
        return lost


@dataclass(frozen=True, kw_only=True)
class LogNormal(Noise):
    """Log-normal of mean 1 and variance m^2: the thesis's example of model III."""

    def sample(self, random: np.random.Generator, m: Array) -> Array:
        """Draws."""
        variance = np.log1p(m * m)
        return np.exp(np.sqrt(variance) * random.standard_normal(len(m)) - variance / 2)

    def taken(self, delta: float, c: Array, m: Array) -> Array:
        """delta Phi(a - s) + c Phi(-a), s^2 = log(1 + m^2) and a = (log(c/delta) + s^2/2) / s."""
        s = np.sqrt(np.log1p(m * m))
        a = np.log(c / delta) / s + s / 2
        lost: Array = delta * ndtr(a - s) + c * ndtr(-a)
        return lost


@dataclass(frozen=True, kw_only=True)
class Gamma(Noise):
    """Gamma of mean 1 and variance m^2: it meets all that theorem 2.5 asks for, and is next to nothing for large m.

    E min(delta xi, c) falls like log(m) / m^2, a summable sequence, so P(tau >= n) still falls like 1/n only and
    E tau stays infinite in one dimension: the walk is not made diffusive.
    """

    vanishes: ClassVar[bool] = True

    def sample(self, random: np.random.Generator, m: Array) -> Array:
        """Draws."""
        return random.gamma(1 / m**2, m**2)

    def taken(self, delta: float, c: Array, m: Array) -> Array:
        """delta F_(k+1)(x) + c (1 - F_k(x)), k = 1/m^2, x = c k / delta, F_k the law of a gamma of shape k."""
        k = 1 / m**2
        x = c * k / delta
        lost: Array = delta * gammainc(k + 1, x) + c * (1 - gammainc(k, x))
        return lost


# Model: that of the thesis; after the colon the law of xi. `none` is the walk that is not perturbed.
PERTURBATIONS: dict[str, Noise | None] = {
    "none": None,
    "I": One(),
    "II:exponential": Exponential(),
    "II:half_cauchy": HalfCauchy(),
    "II:pareto": Pareto(),
    "II:log_tail": LogTail(),
    "III:lognormal": LogNormal(),
    "III:gamma": Gamma(),
}

"""The senile reinforced random walk, step by step, for many walkers at once; Dinh, thesis, 2.1 and 2.2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from robustbench_sparse.studies.base import Array
from robustbench_sparse.studies.senile_noise import PERTURBATIONS, Noise

CHUNK = 1 << 15  # walkers that go together: their numbers fit the processor's cache


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One law of the walk.

    After m consecutive traversals of an edge it is traversed again with probability max(c_m - delta xi, 0), where
    c_m = (1 + m) / (2d + m), so f(m) = m; each of the other 2d - 1 edges is as likely as any. For d = 1 this is the
    thesis's 2.2. For d >= 2 the thesis prints min(1/(2d + m) + delta xi, 1) for each of the others, which does not sum
    to 1; its proofs use the chance to stay alone, and so does this.

    Attributes:
        dimension: d >= 1.
        perturbation: a key of ``PERTURBATIONS``.
        delta: in [0, 1); 0 for the walk that is not perturbed.
    """

    dimension: int
    perturbation: str = "none"
    delta: float = 0.0

    @property
    def noise(self) -> Noise | None:
        """The law of xi; None where nothing is perturbed."""
        return PERTURBATIONS[self.perturbation] if self.delta > 0 else None

    def unperturbed(self, m: Array) -> Array:
        """c_m; (N,) -> (N,)."""
        return (1 + m) / (2 * self.dimension + m)

    def retrace(self, first: int, last: int) -> Array:
        """Chance to traverse an edge again after m = ``first`` to ``last`` times, averaged over xi."""
        m = np.arange(first, last + 1, dtype=np.float64)
        c = self.unperturbed(m)
        return c if self.noise is None else c - self.noise.taken(self.delta, c, m)


@dataclass
class Counts:
    """What is counted of walkers.

    Attributes:
        walkers: how many.
        traversed: how many traversed their first edge exactly i times, (steps + 1,); those with i = steps may go on.
        square: sum of |S_n|^2 over the walkers, at each of the times, (T,).
        fourth: sum of |S_n|^4, (T,).
    """

    walkers: int
    traversed: npt.NDArray[np.int64]
    square: Array
    fourth: Array

    def add(self, other: Counts) -> None:
        """Count other walkers in."""
        self.walkers += other.walkers
        self.traversed += other.traversed
        self.square += other.square
        self.fourth += other.fourth


def walk(law: Walk, walkers: int, times: Sequence[int], random: np.random.Generator) -> Counts:
    """Let walkers go from the origin by the transition rule.

    A direction is a number: 2 i for +e_i and 2 i + 1 for -e_i, so the way back is the same but for the last bit.

    Args:
        law: the rule.
        walkers: how many, at once.
        times: when they are looked at, increasing, each >= 1; the last is the end.
        random: where all draws come from.
    """
    d, noise, steps = law.dimension, law.noise, times[-1]
    numbers = np.arange(steps + 1, dtype=np.float64)
    chance = law.unperturbed(numbers)
    if noise is not None and noise.fixed:
        chance = np.maximum(chance - law.delta, 0)
    moves = np.zeros((d, 2 * d), dtype=np.int32)
    for i in range(d):
        moves[i, 2 * i : 2 * i + 2] = 1, -1

    direction = random.integers(0, 2 * d, walkers, dtype=np.int8)
    place = np.stack([moves[i][direction] for i in range(d)])  # (d, W)
    m, traversed = np.ones(walkers, dtype=np.int32), np.ones(walkers, dtype=np.int32)
    first = np.ones(walkers, dtype=np.bool_)  # still on the first edge
    square, fourth = [], []
    for step in range(1, steps + 1):
        if step > 1:
            stay_chance = chance[m]
            if noise is not None and not noise.fixed:
                stay_chance -= law.delta * noise.sample(random, m.astype(np.float64))
                np.maximum(stay_chance, 0, out=stay_chance)
            u = random.random(walkers)
            stay = u < stay_chance
            direction = _next(direction, stay, u, stay_chance, d)
            for i in range(d):
                place[i] += moves[i][direction]
            m *= stay
            m += 1
            first &= stay
            traversed += first
        if step in times:
            distance = (place.astype(np.float64) ** 2).sum(axis=0)
            square.append(distance.sum())
            fourth.append((distance**2).sum())
    counted = np.bincount(traversed, minlength=steps + 1)
    return Counts(walkers, counted, np.array(square), np.array(fourth))


def first_stays(count: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draws of tau for d = 1 without perturbation, by inverting P(tau >= n) = 2 / (n + 1); (count,).

    A walk can only be watched for so long, and this tau has no expectation.
    """
    u = 1 - random.random(count)  # in (0, 1]
    return np.floor(2 / u).astype(np.int64) - 1


def _next(
    direction: npt.NDArray[np.int8],
    stay: npt.NDArray[np.bool_],
    u: Array,
    chance: Array,
    dimension: int,
) -> npt.NDArray[np.int8]:
    """The next direction: back where the walker stays on its edge, else any other one."""
    if dimension == 1:  # the only other edge lies ahead
        return direction ^ stay
    back = direction ^ 1
    # Given u >= chance, (u - chance) / (1 - chance) is uniform on [0, 1): it chooses among the others.
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(stay, 0, (u - chance) / (1 - chance))
    other = np.minimum(share * (2 * dimension - 1), 2 * dimension - 2).astype(np.int8)
    other += other >= back
    return np.where(stay, back, other)

"""What every regulariser of the table is held against: a second way to its value and to its conjugate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defenses.regularisers import KEPT, REGULARISERS, Regulariser

SETS = 200
Array = np.ndarray[Any, np.dtype[Any]]
Settings = dict[str, Any]


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def slices(w: Tensor | Array, group: str) -> list[tuple[int | slice, ...]]:
    """The groups one by one, by plain indexing."""
    kept = KEPT[group]
    return list(itertools.product(*[range(n) if d in kept else [slice(None)] for d, n in enumerate(w.shape)]))


def log_uniform(g: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(g.uniform(np.log(low), np.log(high))))


def shape(g: np.random.Generator, ndim: int = 4, most: int = 3) -> tuple[int, ...]:
    return tuple(int(n) for n in g.integers(1, most + 1, ndim))


def c(w: Array, group: str, weighted: bool) -> float:
    return math.sqrt(w[slices(w, group)[0]].size) if weighted else 1.0


def group_value(w: Array, group: str, weighted: bool) -> float:
    return c(w, group, weighted) * sum(np.sqrt(np.square(w[i]).sum()) for i in slices(w, group))


def onto_balls(y: Array, group: str, radius: float) -> Array:
    out = y.copy()
    for i in slices(y, group):
        out[i] = y[i] / max(1.0, np.sqrt(np.square(y[i]).sum()) / max(radius, 1e-300))
    return out


def onto_box_plus_balls(y: Array, mix: float, group: str, weighted: bool) -> Array:
    """Nearest point a + b with |a_i| <= mix and ||b_g|| <= (1 - mix) c: one after the other, many times."""
    radius = (1 - mix) * c(y, group, weighted)
    b = onto_balls(rng(0).normal(size=y.shape), group, radius)
    for _ in range(3000):
        a = np.clip(y - b, -mix, mix)
        b = onto_balls(y - a, group, radius)
    return a + b


def onto_spectral_ball(y: Array) -> Array:
    """Singular values cut at 1, by the eigenvectors of Y^T Y."""
    m = y.reshape(len(y), -1)
    square, v = np.linalg.eigh(m.T @ m)
    cut: Array = m @ v @ np.diag(1 / np.sqrt(np.maximum(square, 1))) @ v.T
    return cut.reshape(y.shape)


def grouped(g: np.random.Generator) -> Settings:
    return {"group": str(g.choice(list(KEPT))), "weighted": bool(g.integers(2))}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One regulariser: random settings, its value, and for convex ones the nearest point that J* allows.

    ``conjugate(y, **settings)`` is the proximal map of J*, the same for every step as J* is an indicator or 0.
    ``domain`` maps any weight to one where J is finite.
    """

    settings: Callable[[np.random.Generator], Settings]
    value: Callable[..., float]
    rho: Callable[..., Array] | None = None  # of elementwise ones: J is its sum
    conjugate: Callable[..., Array] | None = None
    domain: Callable[[Array], Array] = lambda w: w
    indicator: bool = False

    @property
    def convex(self) -> bool:
        return self.conjugate is not None


def elementwise(rho: Callable[..., Array], **kwargs: Any) -> Case:
    return Case(
        settings=kwargs.pop("settings", lambda g: {}),
        value=lambda w, **s: float(rho(w, **s).sum()),
        rho=rho,
        **kwargs,
    )


CASES: dict[str, Case] = {
    "l1": elementwise(np.abs, conjugate=lambda y: np.clip(y, -1, 1)),
    "l0": elementwise(lambda w: (w != 0) * 1.0),
    "transformed_l1": elementwise(
        lambda w, a: (a + 1) * np.abs(w) / (a + np.abs(w)),
        settings=lambda g: {"a": log_uniform(g, 0.05, 20)},
    ),
    "l1_nonnegative": elementwise(
        lambda w: np.where(w < 0, np.inf, w),
        conjugate=lambda y: np.minimum(y, 1),
        domain=np.abs,
        indicator=True,
    ),
    "zero": elementwise(
        lambda w: np.where(w == 0, 0, np.inf), conjugate=lambda y: y, domain=np.zeros_like, indicator=True
    ),
    "group_lasso": Case(
        settings=grouped,
        value=group_value,
        conjugate=lambda y, group, weighted: onto_balls(y, group, c(y, group, weighted)),
    ),
    "group_l0": Case(
        settings=grouped,
        value=lambda w, group, weighted: c(w, group, weighted) * sum(w[i].any() for i in slices(w, group)),
    ),
    "sparse_group_lasso": Case(
        settings=lambda g: {**grouped(g), "mix": float(g.choice([0.0, 1.0, g.uniform(), g.uniform()]))},
        value=lambda w, mix, group, weighted: (
            mix * np.abs(w).sum() + (1 - mix) * group_value(w, group, weighted)
        ),
        conjugate=onto_box_plus_balls,
    ),
    "nuclear": Case(
        settings=lambda g: {},
        value=lambda w: float(np.linalg.norm(w.reshape(len(w), -1), "nuc")),
        conjugate=onto_spectral_ball,
    ),
}


def build(name: str, settings: Settings) -> Regulariser:
    return REGULARISERS[name](**settings)


def tensor(w: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(w))


def prox(j: Regulariser, w: Array, step: float) -> Array:
    return j.prox(tensor(w), step).numpy()


def with_zeros(g: np.random.Generator, w: Array) -> Array:
    """Some single weights, one filter and one input channel at 0; now and then everything."""
    w = w * (g.random(w.shape) > 0.2)
    w[g.integers(w.shape[0])] *= g.integers(2)
    w[:, g.integers(w.shape[1])] *= g.integers(2)
    return w * (g.random() > 0.05)

"""Senile reinforced random walks, perturbed and not, by simulation beside what is known; Dinh, thesis, ch. 2."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from attacks.base import check
from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.foundation.streams import derive
from robustbench_sparse.reporting.figures.style import look, panels
from robustbench_sparse.studies.base import Result, Study, check_all
from robustbench_sparse.studies.senile_exact import SUB_DIFFUSIVE, Limits, limits, mean_squares, survival
from robustbench_sparse.studies.senile_noise import PERTURBATIONS
from robustbench_sparse.studies.senile_walk import CHUNK, Counts, Walk, first_stays, walk

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AT_LEAST, ODD, STAYS = "P(tau >= n)", "P(tau odd, tau < n)", "E min(tau, n)"
SQUARE, SCALED, NU = "E |S_n|^2 / n", "log(n) / n E |S_n|^2", "nu"
ODD_EVER = "P(tau odd)"
_Z = 1.96  # of a moment's interval
_CURVE = 9  # values of delta at which nu is drawn
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SeRW(Study):
    """Random walks that tend to turn back on their last edge: how long they stay on it, how fast they spread.

    Simulated from the rule of transition, for every dimension, perturbation and delta:

    * P(tau >= n), tau how often the first edge is traversed before it is left (Wilson intervals); P(tau odd) and E tau
      as far as the walk is watched;
    * E |S_n|^2 / n, which tends to nu, the diffusion constant (2.1), theorems 2.2 to 2.6; of the walk in one dimension
      without perturbation log(n) / n E |S_n|^2, proposition 2.2.1.

    Intervals of moments are mean +- 1.96 standard errors.

    Exact values for the same n, and limits, stand beside. ``I`` is the deterministic perturbation (theorem 2.3),
    ``II:`` and the law of xi the one by independent and identically distributed noise (2.4; 2.6 (iii) for those
    without expectation), ``III:`` the one whose law depends on how often the edge was traversed (2.5).

    Args:
        dimensions: d of each walk, in [1, 6].
        perturbations: keys of ``PERTURBATIONS``.
        deltas: size of the perturbations, in [1e-6, 0.5].
        walkers: of each walk, in [2, 10^8]. They go in chunks, so their number takes time and no memory.
        steps: n at the end, in [2, 10^5].
    """

    published: ClassVar[str] = "Dinh, thesis, theorems 2.2 to 2.6 and proposition 2.2.1"

    dimensions: tuple[int, ...] = (1, 2)
    perturbations: tuple[str, ...] = (
        "none", "I", "II:exponential", "II:half_cauchy", "II:pareto", "II:log_tail", "III:lognormal",
    )  # fmt: skip
    deltas: tuple[float, ...] = (0.1, 0.01)
    walkers: int = 50_000
    steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_all(self.dimensions, "dimensions", "in [1, 6]", [1 <= d <= 6 for d in self.dimensions])
        known = [p in PERTURBATIONS for p in self.perturbations]
        check_all(self.perturbations, "perturbations", f"of {', '.join(PERTURBATIONS)}", known)
        check_all(self.deltas, "deltas", "in [1e-6, 0.5]", [1e-6 <= d <= 0.5 for d in self.deltas])
        check(2 <= self.walkers <= 10**8, "walkers", "an integer in [2, 10^8]", self.walkers)
        check(2 <= self.steps <= 10**5, "steps", "an integer in [2, 10^5]", self.steps)

    def laws(self) -> list[Walk]:
        """Every walk that is simulated; the one without perturbation has no delta."""
        return [
            Walk(dimension=d, perturbation=p, delta=delta)
            for d in self.dimensions
            for p in self.perturbations
            for delta in ((0.0,) if p == "none" else self.deltas)
        ]

    def times(self) -> list[int]:
        """2, 5, 10, 20, ... and the last step; after one step there is nothing to see."""
        steps = (2, 5, *(i * 10**k for k in range(1, 6) for i in (1, 2, 5)))
        return [*(n for n in steps if n < self.steps), self.steps]

    def run(self, show: Progress) -> SeRWResult:
        """Simulate every walk, and work out its exact values."""
        laws = self.laws()
        rows: list[Row] = []
        task = show.start("serw", len(laws) * self.walkers, f"walks of {self.steps} steps")
        for law in laws:
            counts = self._simulate(law, task.advance)
            rows += [{**self._about(law), **row} for row in rows_of(law, counts, self.times(), limits(law))]
            if law.dimension == 1 and law.noise is None:
                rows.append({**self._about(law), **self._sampled()})
        task.close()
        rows += self._curves()
        return SeRWResult(pd.DataFrame(rows), self)

    def _simulate(self, law: Walk, advance: Any) -> Counts:
        """All walkers of a law, chunk by chunk, each with a random stream of its own."""
        total: Counts | None = None
        for start in range(0, self.walkers, CHUNK):
            name = f"serw/{law.dimension}/{law.perturbation}/{law.delta!r}/{start}"
            random = np.random.default_rng(derive(self.seed, name))
            size = min(CHUNK, self.walkers - start)
            counts = walk(law, size, self.times(), random)
            if total is None:
                total = counts
            else:
                total.add(counts)
            advance(size, f"d = {law.dimension}, {law.perturbation}")
        assert total is not None
        return total

    def _sampled(self) -> Row:
        """P(tau odd), of draws of tau itself."""
        random = np.random.default_rng(derive(self.seed, "serw/tau"))
        odd = sum(
            int((first_stays(min(CHUNK, self.walkers - start), random) % 2).sum())
            for start in range(0, self.walkers, CHUNK)
        )
        exact = 2 * (1 - math.log(2))
        return {"quantity": ODD_EVER, **_share(odd, self.walkers), "exact": exact, "limit": exact}

    def _curves(self) -> Iterator[Row]:
        """nu over delta, not simulated."""
        grid = np.geomspace(min(self.deltas), max(self.deltas), _CURVE if len(self.deltas) > 1 else 1)
        for d in self.dimensions:
            for p in self.perturbations:
                for delta in (0.0,) if p == "none" else map(float, grid):
                    law = Walk(dimension=d, perturbation=p, delta=delta)
                    about = {**self._about(law), "walkers": 0}
                    yield {**about, "quantity": NU, "limit": limits(law).diffusion}

    def _about(self, law: Walk) -> Row:
        model, _, noise = law.perturbation.partition(":")
        return {
            "theorem": theorem_of(law),
            "model": model,
            "noise": noise,
            "dimension": law.dimension,
            "delta": law.delta,
            "seed": self.seed,
            "walkers": self.walkers,
        }


def theorem_of(law: Walk) -> str:
    """The thesis's statement about such a walk."""
    if law.perturbation == "none":
        return "proposition 2.2.1" if law.dimension == 1 else "theorem 2.2"
    model = law.perturbation.partition(":")[0]
    number = {"I": "2.3", "II": "2.4", "III": "2.5"}[model]
    return f"theorem {number if law.dimension == 1 else '2.6'}"


def rows_of(law: Walk, counts: Counts, times: Sequence[int], limit: Limits) -> Iterator[Row]:
    """What was counted, with intervals, exact values and limits; a row per quantity and time."""
    steps, w = times[-1], counts.walkers
    at_least, squares = survival(law, steps + 1), mean_squares(law, steps)
    i = np.arange(steps + 1)
    still = counts.traversed[::-1].cumsum()[::-1]  # walkers with tau >= i
    for n in times:
        yield {"quantity": AT_LEAST, "n": n, **_share(int(still[n]), w), "exact": at_least[n - 1]}
    left = (i % 2 == 1) & (i < steps)
    exactly = at_least[:-1] - at_least[1:]  # P(tau = i), i from 1
    yield {
        "quantity": ODD,
        "n": steps,
        **_share(int(counts.traversed[left].sum()), w),
        "exact": exactly[: steps - 1][::2].sum(),
        "limit": limit.odd,
    }
    yield {
        "quantity": STAYS,
        "n": steps,
        **_moment(float(i @ counts.traversed), float(i**2 @ counts.traversed), w),
        "exact": at_least[:steps].sum(),
        "limit": limit.stays,
    }
    for n, square, fourth in zip(times, counts.square, counts.fourth, strict=True):
        moment, exact = _moment(square, fourth, w), squares[n - 1]
        yield {
            "quantity": SQUARE, "n": n, **_scaled(moment, 1 / n), "exact": exact / n, "limit": limit.diffusion,
        }  # fmt: skip
        if law.dimension == 1 and law.noise is None:
            scale = math.log(n) / n
            yield {
                "quantity": SCALED, "n": n, **_scaled(moment, scale), "exact": exact * scale, "limit": SUB_DIFFUSIVE,
            }  # fmt: skip


def _share(successes: int, n: int) -> Row:
    low, high = wilson(successes, n)
    return {"simulated": successes / n, "low": low, "high": high}


def _moment(first: float, second: float, n: int) -> Row:
    """Mean and interval, from the sums of n values and of their squares."""
    mean = first / n
    half = _Z * math.sqrt(max(second / n - mean * mean, 0) / (n - 1))
    return {"simulated": mean, "low": mean - half, "high": mean + half}


def _scaled(row: Row, scale: float) -> Row:
    return {key: scale * value for key, value in row.items()}


class SeRWResult(Result):
    """Simulated beside exact."""

    def __init__(self, table: pd.DataFrame, study: SeRW) -> None:
        self._table, self._study = table, study

    @property
    def table(self) -> pd.DataFrame:
        """A row per walk, quantity and n.

        Columns: ``theorem model noise dimension delta seed walkers quantity n``; ``simulated`` with its 95 % interval
        ``low high``; ``exact``, the value for this n; ``limit``, that for n to infinity. Rows ``nu`` are not simulated.
        """
        first = ["theorem", "model", "noise", "dimension", "delta", "seed", "walkers", "quantity", "n"]
        columns = [*first, "simulated", "low", "high", "exact", "limit"]
        out: pd.DataFrame = self._table[columns].astype({"n": "Int64"})
        return out

    def lines(self) -> list[str]:
        """How many intervals hold the exact value, and the diffusion constants."""
        t = self._table
        asked = t[t["simulated"].notna()]
        held = (asked["low"] <= asked["exact"]) & (asked["exact"] <= asked["high"])
        out = [f"{int(held.sum())} of {len(asked)} intervals of 95 % hold the exact value"]
        last = t[(t["quantity"] == SQUARE) & (t["n"] == self._study.steps)]
        for _, r in last.iterrows():
            law = f"d = {r['dimension']}, {r['model']}{':' * bool(r['noise'])}{r['noise']}, delta = {r['delta']:g}"
            out.append(
                f"{law}: E |S_n|^2 / n = {r['simulated']:.4f} ({r['low']:.4f} to {r['high']:.4f}), "
                f"exact {r['exact']:.4f}, limit {r['limit']:.4f}"
            )
        return out

    def draw(self, figure: Figure) -> None:
        """Three panels per dimension: how long walkers stay, how far they get, and nu over delta."""
        study = self._study
        axes = panels(figure, 3 * len(study.dimensions), (4.6, 3.6), columns=3)
        for row, d in enumerate(study.dimensions):
            here = self._table[self._table["dimension"] == d]
            stay, spread, constant = axes[3 * row : 3 * row + 3]
            delta = min(study.deltas)
            for number, p in enumerate(study.perturbations):
                model, _, noise = p.partition(":")
                of_law = here[(here["model"] == model) & (here["noise"] == noise)]
                shown = of_law[of_law["delta"].isin([0.0, delta])]
                _points(stay, shown[(shown["quantity"] == AT_LEAST) & (shown["simulated"] > 0)], number, p)
                _points(spread, shown[shown["quantity"] == SQUARE], number, p)
                _constants(constant, of_law, study.steps, number, p)
            stay.set(
                xscale="log", yscale="log", xlabel="n", ylabel="P(tau >= n)", ylim=(0.3 / study.walkers, 1.5)
            )
            spread.set(xscale="log", xlabel="n", ylabel="E |S_n|^2 / n")
            constant.set(xscale="log", xlabel="delta", ylabel=f"nu (line), n = {study.steps} (points)")
            for ax in (stay, spread):
                ax.set_title(f"d = {d}, delta = {delta:g}", fontsize="medium")
            constant.set_title(f"d = {d}", fontsize="medium")
            if row == 0:
                stay.legend(fontsize="x-small")


def _points(ax: Axes, rows: pd.DataFrame, number: int, label: str) -> None:
    """Simulated with intervals, over the exact values as a line; the limit as a thin one."""
    colour = look(number)["color"]
    n = rows["n"].astype(float)
    ax.plot(n, rows["exact"], color=colour, linewidth=1)
    off = [rows["simulated"] - rows["low"], rows["high"] - rows["simulated"]]
    ax.errorbar(n, rows["simulated"], yerr=off, fmt="o", markersize=3, color=colour, label=label)
    limit = rows["limit"].dropna()
    if len(limit) and limit.iloc[0] > 0:
        ax.axhline(limit.iloc[0], color=colour, linewidth=0.6, linestyle=":")


def _constants(ax: Axes, rows: pd.DataFrame, steps: int, number: int, label: str) -> None:
    colour = look(number)["color"]
    curve = rows[rows["quantity"] == NU].sort_values("delta")
    last = rows[(rows["quantity"] == SQUARE) & (rows["n"] == steps)]
    if label == "none":
        ax.axhline(curve["limit"].iloc[0], color=colour, linewidth=0.8, linestyle="--")
        return
    ax.plot(curve["delta"], curve["limit"], color=colour, linewidth=1)
    off = [last["simulated"] - last["low"], last["high"] - last["simulated"]]
    ax.errorbar(last["delta"], last["simulated"], yerr=off, fmt="o", markersize=3, color=colour)

"""Accuracy against the radius: rows of one or several benchmarks in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from robustbench_sparse.foundation.errors import UserError, near
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.foundation.intervals import wilson
from robustbench_sparse.reporting.curve import curve
from robustbench_sparse.reporting.figures.base import Drawing, check
from robustbench_sparse.reporting.figures.finding import as_text, benchmark_of, by_row
from robustbench_sparse.reporting.figures.style import look, panels
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.manifest import read_manifest
from robustbench_sparse.runs.outcomes import verdicts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 61  # radii of a curve
NORMS = {"linf": "l_inf", "l2": "l_2"}


@dataclass(frozen=True, kw_only=True)
class AgainstEps(Drawing):
    """Accuracy against the radius, a line a row, with its 95 % band.

    An attack that seeks the smallest perturbation gives all radii, counted as ``curve`` counts them. Attacks that stay
    inside their balls give the radii that they were run at, and an image counts at each as in the worst case of those
    of this radius or a smaller one; 0 is the clean images. Of several seeds the line is their mean, the band
    Wilson's of a mean seed, and every seed has a thin line of its own.

    Args:
        attack: labels: one that seeks the smallest perturbation, or two or more at several radii in one norm. By
            default the first of the former that all runs have, else all of the latter.
        zoom: the largest radius drawn.
    """

    published: ClassVar[str] = "none"
    most: ClassVar[int] = 84
    attack: tuple[str, ...] = ()
    zoom: float | None = None

    def __post_init__(self) -> None:
        check(self.zoom is None or 0 < self.zoom < math.inf, "zoom", "a radius above 0", self.zoom)

    def draw(self, figure: Figure, runs: Sequence[RunFolder]) -> None:
        """One panel with a line for every row."""
        threats = [_threats(run) for run in runs]
        chosen = self.attack or _default(runs, threats)
        for run, there in zip(runs, threats, strict=True):
            for label in chosen:
                if label not in there:
                    known = ", ".join(there) or "none with a radius"
                    raise UserError(
                        f"{run.run_id}: no attack {label!r}{near(label, there)}; there are: {known}"
                    )
        norms = sorted({there[label]["norm"] for there in threats for label in chosen})
        if len(norms) > 1:
            raise UserError(
                f"--attack: expected attacks of one norm, got {', '.join(norms)}; name some of them"
            )
        found = self._curves(runs, threats, chosen)
        (ax,) = panels(figure, 1, (5.2, 3.6))
        self._lines(ax, found, smooth=len(chosen) == 1)
        ax.set(
            xlabel=f"eps ({NORMS[norms[0]]})",
            ylabel="accuracy, percent",
            ylim=(0, 100),
            title=as_text(", ".join(chosen)),
        )
        ax.set_xlim(left=0, right=self.zoom)
        ax.legend(fontsize="small")

    def _curves(
        self, runs: Sequence[RunFolder], threats: Sequence[dict[str, Any]], chosen: Sequence[str]
    ) -> dict[str, pd.DataFrame]:
        """Of every row its means over the seeds, at radii that all have in common."""
        if len(chosen) == 1:
            # The default radii of each go to 1.5 times its largest distance.
            farthest = self.zoom or 0.75 * max(float(curve(run.path, chosen[0])["eps"].max()) for run in runs)
            radii = [farthest * i / (POINTS - 1) for i in range(POINTS)]
            tables = {id(run): curve(run.path, chosen[0], radii) for run in runs}
        else:
            tables = {
                id(run): steps(run, {label: float(there[label]["eps"]) for label in chosen})
                for run, there in zip(runs, threats, strict=True)
            }
        return {name: _mean([tables[id(run)] for run in group]) for name, group in by_row(runs).items()}

    def _lines(self, ax: Axes, found: dict[str, pd.DataFrame], smooth: bool) -> None:
        for number, (name, table) in enumerate(found.items()):
            there = look(number)
            ax.fill_between(
                table["eps"], table["lo"], table["hi"], color=there["color"], alpha=0.2, linewidth=0
            )
            for seed in (c for c in table.columns if c.startswith("seed ")):
                ax.plot(table["eps"], table[seed], color=there["color"], alpha=0.5, linewidth=0.5)
            ax.plot(
                table["eps"],
                table["accuracy"],
                marker=None if smooth else "o",
                markersize=4,
                label=name,
                **there,
            )


def steps(run: RunFolder, radii: dict[str, float]) -> pd.DataFrame:
    """Accuracy at the radii that a run's attacks were run at, and on clean images at 0.

    Args:
        run: a judged run.
        radii: attack's label -> its radius; two different ones at least.

    Returns:
        One row per radius, rising: ``eps``; ``accuracy``, ``lo``, ``hi``, percent with Wilson's 95 % interval; ``n``.

    Raises:
        UserError: fewer than two radii, or an attack that left a gap.
    """
    if len(set(radii.values())) < 2:
        (only,) = set(radii.values()) or {0.0}
        raise UserError(
            f"--attack: all of them at eps = {only:g}; expected two radii at least, or one attack that seeks the "
            "smallest perturbation, such as cw or fab"
        )
    found = verdicts(run.path, read_manifest(benchmark_of(run)))
    missing = [label for label in radii if label not in found.columns]
    if missing:
        raise UserError(f"{run.run_id}: {'; '.join(found.gaps) or f'{missing[0]}: not judged'}")
    standing = found.columns["clean"]
    rows = []
    for radius in [0.0, *sorted(set(radii.values()))]:
        for label in (name for name, eps in radii.items() if eps == radius):
            standing = standing.where(standing <= found.columns[label], found.columns[label])
        total, n = math.fsum(standing), len(standing)
        low, high = wilson(total, n)
        rows.append({"eps": radius, "accuracy": 100 * total / n, "lo": 100 * low, "hi": 100 * high, "n": n})
    out: pd.DataFrame = pd.DataFrame(rows)
    return out


def _threats(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Of every attack of a run whose outcome says so: norm and radius, and whether its distances make a curve."""
    found = {}
    for label in read_manifest(benchmark_of(run))["attacks"]:
        path = run.path / names.account(label)
        about = read_json(path) if path.is_file() else {}
        threat = about.get("key", {}).get("attack", {}).get("threat")
        if threat and threat.get("norm") in NORMS:
            seeks = not about.get("bounded", True) and about.get("minimum_norm", True)
            found[label] = {"norm": threat["norm"], "eps": float(threat["eps"]), "seeks": seeks}
    return found


def _default(runs: Sequence[RunFolder], threats: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """What is drawn when no attack is named."""
    shared = [label for label in threats[0] if all(label in there for there in threats)]
    for label in shared:
        if all(there[label]["seeks"] for there in threats):
            return (label,)
    bounded = [label for label in shared if not any(there[label]["seeks"] for there in threats)]
    for norm in NORMS:
        within = [label for label in bounded if all(there[label]["norm"] == norm for there in threats)]
        if len({threats[0][label]["eps"] for label in within}) > 1:
            return tuple(within)
    raise UserError(
        f"plot eps: {'these runs have' if len(runs) > 1 else 'this run has'} neither an attack in common that seeks "
        "the smallest perturbation (cw, fab) nor attacks at several radii in one norm"
    )


def _mean(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean over the seeds of a row, beside each seed's own; radii that not all of them have are left out."""
    seeds = [table.set_index("eps") for table in tables]
    shared = [eps for eps in seeds[0].index if all(eps in seed.index for seed in seeds)]
    means: pd.DataFrame = sum(seed.loc[shared, ["accuracy", "lo", "hi"]] for seed in seeds) / len(seeds)
    if len(seeds) > 1:
        means = means.assign(**{f"seed {i}": seed.loc[shared, "accuracy"] for i, seed in enumerate(seeds)})
    out: pd.DataFrame = means.reset_index()
    return out

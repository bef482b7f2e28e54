"""CLIP on a regression in one dimension: the network gets smoother as lambda grows.

Roith, thesis, 1.2.3 "Qualitative Example"; Bungert, Raab, Roith, Schwinn, Tenbrinck 2021, figure 2,
https://arxiv.org/abs/2103.12531. Neither says which function, noise and network they took; ours are settings.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import Threat, check
from defenses import CLIP, Step
from robustbench_sparse.foundation.progress import Progress
from robustbench_sparse.foundation.streams import Streams, derive
from robustbench_sparse.reporting.figures.style import look, panels
from robustbench_sparse.studies.base import Array, Result, Study, check_all

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID = 4001  # points of [0, 1] on which a network is looked at
_RENEW = 200  # steps after which the pairs are drawn anew


@dataclass(frozen=True, kw_only=True)
class CLIP1D(Study):
    """Noisy samples of sin(2 pi x), fitted by a small network with CLIP's penalty for several lambda.

    Minimises mean squared error + lambda * max over pairs of |f(x) - f(x')| / |x - x'|, the pairs ascending beside the
    training: the project's own :class:`defenses.CLIP`, on inputs in [0, 1].

    Args:
        lams: values of lambda, >= 0.
        seeds: so many networks for each: seed, seed + 1, ...; each has samples, start and pairs of its own.
        samples: of the function, at uniformly drawn x in [0, 1], in [2, 10000].
        noise: standard deviation of what is added to them, >= 0.
        width: neurons of each of the two hidden layers, >= 1.
        steps: of Adam, each on all samples, >= 1.
        lr: Adam's learning rate at the start, > 0; it falls to 0 along a half cosine.
        pairs: points x and x' for the Lipschitz constant, >= 1.
    """

    published: ClassVar[str] = "Roith, thesis, 1.2.3; CLIP (arXiv:2103.12531), figure 2"

    lams: tuple[float, ...] = (0.0, 0.003, 0.01, 0.03, 0.1)
    seeds: int = 3
    samples: int = 30
    noise: float = 0.3
    width: int = 64
    steps: int = 1500
    lr: float = 0.01
    pairs: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_all(self.lams, "lams", "numbers in [0, 10^6]", [0 <= lam <= 1e6 for lam in self.lams])
        check(1 <= self.seeds <= 1000, "seeds", "an integer in [1, 1000]", self.seeds)
        check(2 <= self.samples <= 10_000, "samples", "an integer in [2, 10000]", self.samples)
        check(0 <= self.noise < math.inf, "noise", "a finite number >= 0", self.noise)
        check(1 <= self.width <= 10_000, "width", "an integer in [1, 10000]", self.width)
        check(self.steps >= 1, "steps", "an integer >= 1", self.steps)
        check(0 < self.lr < math.inf, "lr", "a finite number > 0", self.lr)
        check(1 <= self.pairs <= 100_000, "pairs", "an integer in [1, 100000]", self.pairs)

    def run(self, show: Progress) -> CLIP1DResult:
        """Train every network and look at it on the grid."""
        points = grid()
        rows, curves = [], {}
        task = show.start("clip_1d", len(self.lams) * self.seeds * self.steps, "steps")
        for seed in range(self.seed, self.seed + self.seeds):
            x, y = self.data(seed)
            for lam in self.lams:
                model, seen = self.train(seed, lam, task)
                values = outputs(model, points)
                rows.append({
                    "lambda": lam,
                    "seed": seed,
                    "train_mse": float(np.square(outputs(model, x) - y.numpy()[:, 0]).mean()),
                    "truth_mse": float(np.square(values - truth(points).numpy()[:, 0]).mean()),
                    "lipschitz": steepest(values),
                    "lipschitz_pairs": seen,
                })  # fmt: skip
                curves[lam, seed] = values
        task.close()
        return CLIP1DResult(pd.DataFrame(rows), curves, self)

    def data(self, seed: int) -> tuple[Tensor, Tensor]:
        """Sampled x in [0, 1], in order, and noisy values; both (samples, 1)."""
        random = torch.Generator().manual_seed(derive(seed, "clip_1d/data"))
        x = torch.rand(self.samples, 1, generator=random).sort(dim=0).values
        return x, truth(x) + self.noise * torch.randn(self.samples, 1, generator=random)

    def train(self, seed: int, lam: float, task: Any) -> tuple[nn.Module, float]:
        """A network trained to the end, and the largest quotient of its pairs, nan for lambda 0.

        Networks of a seed have the same start.
        """
        x, y = self.data(seed)
        streams = Streams(seed)
        model = network(self.width, streams.get("clip_1d/init"))
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)

        def draw(split: str, count: int, generator: torch.Generator) -> Tensor:
            return x[torch.randint(len(x), (count,), generator=generator)]

        clip = CLIP(lam=lam, pairs=self.pairs, source="train", box=True, renew_every=_RENEW, step_size=1e-3)
        step = Step(model, optimizer, Threat(), streams.get("clip_1d/pairs"), draw)
        clip.begin(step)
        for i in range(self.steps):
            loss = F.mse_loss(model(x), y)
            penalty = clip.penalty(step)
            optimizer.zero_grad()
            (loss if penalty is None else loss + penalty).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if (i + 1) % 100 == 0 or i + 1 == self.steps:
                task.advance(i % 100 + 1, f"seed {seed}, lambda = {lam:g}")
        return model, float(clip.memory.get("lipschitz", math.nan))


def truth(x: Tensor) -> Tensor:
    """sin(2 pi x), whose Lipschitz constant is 2 pi."""
    return torch.sin(2 * math.pi * x)


def grid() -> Tensor:
    """``GRID`` points of [0, 1], (GRID, 1), in float64."""
    return torch.linspace(0, 1, GRID, dtype=torch.float64)[:, None]


def network(width: int, random: torch.Generator) -> nn.Sequential:
    """1 - width - width - 1 with ReLU; weights and biases uniform in +- 1 / sqrt(inputs), kinks of the first in [0, 1].

    What is left to chance by torch's own start are the kinks: it puts half of them outside of [0, 1].
    """
    first, second, third = nn.Linear(1, width), nn.Linear(width, width), nn.Linear(width, 1)
    with torch.no_grad():
        # Of both signs, and steep enough for a period of the sine.
        first.weight.copy_(4 * (2 * torch.rand(width, 1, generator=random) - 1))
        first.bias.copy_(-first.weight[:, 0] * torch.rand(width, generator=random))
        for layer in (second, third):
            bound = 1 / math.sqrt(width)
            for parameter in (layer.weight, layer.bias):
                parameter.copy_(bound * (2 * torch.rand(parameter.shape, generator=random) - 1))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Array:
    """f(x) computed in float64, so that differences on a fine grid are no rounding; (N, 1) -> (N,)."""
    values: Array = copy.deepcopy(model).double()(x.double())[:, 0].numpy()
    return values


def steepest(values: Array) -> float:
    """The Lipschitz constant of a function on a grid of [0, 1]: the largest slope between neighbours; (N,)."""
    return float(np.abs(np.diff(values)).max() * (len(values) - 1))


class CLIP1DResult(Result):
    """A row per network, and its values on the grid."""

    def __init__(self, table: pd.DataFrame, curves: dict[tuple[float, int], Array], study: CLIP1D) -> None:
        self._table, self._curves, self._study = table, curves, study

    @property
    def table(self) -> pd.DataFrame:
        """A row per network.

        Columns: ``lambda seed``; ``train_mse`` to the noisy samples; ``truth_mse`` and ``lipschitz`` on the grid;
        ``lipschitz_pairs``, what the pairs had found at the last step, at most the network's constant.
        """
        return self._table

    def lines(self) -> list[str]:
        """Means over the seeds."""
        means = self._table.drop(columns="seed").groupby("lambda", sort=False).mean()
        return [
            f"lambda = {lam:g}: mse {r['train_mse']:.4f} on the samples, {r['truth_mse']:.4f} to the truth, "
            f"Lipschitz constant {r['lipschitz']:.2f} (mean of {self._study.seeds})"
            for lam, r in means.iterrows()
        ]

    def draw(self, figure: Figure) -> None:
        """The first seed's networks over its samples; loss, error and Lipschitz constant over lambda, of all seeds."""
        fits, errors, slopes = panels(figure, 3, (5.4, 4.2), columns=3)
        points, seed = grid(), self._study.seed
        x, y = self._study.data(seed)
        fits.plot(x, y, "o", color="black", markersize=3, label="samples")
        fits.plot(points, truth(points), color="black", linestyle="--", linewidth=1, label="truth")
        for number, lam in enumerate(self._study.lams):
            fits.plot(points, self._curves[lam, seed], label=f"lambda = {lam:g}", **look(number))
        fits.set(xlabel="x", ylabel="f(x)", title=f"seed {seed}")
        fits.legend(fontsize="x-small")
        place = {lam: i for i, lam in enumerate(sorted(self._study.lams))}
        for ax, columns in ((errors, ("train_mse", "truth_mse")), (slopes, ("lipschitz",))):
            for number, column in enumerate(columns):
                at = self._table["lambda"].map(place)
                ax.plot(at, self._table[column], "o", markersize=4, color=look(number)["color"], label=column)
            ax.set_xticks(list(place.values()), [f"{lam:g}" for lam in place])
            ax.set(xlabel="lambda", yscale="log")
            ax.legend(fontsize="small")
        slopes.axhline(2 * math.pi, color="black", linestyle="--", linewidth=1)

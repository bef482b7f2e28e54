"""``python -m benchmarks.bregman_starts RESULTS``: how far each network's start is seen in what it withstands.

For every finished run of a benchmark: how steep the margin is, in how many of the steepest places no training image
ever had light, and what is withstood once the first layer's weights there are zero. That leaves every training image's
logits as they are. Writes a CSV, and a figure with one point a run.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from attacks import PGD
from attacks.base import SampleRandom, Threat
from attacks.losses import margin
from benchmarks.images import find_root
from defenses.base import prunable
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.files import write_text
from robustbench_sparse.foundation.texts import to_csv
from robustbench_sparse.reporting.figures.style import COLOURS, panels
from robustbench_sparse.reporting.plots import new_figure, save
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.rebuild import stored_plan
from robustbench_sparse.runs.targets import data_of, resolve_target

IMAGES, BATCH = 1000, 250
STEPS = 20
RARE = 0.05  # a pixel lit in fewer of the training images is a dark one


def main(arguments: list[str] | None = None) -> int:
    """Look at all runs, print the means over seeds, write the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bregman_starts", description=__doc__)
    parser.add_argument("results", type=Path, help="a benchmark's folder")
    parser.add_argument("--data-root", type=Path, help="folder of the data sets (default: RBS_DATA)")
    parser.add_argument("--out", type=Path, help="CSV (default: starts.csv in the benchmark's folder)")
    parser.add_argument("--figure", type=Path, help="PNG, SVG or PDF beside it")
    options = parser.parse_args(arguments)
    places = [RunFolder.at(path) for path in sorted((options.results / names.RUNS).iterdir())]
    rows = [_row(place, find_root(options.data_root)) for place in places if place.complete()]
    table = pd.DataFrame(rows)
    out = options.out or options.results / "starts.csv"
    write_text(out, to_csv(table, "%.4f"))
    numbers = table.drop(columns=["seed"]).groupby("run").mean(numeric_only=True)
    print(numbers.sort_values("robust").round(2).to_string())
    if options.figure is not None:
        figure = new_figure(options.figure, "--figure")
        _draw(figure, table)
        save(figure, options.figure, "--figure")
    return 0


def _row(place: RunFolder, root: Path | None) -> dict[str, Any]:
    target = resolve_target(place.path, data_root=root)
    dataset = data_of(target, data_root=root)
    assert dataset is not None
    assert target.norm == "linf"
    assert target.eps is not None
    config = stored_plan(place.path).config
    data = PreparedData(
        dataset, validation=config.validation, train_limit=config.train_limit, test_limit=IMAGES
    )
    x, y = data.gather("test", torch.arange(data.count("test")))
    light = lit(data)
    steep = steepness(target.model, x, y)
    bare = without(target.model, light < RARE)
    threat = Threat(norm="linf", eps=target.eps)
    return {
        "run": place.label,
        "seed": place.seed,
        "images": len(y),
        "clean": _correct(target.model, x, y),
        "robust": _withstood(target.model, x, y, threat),
        "margin": float((-margin(target.model(x), y)).detach().median()),
        "steepness": float(steep.sum(1).mean()),
        "dark_share": float((steep[:, light < RARE].sum(1) / steep.sum(1).clamp_min(1e-12)).mean()),
        "never_lit_share": float((steep[:, light == 0].sum(1) / steep.sum(1).clamp_min(1e-12)).mean()),
        "clean_without_dark": _correct(bare, x, y),
        "robust_without_dark": _withstood(bare, x, y, threat),
    }


def lit(data: PreparedData) -> Tensor:
    """In which share of the training images each value of an image is not zero, (C S S,)."""
    images = sum((x > 0).flatten(1).sum(0) for x, _, _ in data.ordered("train", 1000))
    assert isinstance(images, Tensor)
    return images / data.count("train")


def steepness(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Sizes of the margin's derivatives, (N, C S S); their sum is its slope for the l_inf norm."""
    parts = []
    for start in range(0, len(y), BATCH):
        point, label = x[start : start + BATCH].clone().requires_grad_(), y[start : start + BATCH]
        (g,) = torch.autograd.grad(margin(model(point), label).sum(), point)
        parts.append(g.flatten(1).abs())
    return torch.cat(parts)


@torch.no_grad()
def without(model: nn.Module, values: Tensor) -> nn.Module:
    """A copy whose first layer has no weights at these values of the image; only a linear layer sees them singly."""
    bare = copy.deepcopy(model)
    first = next(iter(prunable(bare).values()))
    if first.dim() == 2 and first.shape[1] == len(values):
        first[:, values] = 0
    return bare


@torch.no_grad()
def _correct(model: nn.Module, x: Tensor, y: Tensor) -> float:
    logits = torch.cat([model(x[start : start + BATCH]) for start in range(0, len(y), BATCH)])
    return 100 * float((logits.argmax(1) == y).float().mean())


def _withstood(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> float:
    attack = PGD(steps=STEPS, step_size=threat.eps / 5, loss="margin")
    found = []
    for start in range(0, len(y), BATCH):
        some = slice(start, start + BATCH)
        random = SampleRandom.for_images(0, "starts", range(start, start + len(y[some])))
        found.append(threat.project(attack(model, x[some], y[some], threat, random), x[some]))
    return _correct(model, torch.cat(found), y)


def _draw(figure: Any, table: pd.DataFrame) -> None:
    """Withstood against steepness, and how it changes without the weights of dark pixels."""
    left, right = panels(figure, 2, (5.2, 4.2), columns=2)
    order = list(dict.fromkeys(table["run"]))
    for number, run in enumerate(order):
        rows, colour = table[table["run"] == run], COLOURS[number % len(COLOURS)]
        shape = "os^Dv"[number // len(COLOURS)]
        left.scatter(rows["steepness"], rows["robust"], color=colour, marker=shape, label=run, s=28)
        means = rows[["robust", "robust_without_dark"]].mean()
        right.plot([0, 1], means, color=colour, marker=shape, label=run)
    left.set_xlabel("slope of the margin for the $l_\\infty$ norm")
    left.set_ylabel("withstood, percent")
    left.legend(fontsize=7)
    right.set_xticks([0, 1], ["as trained", f"without weights of pixels\nlit in < {RARE:.0%} of images"])
    right.set_xlim(-0.2, 1.2)
    right.set_ylabel("withstood, percent (mean over seeds)")


if __name__ == "__main__":
    sys.exit(main())

"""Images clean, degraded, restored; BREG-I (arXiv:2105.04319), figure 5, and BREG-II (arXiv:2106.02479), figure 1."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustbench_sparse.config.plan import Plan, task_record
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.loading import load_dataset, prepare_data
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.figures.base import Drawing, check
from robustbench_sparse.reporting.figures.finding import titles
from robustbench_sparse.reporting.figures.networks import Array, passed
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.outcomes import read_outcome
from robustbench_sparse.runs.rebuild import stored_plan
from robustbench_sparse.runs.targets import images_of
from robustbench_sparse.tasks.inputs import fixed_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 8  # images, where none are named
_BATCH = 512


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of images.

    Attributes:
        title: what it shows.
        images: (n, C, H, W).
        below: what stands under each; empty for nothing.
    """

    title: str
    images: Tensor
    below: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Restored(Drawing):
    """Test images clean, degraded as they were judged, and restored by each network, with PSNR and SSIM below.

    What stands below restored images is that of the run's stored outcomes. Runs of several tasks, such as denoising
    and deblurring, stand below each other.

    Args:
        images: positions in the test set; by default the first eight that were judged.
        data_root: folder of the data sets.
    """

    published: ClassVar[str] = (
        "Bungert et al. 2022 (BREG-I), figure 5; Bungert et al. 2021 (BREG-II), figure 1"
    )
    most: ClassVar[int] = 12

    images: tuple[int, ...] = ()
    data_root: str | None = None

    def __post_init__(self) -> None:
        fine = len(self.images) <= 40 and all(i >= 0 for i in self.images)
        check(fine, "images", "at most 40 numbers >= 0", self.images)

    def draw(self, figure: Figure, runs: Sequence[RunFolder]) -> None:
        """A line of clean images, and for each task one of degraded images and one per run."""
        plans = [stored_plan(run.path) for run in runs]
        for run, plan in zip(runs, plans, strict=True):
            if plan.task.key != "restore":
                raise UserError(
                    f"{run.path}: its network classifies: take a run whose config has task: restore"
                )
            if (plan.dataset_name, plan.dataset) != (plans[0].dataset_name, plans[0].dataset):
                raise UserError(f"{run.path}: of another data set than {runs[0].path}: draw them apart")
        dataset = load_dataset(plans[0].dataset, self.data_root and Path(self.data_root))
        outcomes = [_outcomes(run) for run in runs]
        numbers = list(self.images) or [int(i) for i in outcomes[0].index[:_COLUMNS]]
        for run, outcome in zip(runs, outcomes, strict=True):
            missing = [i for i in numbers if i not in outcome.index]
            if missing:
                raise UserError(f"--images {missing[0]}: {run.path.name} was not judged on this image")
        lines = _lines(runs, plans, dataset, outcomes, numbers)
        _draw(figure, lines, numbers)


def _outcomes(run: RunFolder) -> pd.DataFrame:
    """PSNR and SSIM of every image on its degraded input, by the image's position in the test set."""
    columns = ("index", "psnr", "mse", "ssim", "status")
    table, problem, _ = read_outcome(run.path, names.CLEAN, columns, None, math.inf)
    if table is None:
        raise UserError(f"{run.path}: not judged on the degraded images: {problem}")
    by_image: pd.DataFrame = table.set_index("index")
    return by_image


def _lines(
    runs: Sequence[RunFolder],
    plans: Sequence[Plan],
    dataset: Dataset,
    outcomes: Sequence[pd.DataFrame],
    numbers: Sequence[int],
) -> list[_Line]:
    lines: list[_Line] = []
    tasks = [json.dumps(task_record(plan.task), sort_keys=True) for plan in plans]
    called = titles(runs)
    for task in dict.fromkeys(tasks):
        members = [i for i, other in enumerate(tasks) if other == task]
        inputs, targets = pairs_of(plans[members[0]], dataset, numbers)
        if not lines:
            lines.append(_Line(title="clean", images=targets))
        mse = (inputs.double() - targets.double()).square().flatten(1).mean(1)
        below = [_decibels(float(e)) for e in mse]
        lines.append(_Line(title="degraded", images=inputs, below=below))
        for i in members:
            network = runs[i].network(**images_of(dataset))
            outputs = passed(network, inputs, runs[i].seed)
            rows = [outcomes[i].loc[number] for number in numbers]
            below = [_quality(float(row["psnr"]), float(row["ssim"])) for row in rows]
            lines.append(_Line(title=called[i], images=outputs, below=below))
    return lines


def pairs_of(plan: Plan, dataset: Dataset, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Test images as every run of a task is judged on them: inputs and clean images, (n, C, H, W) each.

    Args:
        plan: says how they are degraded.
        dataset: its data set.
        numbers: positions in the test set.
    """
    if max(numbers) >= len(dataset.test_x):
        raise UserError(f"--images {max(numbers)}: expected a number below {len(dataset.test_x)}")
    data = prepare_data(dataset, torch.device("cpu"), train_limit=1)
    wanted = set(numbers)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for x, y, index in fixed_pairs(plan.task, data, "test", _BATCH):
        found |= {n: (x[i], y[i]) for i, n in enumerate(index.tolist()) if n in wanted}
        if len(found) == len(wanted):
            break
    inputs, targets = zip(*(found[n] for n in numbers), strict=True)
    return torch.stack(inputs), torch.stack(targets)


def _draw(figure: Figure, lines: Sequence[_Line], numbers: Sequence[int]) -> None:
    figure.set_size_inches(1.6 + 1.35 * len(numbers), 1.7 * len(lines) + 0.5)
    axes = figure.subplots(len(lines), len(numbers), squeeze=False)
    for row, line in zip(axes, lines, strict=True):
        for i, (ax, image) in enumerate(zip(row, line.images, strict=True)):
            _show(ax, image.clamp(0, 1).permute(1, 2, 0).squeeze(2).numpy())
            if line.below:
                ax.set_xlabel(line.below[i], fontsize="x-small", labelpad=2)
        row[0].set_ylabel(line.title, fontsize="small")
    for ax, number in zip(axes[0], numbers, strict=True):
        ax.set_title(f"image {number}", fontsize="x-small")
    figure.supxlabel("below: PSNR in dB, and SSIM of restored images", fontsize="x-small")


def _show(ax: Axes, image: Array) -> None:
    ax.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])


def _quality(psnr: float, ssim: float) -> str:
    """PSNR, and SSIM where the image is large enough for its window."""
    return f"{psnr:.1f} dB" if math.isnan(ssim) else f"{psnr:.1f} dB, {ssim:.2f}"


def _decibels(mse: float) -> str:
    return f"{-10 * math.log10(mse):.1f} dB" if mse > 0 else "as clean"

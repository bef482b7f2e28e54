"""Active neurons: box plots over seeds, and the course over epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.figures.neurons import Neurons
from robustbench_sparse.reporting.figures.widths import Widths, widths_of
from robustbench_sparse.runs.folder import RunFolder
from tests.helpers.fabricated_runs import fabricated, plan_of


def active(*widths: int, whole: int = 8) -> dict[str, torch.Tensor]:
    """Linear layers with so many rows that are not zero, the first one of six inputs."""
    state = {}
    for number, width in enumerate(widths):
        weight = torch.zeros(whole, 6 if number == 0 else whole)
        weight[:width, -1] = 0.1
        state[f"{number}.weight"] = weight
    return state


def seeds(folder: Path, *widths: tuple[int, ...]) -> list[RunFolder]:
    plan = plan_of("auto")
    return [fabricated(folder, active(*w), plan=plan, seed=s) for s, w in enumerate(widths)]


def test_boxes_are_quartiles_over_the_seeds_with_the_input_first(tmp_path: Path) -> None:
    runs = seeds(tmp_path, (1, 5), (2, 5), (4, 6), (7, 6), (8, 8))
    figure = Figure()
    Widths().draw(figure, runs)
    (ax,) = figure.axes
    medians = [line.get_ydata()[0] for line in ax.lines if line.get_linewidth() == 2]
    assert medians == [6, 4, 6]
    boxes = [patch.get_path().get_extents() for patch in ax.patches]
    assert [(box.y0, box.y1) for box in boxes] == [(6, 6), (2, 7), (5, 6)]
    ends = [line.get_ydata() for line in ax.lines if line.get_linewidth() != 2 and len(line.get_ydata())]
    assert min(y.min() for y in ends) == 1
    assert max(y.max() for y in ends) == 8
    assert ax.get_title() == "auto (5 runs)"
    (whole,) = ax.collections
    assert [segment[0, 1] for segment in whole.get_segments()] == [6, 8, 8]


def test_rows_of_a_benchmark_have_panels(tmp_path: Path) -> None:
    other = fabricated(tmp_path, active(3, 3), plan=plan_of("dense"))
    figure = Figure()
    Widths().draw(figure, [*seeds(tmp_path, (1, 2)), other])
    assert [ax.get_title() for ax in figure.axes] == ["auto (1 run)", "dense (1 run)"]


def test_seeds_of_other_widths_are_refused(tmp_path: Path) -> None:
    plan = plan_of()
    runs = [fabricated(tmp_path, active(1, whole=w), plan=plan, seed=w) for w in (3, 4)]
    with pytest.raises(UserError, match="the seeds of r have networks of different widths"):
        widths_of(runs)


def test_neurons_are_means_over_seeds_and_later_epochs_are_darker(tmp_path: Path) -> None:
    plan = plan_of()
    courses = [
        [active(1, 2), active(2, 4), active(4, 8)],
        [active(3, 2), active(4, 4), active(4, 8)],
    ]
    runs = [fabricated(tmp_path, c[-1], plan=plan, seed=s, course=c) for s, c in enumerate(courses)]
    figure = Figure()
    Neurons().draw(figure, runs)
    (ax,) = figure.axes
    assert [line.get_label() for line in ax.lines] == ["epoch 1", "epoch 2", "epoch 3"]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[2, 2], [3, 4], [4, 8]]
    assert ax.lines[0].get_xdata().tolist() == [1, 2]
    lightness = [sum(to_rgb(line.get_color())) for line in ax.lines]
    assert lightness == sorted(lightness, reverse=True)
    assert ax.get_title() == "r (2 runs)"


def test_epochs_are_chosen(tmp_path: Path) -> None:
    course = [active(k) for k in (1, 2, 3)]
    run, figure = fabricated(tmp_path, course[-1], course=course), Figure()
    Neurons(epochs=(3, 1)).draw(figure, [run])
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[1], [3]]
    with pytest.raises(UserError, match=r"--epochs 4: .* was trained for 3 epochs"):
        Neurons(epochs=(4,)).draw(Figure(), [run])


def test_an_older_run_that_counted_no_rows_is_said(tmp_path: Path) -> None:
    from robustbench_sparse.runs.seals import seal

    run = fabricated(tmp_path, active(1))
    path = run.path / "layers.csv"
    lines = [",".join(np.array(line.split(","))[:4]) for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    seal(run.path)
    with pytest.raises(UserError, match=r"no rows in its layers\.csv"):
        Neurons().draw(Figure(), [run])

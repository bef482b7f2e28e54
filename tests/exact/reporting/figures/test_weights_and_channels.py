"""Histograms: the heights drawn are the shares and counts of weights written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.figures.channels import Channels
from robustbench_sparse.reporting.figures.networks import Layer
from robustbench_sparse.reporting.figures.weights import Weights
from tests.helpers.fabricated_runs import fabricated, plan_of


def steps(ax: Any) -> list[Any]:
    """The outlines drawn, without the areas below them: values, edges and label of each."""
    return [(*p.get_data()[:2], p.get_label()) for p in ax.patches if not p.get_fill()]


LINEAR = torch.tensor([[-3.0, -1.0, 0.0, 0.0, 1.0], [0.0, 3.0, 0.5, -0.5, 0.0]])


def test_the_heights_are_shares_of_all_weights(tmp_path: Path) -> None:
    run, figure = fabricated(tmp_path, {"1.weight": LINEAR}), Figure()
    Weights(bins=3).draw(figure, [run])
    ((heights, edges, label),) = steps(figure.axes[0])
    assert edges.tolist() == [-3, -1, 1, 3]
    # A bin holds its lower edge, the last one its upper edge, too.
    assert heights.tolist() == [10, 70, 20]
    assert label == "r (40 % zeros)"
    assert figure.axes[0].get_xlabel() == "weight"
    assert figure.axes[0].get_ylabel() == "weights in %"


def test_what_lies_beyond_the_picture_still_counts(tmp_path: Path) -> None:
    run, figure = fabricated(tmp_path, {"1.weight": LINEAR}), Figure()
    Weights(bins=3, zoom=1.8, log=True).draw(figure, [run])
    ((heights, edges, _),) = steps(figure.axes[0])
    assert edges.tolist() == pytest.approx([-1.8, -0.6, 0.6, 1.8])
    assert heights.tolist() == [10, 60, 10]  # of ten weights, two lie beyond
    assert figure.axes[0].get_yscale() == "log"


def test_one_in_a_thousand_may_be_left_out_unless_the_scale_is_logarithmic(tmp_path: Path) -> None:
    weight = torch.full((1, 2000), 0.5)
    weight[0, 0] = 100.0
    run = fabricated(tmp_path, {"1.weight": weight})
    for log, reach in ((False, 0.5), (True, 100.0)):
        figure = Figure()
        Weights(log=log).draw(figure, [run])
        assert steps(figure.axes[0])[0][1][-1] == reach


def test_runs_lie_over_each_other_and_layers_have_panels(tmp_path: Path) -> None:
    plan = plan_of()
    runs = [
        fabricated(tmp_path, {"a.weight": LINEAR * k, "b.weight": LINEAR * 0}, plan=plan, seed=k)
        for k in (1, 2)
    ]
    figure = Figure()
    Weights(bins=3, per_layer=True).draw(figure, runs)
    first, second = figure.axes
    assert [ax.get_title() for ax in (first, second)] == ["layer a", "layer b"]
    assert [label for _, _, label in steps(first)] == [f"r, seed {k} (40 % zeros)" for k in (1, 2)]
    assert [heights.tolist() for heights, _, _ in steps(first)] == [[10, 80, 10], [10, 70, 20]]
    assert [heights.tolist() for heights, _, _ in steps(second)] == [[0, 100, 0], [0, 100, 0]]


def test_an_unknown_layer_is_said_with_those_that_are_near(tmp_path: Path) -> None:
    run = fabricated(tmp_path, {"conv1.weight": torch.ones(2, 1, 3, 3), "fc.weight": LINEAR})
    with pytest.raises(UserError, match=r"--layer conv: no such layer .*did you mean 'conv1'.*conv1, fc"):
        Weights(layer=("conv",)).draw(Figure(), [run])


def conv() -> torch.Tensor:
    """Four filters of three channels, of norms 0, 2 and 4."""
    weight = torch.zeros(4, 3, 1, 1)
    weight[:, 1], weight[:, 2] = 1.0, -2.0
    return weight


def test_norms_of_channels_are_counted(tmp_path: Path) -> None:
    run = fabricated(tmp_path, {"c.weight": conv(), "d.weight": conv() / 2, "fc.weight": LINEAR})
    figure = Figure()
    Channels(bins=4).draw(figure, [run])
    ((counts, edges, label),) = steps(figure.axes[0])
    assert edges.tolist() == [0, 1, 2, 3, 4]
    assert counts.tolist() == [2, 1, 2, 1]  # 0, 0; 1; 2, 2; 4
    assert label == "r (2 of 6 zero)"
    figure = Figure()
    Channels(bins=2, zoom=1.5, layer=("d",)).draw(figure, [run])
    assert steps(figure.axes[0])[0][0].tolist() == [1, 1]


def test_sorted_norms_fall(tmp_path: Path) -> None:
    run, figure = fabricated(tmp_path, {"c.weight": conv()}), Figure()
    Channels(sorted=True).draw(figure, [run])
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata().tolist() == [4, 2, 0]
    figure = Figure()
    Channels(sorted=True, log=True).draw(figure, [run])
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).tolist() == [False, False, True]


def test_filters_of_a_group_read_its_channels_alone() -> None:
    weight = np.array([3.0, 4.0, 0.0, 0.0]).reshape(4, 1, 1, 1)
    assert Layer(name="c", weight=weight, groups=2).channel_norms().tolist() == [5, 0]
    assert Layer(name="c", weight=weight).channel_norms().tolist() == [5]


def test_a_network_without_convolutions_has_no_channels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no convolution"):
        Channels().draw(Figure(), [fabricated(tmp_path, {"fc.weight": LINEAR})])


@pytest.mark.parametrize(("made", "match"), [({"bins": 4}, "bins: expected an odd"), ({"zoom": 0.0}, "zoom")])
def test_settings_out_of_range(made: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Weights(**made)

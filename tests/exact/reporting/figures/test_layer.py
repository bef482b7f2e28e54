"""A layer as a picture: each weight where it belongs, zeros masked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.figures.layer import LayerPicture, mosaic
from tests.helpers.fabricated_runs import fabricated, plan_of


def test_kernels_stand_beside_each_other_and_zeros_are_masked(tmp_path: Path) -> None:
    weight = torch.arange(2 * 3 * 2 * 2, dtype=torch.float32).view(2, 3, 2, 2)
    run, figure = fabricated(tmp_path, {"conv.weight": weight}), Figure()
    LayerPicture(layer=("conv",)).draw(figure, [run])
    image = figure.axes[0].images[0]
    drawn = image.get_array()
    assert drawn.shape == (4, 6)
    assert drawn.data[2:, 2:4].tolist() == weight[1, 1].tolist()  # filter 1 reads channel 1
    assert drawn.mask.sum() == 1
    assert drawn.mask[0, 0]  # the weight that is 0
    assert image.get_clim() == (-23, 23)
    assert [*image.get_extent()] == [-0.5, 2.5, 1.5, -0.5]
    assert "4.167 % zeros" in figure.axes[0].get_title()


def test_negative_weights_are_red_and_positive_ones_blue(tmp_path: Path) -> None:
    run, figure = fabricated(tmp_path, {"fc.weight": torch.tensor([[-1.0, 0.0, 1.0]])}), Figure()
    LayerPicture(layer=("fc",)).draw(figure, [run])
    image = figure.axes[0].images[0]
    (red, _, blue), (_, _, _), (left, _, right) = image.cmap(image.norm(image.get_array()))[0, :, :3]
    assert red > blue
    assert right > left
    grey = image.cmap(image.norm(image.get_array()))[0, 1, :3]
    assert np.ptp(grey) == 0  # no shade of the scale, whose middle is lighter
    assert grey[0] < 0.8


def test_runs_share_one_scale_and_a_part_is_the_first(tmp_path: Path) -> None:
    plan, figure = plan_of(), Figure()
    base = torch.ones(4, 4)
    runs = [fabricated(tmp_path, {"fc.weight": base * k}, plan=plan, seed=k) for k in (1, 3)]
    LayerPicture(layer=("fc",), first=2).draw(figure, runs)
    pictures = [ax.images[0] for ax in figure.axes[:2]]
    assert [p.get_array().tolist() for p in pictures] == [[[1, 1]] * 2, [[3, 3]] * 2]
    assert {p.get_clim() for p in pictures} == {(-3, 3)}


def test_without_a_name_the_layers_are_listed(tmp_path: Path) -> None:
    run = fabricated(tmp_path, {"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2)})
    with pytest.raises(UserError, match="--layer: expected the name of a layer; there are: a, b"):
        LayerPicture().draw(Figure(), [run])


def test_the_mosaic_turns_nothing_around() -> None:
    kernels = np.arange(12.0).reshape(1, 2, 2, 3)
    assert mosaic(kernels).tolist() == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]

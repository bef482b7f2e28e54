"""Skip matrices: the mean of what the networks hold, each entry in its place."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.models.build import build_network
from robustbench_sparse.models.densenet import skip_strengths
from robustbench_sparse.reporting.figures.networks import Layer, layers_of
from robustbench_sparse.reporting.figures.skips import (
    Skips,
    dense_blocks,
    kernel_norms,
    skip_matrix,
    summed_norms,
)
from tests.helpers.fabricated_runs import fabricated, images, plan_of


def residual(*skips: list[float], width: int = 3) -> dict[str, torch.Tensor]:
    """Layers of equal width with these skips tau^{l,0..l}."""
    state = {f"layers.{i}.linear.weight": torch.ones(width, width) for i in range(len(skips))}
    return state | {f"layers.{i}.skip": torch.tensor(tau) for i, tau in enumerate(skips)}


def test_the_matrix_is_the_mean_over_the_seeds(tmp_path: Path) -> None:
    plan = plan_of()
    states = [residual([1.0], [0.0, -2.0]), residual([3.0], [0.0, -4.0])]
    runs = [fabricated(tmp_path, s, plan=plan, seed=i) for i, s in enumerate(states)]
    figure = Figure()
    Skips().draw(figure, runs)
    image = figure.axes[0].images[0]
    drawn = image.get_array()
    assert drawn.mask.tolist() == [[False, True], [True, False]]  # a zero, and one that cannot be
    assert (drawn[0, 0], drawn[1, 1]) == (2, -3)
    assert image.get_clim() == (-3, 3)
    colours = image.cmap(image.norm(drawn))
    assert colours[1, 1, 0] > colours[1, 1, 2], "negative is red"
    assert colours[0, 0, 2] > colours[0, 0, 0], "positive is blue"
    assert [t.get_text() for t in figure.axes[0].texts] == ["2", "0", "-3"]
    assert figure.axes[0].get_title() == "r (mean of 2 runs)"


def test_skips_belong_to_layers_of_their_width(tmp_path: Path) -> None:
    plan = plan_of(model={"name": "dense_residual", "layers": 3, "width": 16})
    network = build_network(plan.runs[0].model, [], 1, 8, 10, seed=0)
    state = network.state_dict()
    for name in state:
        if name.endswith("skip"):
            state[name] = torch.arange(1.0, 1 + len(state[name]))
    run = fabricated(tmp_path, state, plan=plan, dataset=images())
    matrix = skip_matrix(state, run)
    # x^0 has 64 pixels, x^1 to x^3 have 16: layer l reads x^1 to x^l.
    np.testing.assert_array_equal(matrix, [[math.nan] * 3, [math.nan, 1, math.nan], [math.nan, 1, 2]])


def test_an_ensemble_is_averaged_and_what_does_not_fit_is_said(tmp_path: Path) -> None:
    members = {f"members.{m}.{k}": v * (m + 1) for m in (0, 1) for k, v in residual([2.0]).items()}
    run = fabricated(tmp_path, members)
    assert skip_matrix(members, run).tolist() == [[3]]
    with pytest.raises(UserError, match="do not fit its layers"):
        skip_matrix({**residual([1.0]), "layers.0.skip": torch.ones(2)}, run)


def conv(out: int, inputs: int, value: float) -> Layer:
    return Layer(name="c", weight=np.full((out, inputs, 3, 3), value))


def test_a_dense_block_is_found_among_other_layers() -> None:
    head = Layer(name="fc", weight=np.ones((10, 8)))
    block = [conv(2, 4, 1.0), conv(2, 6, 1.0), conv(2, 8, 1.0), conv(8, 10, 1.0)]
    assert dense_blocks([conv(4, 1, 1.0), *block, head]) == [block]
    assert dense_blocks([conv(8, 8, 1.0), conv(8, 8, 1.0), head]) == []


@pytest.mark.parametrize("growth", [1, 3])
def test_the_sums_are_those_of_the_model(tmp_path: Path, growth: int) -> None:
    plan = plan_of(model={"name": "densenet", "layers": 3, "growth": growth})
    network = build_network(plan.runs[0].model, [], 1, 8, 10, seed=0)
    run = fabricated(tmp_path, network.state_dict(), plan=plan)
    (block,) = dense_blocks(layers_of(run))
    np.testing.assert_allclose(np.nan_to_num(summed_norms(block)), skip_strengths(network).numpy())
    assert kernel_norms(block).shape == (3 * growth + 1, 4 * growth)


def test_norms_of_kernels_and_their_sums() -> None:
    block = [conv(2, 3, 1.0), conv(2, 5, 2.0)]
    block[1].weight[:, 4] = 0  # the second layer does not read the last channel
    norms = kernel_norms(block)
    np.testing.assert_array_equal(norms[:2], [[3, 3, 3, math.nan, math.nan]] * 2)
    np.testing.assert_array_equal(norms[2:], [[6, 6, 6, 6, 0]] * 2)
    # Two outputs, three inputs each; from layer 1 two outputs and the one channel that is read.
    np.testing.assert_array_equal(summed_norms(block), [[18, math.nan], [36, 12]])


def test_a_dense_block_is_drawn_by_channels_and_by_layers(tmp_path: Path) -> None:
    state = {"c1.weight": torch.ones(2, 3, 1, 1), "c2.weight": torch.ones(2, 5, 1, 1)}
    state["c2.weight"][0, 0] = 0
    figure = Figure()
    Skips().draw(figure, [fabricated(tmp_path, state)])
    left, right = (ax for ax in figure.axes if ax.images)
    assert left.images[0].get_array().filled(-1).tolist() == [[1, 1, 1, -1, -1]] * 2 + [
        [0, 1, 1, 1, 1],
        [1] * 5,
    ]
    assert right.images[0].get_array().filled(-1).tolist() == [[6, -1], [5, 4]]
    zero = left.images[0].cmap(left.images[0].norm(0.0))
    assert zero[0] == zero[1] == zero[2], "a zero has a colour of its own"


def test_a_network_without_skips_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither skip parameters nor a dense block"):
        Skips().draw(Figure(), [fabricated(tmp_path, {"fc.weight": torch.ones(2, 2)})])

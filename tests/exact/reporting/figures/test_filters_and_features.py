"""Pictures of the networks that a run kept on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from robustbench_sparse.data.digits import Digits
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.models.build import build_network
from robustbench_sparse.reporting.figures.features import Features
from robustbench_sparse.reporting.figures.filters import Filters, sheet
from robustbench_sparse.runs.folder import RunFolder
from tests.helpers.fabricated_runs import fabricated, plan_of


def grown(active: int) -> dict[str, torch.Tensor]:
    """A convolution with four filters, of which the first ``active`` are not zero; a linear layer before it."""
    weight = torch.zeros(4, 1, 2, 2)
    weight[:active] = torch.arange(1.0, active + 1).view(-1, 1, 1, 1)
    return {"fc.weight": torch.ones(2, 4), "conv.weight": weight}


def test_filters_are_drawn_as_they_were_after_each_epoch(tmp_path: Path) -> None:
    snapshots = {(0, passed): grown(active) for passed, active in ((0, 1), (5, 2), (20, 4))}
    run, figure = fabricated(tmp_path, grown(4), snapshots=snapshots), Figure()
    Filters().draw(figure, [run])
    panels = figure.axes[:3]
    assert [ax.get_title() for ax in panels] == [
        "at the start\n1 of 4 active", "after 5 epochs\n2 of 4 active", "after 20 epochs\n4 of 4 active",
    ]  # fmt: skip
    for ax, active in zip(panels, (1, 2, 4), strict=True):
        drawn = ax.images[0].get_array()
        assert drawn.shape == (5, 5)  # 2 x 2 filters of 2 x 2, a pixel apart
        corners = [drawn[top, left] for top in (0, 3) for left in (0, 3)]
        shown = [0 if np.ma.is_masked(value) else float(value) for value in corners]
        assert shown == [k if k <= active else 0 for k in (1, 2, 3, 4)]
        assert drawn.mask[2].all()  # between them
        assert ax.images[0].get_clim() == (-4, 4)


def test_epochs_and_layer_are_chosen(tmp_path: Path) -> None:
    snapshots = {(0, passed): grown(1) for passed in (0, 5)} | {(1, 3): grown(3)}
    run, figure = fabricated(tmp_path, grown(4), snapshots=snapshots), Figure()
    Filters(epochs=(3,), layer=("fc",)).draw(figure, [run])
    assert figure.axes[0].get_title() == "stage 2, after 3 epochs\n2 of 2 active"
    # Four inputs are a square of 2 x 2 pixels.
    assert figure.axes[0].images[0].get_array().shape == (5, 2)
    with pytest.raises(UserError, match=r"--epochs 4: .* kept no network then; there are: 0, 3, 5"):
        Filters(epochs=(4,)).draw(Figure(), [run])


def test_a_run_without_snapshots_names_the_setting(tmp_path: Path) -> None:
    run = fabricated(tmp_path, grown(4))
    for drawing in (Filters(), Features()):
        with pytest.raises(
            UserError, match=r"set train\.snapshots .* as in \[0, 5, 20\], delete this folder"
        ):
            drawing.draw(Figure(), [run])


def test_a_snapshot_that_was_changed_is_refused(tmp_path: Path) -> None:
    run = fabricated(tmp_path, grown(4), snapshots={(0, 1): grown(1)})
    (run.path / "snapshots" / "0-1.safetensors").write_bytes(run.weights.read_bytes())
    with pytest.raises(UserError, match="changed since it was stored"):
        Filters().draw(Figure(), [run])


def test_kernels_of_a_filter_stand_beside_each_other() -> None:
    weight = np.arange(1.0, 9).reshape(1, 2, 2, 2)
    assert sheet(weight).tolist() == [[1, 2, 5, 6], [3, 4, 7, 8]]
    two = sheet(np.ones((2, 3)))  # three inputs are no square
    assert two.shape == (3, 3)
    assert np.isnan(two[1]).all()
    with pytest.raises(UserError, match="too many for a figure"):
        sheet(np.broadcast_to(np.ones(1), (60_000, 1000)))


def run_with_features(folder: Path) -> tuple[RunFolder, dict[str, torch.Tensor]]:
    dataset = Digits().load(None, None)
    plan = plan_of(model={"name": "convnet"})
    shape = {"channels": 1, "size": 8, "classes": 10}
    state = build_network(plan.runs[0].model, [], **shape, seed=1).state_dict()
    first = dict(state)
    first["0.weight"] = torch.zeros_like(state["0.weight"])
    first["0.weight"][0] = state["0.weight"][0]
    run = fabricated(folder, state, plan=plan, dataset=dataset, snapshots={(0, 0): first, (0, 2): state})
    return run, first


def test_features_are_the_convolutions_of_the_image(tmp_path: Path) -> None:
    run, first = run_with_features(tmp_path)
    figure = Figure()
    Features(images=(4,), first=4).draw(figure, [run])
    picture, start, _ = figure.axes[:3]
    image = Digits().load(None, None).test_x[4:5].float() / 255
    np.testing.assert_array_equal(picture.images[0].get_array(), image[0, 0].numpy())
    expected = F.conv2d(image, first["0.weight"], first["0.bias"], padding=2)[0, 0].double().numpy()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    drawn = start.images[0].get_array()
    side = expected.shape[0]
    np.testing.assert_allclose(drawn[:side, :side], expected, atol=1e-5)
    assert drawn.mask[:side, side + 1 :].all()  # the second filter has no weights
    assert start.get_title() == f"at the start\n1 of {len(first['0.weight'])} filters active"


def test_features_need_a_convolution_and_an_image_that_is_there(tmp_path: Path) -> None:
    run, _ = run_with_features(tmp_path)
    with pytest.raises(UserError, match=r"--images 100000: expected a number below"):
        Features(images=(100_000,)).draw(Figure(), [run])
    linear = list(run.snapshot(0, 0))[-1].rpartition(".")[0]
    with pytest.raises(UserError, match="no convolution"):
        Features(layer=(linear,)).draw(Figure(), [run])

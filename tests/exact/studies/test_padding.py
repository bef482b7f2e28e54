"""The filter of figure 1.3: what padding in frequency keeps at every resolution, and padding in space does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.models.spectral import trigonometric
from robustbench_sparse.studies.padding import Padding, kernel, square


@pytest.mark.parametrize("sizes", [(15, 30, 61), (9, 10, 24)])
@pytest.mark.parametrize("kind", ["edges", "blur"])
def test_padding_in_frequency_is_one_filter_and_padding_in_space_is_not(
    sizes: tuple[int, ...], kind: str
) -> None:
    table = Padding(sizes=sizes, filter=kind).run(Silent()).table.set_index(["size", "padding"])
    coarsest = sizes[0]
    for size in sizes:
        assert table.loc[(size, "spectral"), "difference"] < 1e-12
        assert table.loc[(size, "spectral"), "covered"] == 1
        assert table.loc[(size, "spatial"), "covered"] == coarsest / size
    spatial = [table.loc[(size, "spatial"), "difference"] for size in sizes]
    assert spatial[0] == 0
    assert 1e-3 < spatial[1] < spatial[2]


def test_on_the_coarsest_image_both_are_the_same() -> None:
    found = Padding(sizes=(15, 20)).run(Silent()).pictures
    torch.testing.assert_close(found[15, "spatial"], found[15, "spectral"])
    assert (found[20, "spatial"] - found[20, "spectral"]).abs().max() > 1e-3


def test_edges_find_the_slope_of_a_ramp_and_blur_keeps_the_mean(tmp_path: Path) -> None:
    assert kernel(9, 1.0, "blur").sum().item() == pytest.approx(1)
    assert kernel(9, 1.0, "edges").sum().item() == pytest.approx(0)
    place = torch.arange(9, dtype=torch.float64) - 4
    # A correlation with it: sum_a w_a v_{j + a} of v = j is the slope, but for the tails that are cut off.
    assert (kernel(9, 1.0, "edges") * place).sum().item() == pytest.approx(1, abs=2e-3)
    wave = 0.5 + 0.4 * np.cos(2 * np.pi * np.arange(64) / 64)
    path = tmp_path / "wave.png"
    Image.fromarray(np.uint8(255 * np.tile(wave, (48, 1)).T)).save(path)
    result = Padding(image=str(path), sizes=(15, 31), filter="blur").run(Silent())
    for size in (15, 31):
        image, out = result.pictures[size, "image"], result.pictures[size, "spectral"]
        torch.testing.assert_close(out.mean(), image.mean())


def test_the_square_in_the_middle_is_taken() -> None:
    x = torch.arange(12.0).view(3, 4)
    assert torch.equal(square(x), x[:, :3])
    assert torch.equal(square(x.T), x.T[:3])
    wide = torch.arange(21.0).view(3, 7)
    assert torch.equal(square(wide), wide[:, 2:5])


def test_images_are_one_photograph() -> None:
    found = Padding(sizes=(15, 21, 40)).run(Silent()).pictures
    torch.testing.assert_close(trigonometric(found[40, "image"], 21), found[21, "image"])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"sizes": (32, 64)}, "sizes: expected an odd size first, got 32"),
        ({"sizes": (33, 9)}, "sizes: expected growing sizes"),
        ({"sizes": ()}, "sizes: expected"),
        ({"sizes": (1, 9)}, "sizes: expected"),
        ({"filter": "sharpen"}, "filter: expected edges or blur"),
        ({"sigma": 0.0}, "sigma: expected"),
    ],
)
def test_rejects_settings(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}"):
        Padding(**settings)

"""Interpolation against scipy and Pillow, and against what it is known to do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch
from PIL import Image
from torch import Tensor

from robustbench_sparse.foundation.interpolation import bilinear, interpolated, trigonometric

SIZES = [3, 4, 7, 8, 9, 12, 15]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("old", SIZES)
@pytest.mark.parametrize("new", SIZES)
def test_trigonometric_is_scipys_resampling_along_both_axes(old: int, new: int) -> None:
    x = normal(2, 3, old, old)
    expected = scipy.signal.resample(scipy.signal.resample(x.numpy(), new, axis=-2), new, axis=-1)
    torch.testing.assert_close(trigonometric(x, new), torch.from_numpy(expected))


@pytest.mark.parametrize(("old", "new"), [(5, 15), (4, 8), (6, 18), (7, 14)])
def test_trigonometric_keeps_the_pixels_it_has(old: int, new: int) -> None:
    x = normal(2, 1, old, old)
    step = new // old
    torch.testing.assert_close(trigonometric(x, new)[..., ::step, ::step], x)


@pytest.mark.parametrize("old", [5, 6, 9, 10])
@pytest.mark.parametrize("new", [10, 11, 17, 24])
def test_trigonometric_comes_back_from_a_finer_grid(old: int, new: int) -> None:
    x = normal(2, 1, old, old)
    torch.testing.assert_close(trigonometric(trigonometric(x, new), old), x)


@pytest.mark.parametrize(("old", "new"), [(7, 20), (8, 21), (20, 8), (15, 7)])
def test_trigonometric_samples_a_wave_anew(old: int, new: int) -> None:
    """Of low frequency, so that both grids hold it."""

    def wave(n: int) -> Tensor:
        place = torch.arange(n, dtype=torch.float64) / n
        down = torch.cos(2 * math.pi * 3 * place)[:, None]
        return (0.2 + down + torch.sin(2 * math.pi * 2 * place) * down)[None, None]

    torch.testing.assert_close(trigonometric(wave(old), new), wave(new))


@pytest.mark.parametrize(("old", "new"), [(28, 14), (28, 20), (28, 28), (28, 56), (9, 13), (5, 1)])
def test_bilinear_is_pillows(old: int, new: int) -> None:
    x = normal(1, 1, old, old).float().sigmoid()
    picture = Image.fromarray(x[0, 0].numpy()).resize((new, new), Image.Resampling.BILINEAR)
    torch.testing.assert_close(bilinear(x, new)[0, 0], torch.from_numpy(np.array(picture)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("how", ["bilinear", "trigonometric"])
def test_a_constant_stays_one_and_the_own_size_changes_nothing(how: str) -> None:
    x = torch.full((2, 1, 9, 9), 0.37)
    for size in (4, 9, 20):
        torch.testing.assert_close(interpolated(x, size, how), torch.full((2, 1, size, size), 0.37))
    other = normal(2, 1, 9, 9)
    assert torch.equal(interpolated(other, 9, how), other)


def test_refuses_what_is_no_size_and_no_interpolation() -> None:
    for call in (trigonometric, bilinear):
        with pytest.raises(ValueError, match=r"^size: expected an integer >= 1, got 0$"):
            call(normal(1, 1, 4, 4), 0)
    with pytest.raises(ValueError, match=r"^interpolation: expected bilinear or trigonometric, got 'cubic'$"):
        interpolated(normal(1, 1, 4, 4), 4, "cubic")

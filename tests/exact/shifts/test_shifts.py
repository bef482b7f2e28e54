"""Shifts against closed forms and against the libraries that the published set was made with."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_image
from torch import Tensor

from attacks.base import SampleRandom
from robustbench_sparse.foundation.interpolation import bilinear, trigonometric
from robustbench_sparse.shifts import SHIFTS
from robustbench_sparse.shifts.blur import DefocusBlur, GaussianBlur, disk
from robustbench_sparse.shifts.coarse import JPEG, Pixelate
from robustbench_sparse.shifts.light import Brightness, Contrast
from robustbench_sparse.shifts.noise import GaussianNoise, ImpulseNoise, ShotNoise
from robustbench_sparse.shifts.resolution import Resolution


def streams(count: int, seed: int = 0) -> SampleRandom:
    return SampleRandom.for_images(seed, "shift", range(count))


def photos(size: int, channels: int = 3) -> Tensor:
    """24 pieces of a photograph, (24, channels, size, size)."""
    whole = torch.from_numpy(load_sample_image("china.jpg")[::3, ::3].copy()).permute(2, 0, 1) / 255
    rows = whole.unfold(1, size, 23)[:, :4].unfold(2, size, 23)[:, :, :6]
    return rows.permute(1, 2, 0, 3, 4).flatten(0, 1)[:, :channels].contiguous()


@pytest.mark.parametrize("key", [key for key in SHIFTS if key != "resolution"])
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (28, 1), (64, 3)])
def test_a_higher_severity_goes_further(key: str, size: int, channels: int) -> None:
    x = photos(size, channels)
    apart = [(SHIFTS[key](severity=s)(x, streams(24)) - x).flatten(1).norm(dim=1).mean() for s in range(1, 6)]
    assert apart[0] > 0
    assert all(far > near for near, far in itertools.pairwise(apart)), apart


# Closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "c"), [*enumerate((0.75, 0.5, 0.4, 0.3, 0.15), 1)])
def test_contrast_shrinks_what_is_not_the_mean(severity: int, c: float) -> None:
    x = photos(32)
    out = Contrast(severity=severity)(x, streams(24))
    torch.testing.assert_close(out.mean((2, 3)), x.mean((2, 3)))
    torch.testing.assert_close(out.std((2, 3)), c * x.std((2, 3)))
    torch.testing.assert_close(out, (c * x + (1 - c) * x.mean((2, 3), keepdim=True)).clamp(0, 1))


@pytest.mark.parametrize(("severity", "c"), [*enumerate((0.05, 0.1, 0.15, 0.2, 0.3), 1)])
def test_brightness_adds_a_constant_and_stops_at_one(severity: int, c: float) -> None:
    x = torch.tensor([0.0, 0.5, 0.69, 0.96, 1.0]).view(1, 1, 1, 5)
    out = Brightness(severity=severity)(x, streams(1))
    expected = [min(v + c, 1.0) for v in (0.0, 0.5, 0.69, 0.96, 1.0)]
    torch.testing.assert_close(out.flatten(), torch.tensor(expected))


def test_pixelate_takes_the_mean_of_every_block() -> None:
    x = photos(32)[..., :3, :3]
    out = Pixelate(severity=5)(x, streams(24))  # 3 x 0.65, rounded down, is a single pixel
    torch.testing.assert_close(out, x.mean((2, 3), keepdim=True).expand(24, 3, 3, 3))
    wide = photos(32)[..., :3, :2]
    out = Pixelate(severity=4)(wide, streams(24))  # 3 x 0.75 -> 2 rows, of which the first has one pixel more
    tall = wide.mean(3, keepdim=True)
    expected = torch.cat((tall[:, :, :2].mean(2, keepdim=True), tall[:, :, 2:]), 2)
    torch.testing.assert_close(out[:, :, 0, 0], expected[:, :, 0, 0])
    torch.testing.assert_close(out[:, :, 2, 1], expected[:, :, 1, 0])


@pytest.mark.parametrize(("severity", "side"), [(1, 30), (2, 28), (3, 27), (4, 24), (5, 20)])
def test_pixelate_is_pillows_with_the_published_sizes(severity: int, side: int) -> None:
    x = photos(32)
    out = Pixelate(severity=severity)(x, streams(24))
    for image, got in zip(x, out, strict=True):
        picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        small = picture.resize((side, side), Image.Resampling.BOX)
        published = np.asarray(small.resize((32, 32), Image.Resampling.BOX)) / 255
        assert np.abs(got.permute(1, 2, 0).numpy() - published).max() < 2 / 255  # rounded there


# Noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "sigma"), [*enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1)])
def test_gaussian_noise_has_its_deviation(severity: int, sigma: float) -> None:
    x = torch.full((20, 1, 64, 64), 0.5)
    noise = GaussianNoise(severity=severity)(x, streams(20)) - x
    assert abs(noise.mean()) < 4 * sigma / math.sqrt(noise.numel())
    assert noise.std().item() == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize(("severity", "photons"), [*enumerate((500, 250, 100, 75, 50), 1)])
def test_shot_noise_counts_photons(severity: int, photons: int) -> None:
    x = torch.full((20, 1, 64, 64), 0.4)
    out = ShotNoise(severity=severity)(x, streams(20))
    counts = out * photons
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-3)
    assert out.mean().item() == pytest.approx(0.4, rel=0.005)
    assert out.var().item() == pytest.approx(0.4 / photons, rel=0.03)
    dark = torch.zeros(1, 1, 8, 8)
    assert torch.equal(ShotNoise(severity=severity)(dark, streams(1)), dark)


@pytest.mark.parametrize(("severity", "share"), [*enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1)])
def test_impulse_noise_makes_as_many_black_as_white(severity: int, share: float) -> None:
    x = torch.full((20, 1, 64, 64), 0.5)
    out = ImpulseNoise(severity=severity)(x, streams(20))
    assert set(out.unique().tolist()) == {0.0, 0.5, 1.0}
    for value in (0.0, 1.0):
        assert (out == value).float().mean().item() == pytest.approx(share / 2, rel=0.15)


# Blur -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "sigma"), [*enumerate((0.4, 0.6, 0.7, 0.8, 1.0), 1)])
@pytest.mark.parametrize("size", [32, 64])
def test_gaussian_blur_makes_a_point_a_gaussian_that_grows_with_the_image(
    severity: int, sigma: float, size: int
) -> None:
    x = torch.zeros(1, 1, size, size)
    x[..., size // 2, size // 2] = 1
    out = GaussianBlur(severity=severity)(x, streams(1))
    assert out.sum().item() == pytest.approx(1, abs=1e-5)
    place = torch.arange(size) - size // 2
    wide = sigma * size / 32
    line = torch.exp(-(place**2) / (2 * wide**2)) * (place.abs() <= int(4 * wide + 0.5))
    expected = line[:, None] * line / line.sum() ** 2
    torch.testing.assert_close(out[0, 0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("radius", [0.3, 0.5, 0.6, 1.0, 1.5, 3.7])
def test_a_disk_has_its_area(radius: float) -> None:
    kernel = disk(radius)
    assert kernel.sum() == pytest.approx(1)
    assert np.array_equal(kernel, kernel.T)
    assert np.array_equal(kernel, kernel[::-1])
    middle = kernel[len(kernel) // 2, len(kernel) // 2]
    if radius <= 0.5:
        assert middle == 1
    if radius >= 1:  # the pixel in the middle lies in it as a whole
        assert 1 / middle == pytest.approx(math.pi * radius**2, rel=0.02)
    assert (kernel > 0).any(0).sum() == 2 * math.ceil(radius - 0.5) + 1


def test_defocus_blur_is_the_mean_over_a_disk() -> None:
    x = photos(32)
    out = DefocusBlur(severity=5)(x, streams(24))
    expected = ndimage.convolve(x[3, 1].double().numpy(), disk(2.0), mode="nearest")
    np.testing.assert_allclose(out[3, 1].numpy(), expected, atol=1e-6)


# Compression and size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "quality"), [*enumerate((80, 65, 58, 50, 40), 1)])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_jpeg_is_pillows(severity: int, quality: int, channels: int) -> None:
    x = photos(32, channels)[:4]
    out = JPEG(severity=severity)(x, streams(4))
    for image, got in zip((x * 255).round().byte().numpy(), out.numpy(), strict=True):
        coloured = channels == 3
        for part, mine in (
            [(image.transpose(1, 2, 0), got.transpose(1, 2, 0))] if coloured else zip(image, got, strict=True)
        ):
            file = io.BytesIO()
            Image.fromarray(part).save(file, "JPEG", quality=quality)
            np.testing.assert_allclose(mine, np.asarray(Image.open(file)) / 255, atol=1e-6)


@pytest.mark.parametrize(("how", "function"), [("bilinear", bilinear), ("trigonometric", trigonometric)])
@pytest.mark.parametrize("size", [9, 32, 50])
def test_resolution_interpolates_and_clamps(how: str, function: object, size: int) -> None:
    x = photos(32)
    out = Resolution(size=size, interpolation=how)(x, streams(24))
    torch.testing.assert_close(out, function(x, size).clamp(0, 1))


def test_resolution_has_no_default_size() -> None:
    with pytest.raises(TypeError, match="size"):
        Resolution()

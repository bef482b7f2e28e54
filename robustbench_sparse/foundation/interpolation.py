"""Images on finer and coarser grids: bilinear interpolation, and the trigonometric one of Roith's thesis, 1.4.

Both keep what is seen in place, up to half a pixel: a pixel of the bilinear one is a little square, and the image
ends at its border; in the trigonometric one pixel j of N stands at j / N of an image that goes on periodically.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.base import check

Interpolation = Literal["bilinear", "trigonometric"]


def interpolated(x: Tensor, size: int, how: Interpolation) -> Tensor:
    """Images (B, C, H, W) at ``size`` x ``size`` pixels.

    Raises:
        ValueError: for a size below 1, or no way that is known.
    """
    check(how in ("bilinear", "trigonometric"), "interpolation", "bilinear or trigonometric", how)
    return bilinear(x, size) if how == "bilinear" else trigonometric(x, size)


def bilinear(x: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) -> (B, C, size, size), linear between the centres of pixels.

    Where the image shrinks, the linear hat is as wide as the new pixels are, so that none of the old ones is skipped
    (what Pillow does, and torch calls ``antialias``). Values stay between the smallest and the largest one.
    """
    check(size >= 1, "size", "an integer >= 1", size)
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


def trigonometric(x: Tensor, size: int) -> Tensor:
    """Images (..., H, W) -> (..., size, size): the trigonometric polynomial through all pixels, on another grid.

    v^{N -> L} = F^{-1}((F v)^{N -> L}) of Roith's thesis, section 1.4, up to the factor |J_L| / |J_N| that keeps
    values what they are. For odd sizes that is all. Of an even size the frequency N / 2 has one coefficient for two
    signs: on a finer grid each gets a half, on a coarser one both are added, which keeps real images real and gives
    an image back that went to a finer grid. Where an image shrinks, higher frequencies are left out. Values may
    overshoot the image's range.

    Args:
        x: float32 or float64.
        size: pixels of a side, >= 1.
    """
    check(size >= 1, "size", "an integer >= 1", size)
    height, width = x.shape[-2:]
    if height == width == size:
        return x  # bit for bit
    spectrum = torch.fft.fft2(x)
    for dim in (-2, -1):
        spectrum = resized_axis(spectrum, size, dim, "sum")
    back: Tensor = torch.fft.ifft2(spectrum).real
    return back * (size * size / (height * width))


def resized_axis(spectrum: Tensor, size: int, dim: int, edge: Literal["sum", "mean"]) -> Tensor:
    """Coefficients of the frequencies of another size along one axis: zeros where there were none.

    Args:
        spectrum: coefficients in the order of ``torch.fft.fft2``.
        size: the new number of them.
        dim: the axis.
        edge: what becomes of both signs of the frequency ``size / 2`` where an even number of coefficients is cut
            out: of an image their sum, of factors that others are multiplied by their mean.
    """
    old = spectrum.shape[dim]
    if size == old:
        return spectrum
    few = min(old, size)
    low = spectrum.narrow(dim, 0, (few + 1) // 2)  # 0, 1, ...
    high = spectrum.narrow(dim, old - few // 2, few // 2)  # ..., -2, -1
    shape = list(spectrum.shape)
    if few % 2 == 1:
        shape[dim] = max(size - old, 0)
        return torch.cat((low, spectrum.new_zeros(shape), high), dim)
    outer, rest = high.narrow(dim, 0, 1), high.narrow(dim, 1, few // 2 - 1)
    if size < old:
        outer = outer + spectrum.narrow(dim, few // 2, 1)
        return torch.cat((low, outer / 2 if edge == "mean" else outer, rest), dim)
    shape[dim] = size - old - 1
    return torch.cat((low, outer / 2, spectrum.new_zeros(shape), outer / 2, rest), dim)

"""x + a * std(x) * z with z out of counters (``attacks.philox``), for large tensors in compiled sweeps over the memory.

z is the same bit by bit, compiled or not. Means and deviations are sums, which compiled code adds up in another order;
which of the two runs depends on the tensor's size alone, or on whether there is a compiler.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attacks.philox import blocks_of, halves, normals, quantile, uniform, words

MANY = 1 << 17  # values; a compiled sweep over fewer of them costs little less than its call
_TYPES = (torch.float32, torch.bfloat16)
Counters = tuple[Tensor, Tensor]  # keys and places, int64 (B,), see attacks.philox.normals


def drawn(like: Tensor, counters: Counters) -> Tensor:
    """N(0, 1) with the shape, type and device of ``like`` (B, ...), numbered in the order of channels-last.

    The order is the same however ``like`` lies in the memory: so are an image's numbers.
    """
    keys, places = (part.to(like.device) for part in counters)
    z = normals(keys, places, like[0].numel()).to(like.dtype)
    return _as_image(z, like)


def noised(x: Tensor, counters: Counters, a: float) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """x (B, ...) with noise of strength a > 0, in compiled sweeps.

    Returns:
        The sum; z; of each image, (B, 1), the mean and the sum of squared differences to it. None where no compiled
        sweep is to be had, or ``x`` is too small for one.
    """
    if not (
        x.device.type == "cpu" and x.dtype in _TYPES and x.numel() >= MANY and len(x) > 1 and _ordered(x)
    ):
        return None
    rows = _rows(x.detach())
    count = rows.shape[1]
    bits = _WORDS(*counters, blocks_of(count))
    if bits is None:
        return None
    if x.dtype == torch.float32:
        made = _DRAWN_NOISED(rows, *halves(bits, count), *_weights(count, a))
    else:
        # Apart: beside bfloat16 compiled loops take twice as many values at once, which overflows the registers.
        z = _NORMALS(*halves(bits, count), x.dtype)
        made = None if z is None else _NOISED(rows, z, *_weights(count, a))
    if made is None:
        return None
    out, z, mean, squares = made
    return _as_image(out, x), _as_image(z, x), mean, squares


def gradient(grad: Tensor, x: Tensor, z: Tensor, moments: tuple[Tensor, Tensor], a: float) -> Tensor | None:
    """The gradient for x of what ``noised`` gave, from what it gave; None where no compiled sweep is to be had."""
    rows, (mean, squares) = _rows(x.detach()), moments
    # a / ((n - 1) std); 0 for a constant image.
    weight = (squares * ((rows.shape[1] - 1) / a**2)).rsqrt_().nan_to_num_(posinf=0.0)
    found = _GRADIENT(_rows(grad), rows, _rows(z), mean, weight)
    return None if found is None else _as_image(found, x)


class Sweep:
    """A function of tensors, compiled for all their sizes.

    Args:
        function: of tensors, integers and types, without gradients.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._compiled: Callable[..., Any] | None = None
        self._on = True

    def __call__(self, *given: Tensor | int | torch.dtype) -> Any:
        """What the function gives; None where it cannot be compiled, which is said once."""
        if not self._on:
            return None
        if self._compiled is None:
            self._compiled = torch.compile(self.function, dynamic=True)
        try:
            with torch.no_grad():
                return self._compiled(*given)
        except KeyboardInterrupt:
            raise
        except Exception as e:  # whatever a compiler may raise
            self._on = False
            warnings.warn(f"noise is drawn slowly, compiling failed: {type(e).__name__}", stacklevel=2)
            return None


@functools.cache
def _weights(count: int, a: float) -> tuple[Tensor, Tensor]:
    """1 / n and a^2 / (n - 1)."""
    return torch.tensor(1 / count), torch.tensor(a * a / (count - 1))


# In these, what is one number an image stays a sum: anything more would be a sweep of its own, between two of the
# images' values, where now all of an image's sweeps follow each other while it lies in the cache.


def _normals(low: Tensor, high: Tensor, dtype: torch.dtype) -> Tensor:
    u = uniform(low, high)
    return quantile(u, ((1 - u) * (1 + u)).sqrt()).to(dtype)


def _noised(x: Tensor, z: Tensor, share: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = x.float()
    away = wide - wide[:, :1]  # from one of the values: a constant image has std 0, not one of rounding
    total = away.sum(1, keepdim=True)
    squares = (away - total * share).square().sum(1, keepdim=True)
    return (wide + (scale * squares).sqrt() * z.float()).to(x.dtype), z, wide[:, :1] + total * share, squares


def _drawn_noised(
    x: Tensor, low: Tensor, high: Tensor, share: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _noised(x, _normals(low, high, x.dtype), share, scale)


def _gradient(grad: Tensor, x: Tensor, z: Tensor, mean: Tensor, weight: Tensor) -> Tensor:
    wide = grad.float()
    along = (wide * z.float()).sum(1, keepdim=True)
    return (wide + along * weight * (x.float() - mean)).to(grad.dtype)


_WORDS, _NORMALS, _NOISED = Sweep(words), Sweep(_normals), Sweep(_noised)
_DRAWN_NOISED, _GRADIENT = Sweep(_drawn_noised), Sweep(_gradient)


def _ordered(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.is_contiguous()


def _rows(x: Tensor) -> Tensor:
    """(B, ...) -> (B, n) in the order of channels-last."""
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).reshape(len(x), -1)


def _as_image(rows: Tensor, like: Tensor) -> Tensor:
    """(B, n) in the order of channels-last -> the shape of ``like``; a view."""
    if like.ndim != 4:
        return rows.view(like.shape)
    count, channels, height, width = like.shape
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)

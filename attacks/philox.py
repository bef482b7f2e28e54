"""Normal numbers out of a counter: Philox4x32-10, and two of its bytes a number.

Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3: what stands at a place is a
function of a key and the place's number alone, so places may be computed in any order, by any number of threads, and
again. Every step is one of whole numbers or of floats that are rounded one by one: the same bits come compiled or not,
and on every device.

A number is the normal quantile of (i + 1/2) / 65536 for 16 random bits i, to 8e-5, scaled to variance 1. Its law is off
N(0, 1) by at most 2.4e-5 in the distribution function; the largest number is 4.325, the kurtosis 2.99924.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

_M32 = 0xFFFFFFFF
_PER_BLOCK = 8  # numbers out of the 128 bits of one counter


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, ...], rounds: int = 10) -> tuple[Tensor, ...]:
    """The block at a counter.

    Args:
        counter: four int64 tensors that broadcast against each other, each of numbers in [0, 2^32).
        key: two of them.
        rounds: 10 as published; 7 is the least that passed its tests.

    Returns:
        Four int64 tensors of numbers in [0, 2^32).
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(rounds):
        # A product of 64 bits may come out negative: its bits are right, and all that is asked of them.
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((second >> 32) & _M32) ^ c1 ^ k0, second & _M32
        c2, c3 = ((first >> 32) & _M32) ^ c3 ^ k1, first & _M32
        k0, k1 = (k0 + 0x9E3779B9) & _M32, (k1 + 0xBB67AE85) & _M32
    return c0, c1, c2, c3


def words(keys: Tensor, places: Tensor, blocks: int) -> Tensor:
    """Random bits of each image.

    Args:
        keys: int64 (B,), the images' streams.
        places: int64 (B,), which of the draws of its stream an image gets, in [0, 2^32).
        blocks: how many of 128 bits each image gets, < 2^32.

    Returns:
        int32 (B, 4, blocks): first the first words of all blocks.
    """
    key, place = keys[:, None], places[:, None]
    block = torch.arange(blocks, device=keys.device)[None]
    nothing = torch.zeros_like(place)
    drawn = philox((block, place, nothing, nothing), (key & _M32, (key >> 32) & _M32))
    return torch.stack([word.to(torch.int32) for word in drawn], 1)


def uniform(low: Tensor, high: Tensor) -> Tensor:
    """Numbers in (-1, 1) out of two uint8 tensors, each in the middle of one of 65 536 intervals; float32, exact."""
    return (high.float() * 256.0 + low.float() - 32767.5) * (1 / 32768)


def quantile(u: Tensor, root: Tensor) -> Tensor:
    """Normal numbers out of such numbers ``u`` in (-1, 1), and the root of 1 - u^2 to the nearest float32.

    u times a rational function of the root, fitted to the quantiles by weighted least squares, as near as it gets.
    """
    above = ((7468.12841796875 * root + 138085.296875) * root + 39207.3828125) * root + 1408.6895751953125
    below = ((63227.72265625 * root + 72343.4453125) * root + 12604.4326171875) * root + 343.29962158203125
    return u * ((above * root + 5.24210262298584) / (below * root + 1.0))


@functools.cache
def table(device: torch.device) -> Tensor:
    """All 65 536 numbers; float32, in order."""
    i = torch.arange(65536)
    u = uniform((i & 255).to(torch.uint8), (i >> 8).to(torch.uint8))
    # By way of double: torch's root of a float32 may be off by a bit.
    return quantile(u, ((1 - u) * (1 + u)).double().sqrt().float()).to(device)


def normals(keys: Tensor, places: Tensor, count: int) -> Tensor:
    """N(0, 1), independent in all places.

    Args:
        keys: int64 (B,), the images' streams.
        places: int64 (B,), which of the draws of its stream an image gets, in [0, 2^32).
        count: numbers of each image, < 2^35.

    Returns:
        float32 (B, count).
    """
    low, high = halves(words(keys, places, blocks_of(count)), count)
    index = high.to(torch.int32).mul_(256).add_(low)
    return torch.index_select(table(keys.device), 0, index.flatten()).view(len(keys), count)


def blocks_of(count: int) -> int:
    """How many blocks hold so many numbers."""
    return -(-count // _PER_BLOCK)


def halves(drawn: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The lower and the upper byte of each number; uint8 (B, count) twice, views of what ``words`` gave."""
    octets = drawn.view(torch.uint8).view(len(drawn), 2, -1)
    return octets[:, 0, :count], octets[:, 1, :count]

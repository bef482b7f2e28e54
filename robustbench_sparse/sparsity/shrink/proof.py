"""Proof by trial that two networks are the same function on real images."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from attacks.base import NoiseOff, SampleRandom, is_stochastic, noise_from
from robustbench_sparse.engine.fast import logits_in_parts

TOLERANCE = 1e-4  # of the largest logit, or of 1 where that is smaller
NOISY = 128  # images that are sent through with noise on: their random streams are drawn one by one


def same_logits(first: nn.Module, second: nn.Module, x: Tensor) -> tuple[float, float]:
    """How far two networks are apart, noise off.

    Args:
        first, second: networks in eval mode, on the images' device.
        x: images (B, C, H, W).

    Returns:
        The largest difference of their logits, inf where one is not finite; and the largest size of the first's logits.
    """
    a, b = (logits_in_parts(NoiseOff(network).eval(), x).float() for network in (first, second))
    if a.shape != b.shape or not bool(a.isfinite().all() and b.isfinite().all()):
        return math.inf, math.inf
    return (a - b).abs().max().item(), a.abs().max().item()


def differences(
    first: nn.Module, second: nn.Module, x: Tensor, noise: Callable[[], SampleRandom] | None = None
) -> tuple[float, float]:
    """The largest difference of two networks' logits, with noise off and, for random ones, with equal noise on.

    Args:
        first, second: networks in eval mode, on the images' device.
        x: images (B, C, H, W).
        noise: makes the random streams of the images, the same ones every time; by default those of the first
            ``NOISY`` images, from a fixed seed, and only these are sent through with noise on.

    Returns:
        That difference, and how large it may be; inf and 0 where a logit is not finite.
    """
    worst, size = same_logits(first, second, x)
    if is_stochastic(first) and math.isfinite(worst):
        few = x[:NOISY] if noise is None else x
        make = noise or partial(SampleRandom.for_images, 0, "shrink", range(len(few)))
        outs = []
        for network in (first, second):
            with torch.no_grad(), noise_from(network, make()):
                outs.append(logits_in_parts(network, few).float())
        worst = max(worst, (outs[0] - outs[1]).abs().max().item())
    allowed = TOLERANCE * max(1.0, size) if math.isfinite(size) else 0.0
    return worst, allowed

"""Proof by trial that two networks are the same function on real images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attacks.base import SampleRandom, is_stochastic, noise_from
from robustbench_sparse.certificate.sparsity_records import same_logits
from robustbench_sparse.fast import logits_in_parts

TOLERANCE = 1e-4  # of the largest logit, or of 1 where that is smaller
NOISY = 128  # images that are sent through with noise on: their random streams are drawn one by one


def differences(first: nn.Module, second: nn.Module, x: Tensor, seed: int = 0) -> tuple[float, float]:
    """The largest difference of two networks' logits, with noise off and, for random ones, with equal noise on.

    Args:
        first, second: networks in eval mode, on the images' device.
        x: images (B, C, H, W).
        seed: of the noise.

    Returns:
        That difference, and how large it may be; inf and 0 where a logit is not finite.
    """
    worst, size = same_logits(first, second, x)
    if is_stochastic(first) and math.isfinite(worst):
        outs, few = [], x[:NOISY]
        for network in (first, second):
            random = SampleRandom.for_images(seed, "shrink", range(len(few)))
            with torch.no_grad(), noise_from(network, random):
                outs.append(logits_in_parts(network, few))
        worst = max(worst, (outs[0] - outs[1]).abs().max().item())
    allowed = TOLERANCE * max(1.0, size) if math.isfinite(size) else 0.0
    return worst, allowed

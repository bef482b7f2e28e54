"""How alike two images are: squared error, peak signal-to-noise ratio, structural similarity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustbench_sparse.foundation.errors import UserError

WINDOW = 11  # pixels; of SSIM's Gaussian weights, sigma 1.5


def check_ssim() -> None:
    """UserError without the library that computes it."""
    try:
        import skimage.metrics  # noqa: F401
    except ImportError:
        raise UserError(
            "task: restore: needs scikit-image for SSIM, which comes with the extra 'restore' of robustbench_sparse"
        ) from None


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, of images whose values range over [0, 1]: -10 log10(mse); (B,)."""
    return -10 * torch.log10(mse)


def ssim(outputs: Tensor, targets: Tensor) -> list[float]:
    """Mean structural similarity of each image; Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861.

    Gaussian weights of sigma 1.5 on 11 x 11 pixels, K1 = 0.01, K2 = 0.03, a range of 1: the paper's. The border of half
    a window is left out.

    Args:
        outputs, targets: (B, C, H, W).

    Returns:
        B values of at most 1; nan for images smaller than the window, or an output that is not finite.
    """
    from skimage.metrics import structural_similarity

    if min(outputs.shape[2:]) < WINDOW:
        return [math.nan] * len(outputs)
    pairs = zip(outputs.double().cpu().numpy(), targets.double().cpu().numpy(), strict=True)
    return [
        float(
            structural_similarity(
                target,
                output,
                data_range=1.0,
                channel_axis=0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
        )
        for output, target in pairs
    ]

"""Convolution by Fourier coefficients: Roith's thesis, section 1.4, after Kabri et al. 2023, arXiv:2304.01227.

Coefficients are complex tensors (..., M, M) in the order of ``torch.fft.fft2``: that of k in
I_M = {-ceil((M - 1) / 2), ..., floor((M - 1) / 2)}^2 stands at k mod M. Those of a real kernel are Hermitian,
theta^_{-k} = conj(theta^_k): the set C_sym of the thesis. Kernels and images are real tensors on
J_M = {0, ..., M - 1}^2 that go on periodically. |J_M| = M^2.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import check
from robustbench_sparse.foundation.interpolation import bilinear as bilinear
from robustbench_sparse.foundation.interpolation import resized_axis
from robustbench_sparse.foundation.interpolation import trigonometric as trigonometric

Parameters = Literal["frequency", "space"]


def to_frequency(theta: Tensor) -> Tensor:
    """T(theta) = lambda F(theta): the coefficients (..., M, M) of a kernel (..., M, M), without a factor before them.

    The normalisation lambda of F does not matter: it cancels in T and in K.
    """
    theta_hat: Tensor = torch.fft.fft2(theta)
    return theta_hat


def to_space(theta_hat: Tensor) -> Tensor:
    """T^{-1}: the kernel (..., M, M) of Hermitian coefficients (..., M, M)."""
    theta: Tensor = torch.fft.ifft2(theta_hat).real
    return theta


def spatial_padding(theta: Tensor, size: int) -> Tensor:
    """theta^{M -> N}: a kernel (..., M, M) with zeros behind it, (..., N, N). Its support stays M pixels wide.

    Raises:
        ValueError: for a size below M.
    """
    side = theta.shape[-1]
    check(size >= side, "size", f"at least the kernel's {side}", size)
    return F.pad(theta, (0, size - side, 0, size - side))


def spectral_padding(theta_hat: Tensor, size: int) -> Tensor:
    """theta^^{M -> N}: coefficients (..., M, M) with zeros for further frequencies, (..., N, N).

    The kernel they belong to is the same function on a finer grid. For N < M frequencies are left out; an even N
    takes the mean of both signs of N / 2, which is what filtering on a finer grid would give.

    Raises:
        ValueError: for an even M other than N. Its coefficient of -M / 2 has none of M / 2 beside it once there are
            more frequencies, and the convolution would not be real.
    """
    side = theta_hat.shape[-1]
    check(side % 2 == 1 or side == size, "coefficients", "an odd size", side)
    for dim in (-2, -1):
        theta_hat = resized_axis(theta_hat, size, dim, "mean")
    return theta_hat


def circular_convolution(theta: Tensor, v: Tensor) -> Tensor:
    """C(theta)(v) = theta^{M -> N} * v: sum_k theta_k v_{j-k}, indices mod N, computed in space.

    Args:
        theta: kernels (O, I, M, M).
        v: images (B, I, H, W) of at least M pixels a side.

    Returns:
        Images (B, O, H, W), summed over the channels I.
    """
    side = theta.shape[-1]
    check(min(v.shape[-2:]) >= side, "v", f"images of at least {side} pixels", tuple(v.shape[-2:]))
    # torch's layer correlates: the kernel is turned, and what lies before a pixel is put before the image.
    around = F.pad(v, (side - 1, 0, side - 1, 0), mode="circular")
    return F.conv2d(around, theta.flip(-2, -1))


def spectral_convolution(theta_hat: Tensor, v: Tensor) -> Tensor:
    """K(theta^)(v) = F^{-1}(theta^^{M -> N} F v), equation (1.37) with spectral zero-padding.

    The same filter at every resolution of at least M pixels (corollary 1.31); on smaller images the frequencies that
    they cannot hold are left out.

    Args:
        theta_hat: Hermitian coefficients (O, I, M, M). Read are those whose second frequency is >= 0; the others follow
            from them.
        v: real images (B, I, H, W).

    Returns:
        Real images (B, O, H, W), summed over the channels I.

    Raises:
        ValueError: for an even M, unless the images have M x M pixels.
    """
    height, width = v.shape[-2:]
    rows, columns = (min(theta_hat.shape[-1], side) for side in (height, width))
    check(
        theta_hat.shape[-1] % 2 == 1 or theta_hat.shape[-2:] == v.shape[-2:],
        "coefficients",
        "an odd size",
        theta_hat.shape[-1],
    )
    theta_hat = resized_axis(resized_axis(theta_hat, rows, -2, "mean"), columns, -1, "mean")
    # Only frequencies that have a coefficient are multiplied: the others give zero.
    seen = torch.fft.rfft2(v)[..., : columns // 2 + 1]
    seen = torch.cat((seen[..., : (rows + 1) // 2, :], seen[..., height - rows // 2 :, :]), -2)
    given = torch.einsum("bixy,oixy->boxy", seen, theta_hat[..., : columns // 2 + 1])
    given = F.pad(given, (0, width // 2 - columns // 2))
    out: Tensor = torch.fft.irfft2(resized_axis(given, height, -2, "sum"), s=(height, width))
    return out


def centred(weight: Tensor, size: int) -> Tensor:
    """The kernel theta (..., N, N) of which C(theta) is torch's circular convolution with a weight (..., k, k).

    torch's layer correlates, with the middle of its weight on the pixel: theta is the weight turned, with its middle
    at index 0, and zeros between.

    Raises:
        ValueError: for an even k, which has no middle, or k > N.
    """
    side = weight.shape[-1]
    check(side % 2 == 1, "kernel_size", "an odd size", side)
    half = side // 2
    return spatial_padding(weight.flip(-2, -1), size).roll((-half, -half), (-2, -1))


def hartley(theta_hat: Tensor) -> Tensor:
    """Re theta^_k - Im theta^_k: as many real numbers (..., M, M) as a kernel has, for Hermitian coefficients.

    It keeps lengths, sum_k |theta^_k|^2 = sum_k h_k^2, so that a gradient with respect to h is the gradient with
    respect to theta^ in C_sym, which lemma 1.30 is about.
    """
    return theta_hat.real - theta_hat.imag


def from_hartley(h: Tensor) -> Tensor:
    """The Hermitian coefficients (..., M, M) that ``hartley`` made h of."""
    turned = h.flip(-2, -1).roll((1, 1), (-2, -1))  # h_{-k}
    return torch.complex((h + turned) / 2, (turned - h) / 2)


class SpectralConv2d(nn.Module):
    """u -> K(theta^) u + b with M x M coefficients: a circular convolution that is one filter at every resolution.

    Its weights are neither a convolution's nor a linear layer's to torch: ``defenses.base.prunable``, and with it the
    sparsities and multiplications that are counted, leave them out. They count as parameters, and an optimizer's groups
    can name them.

    Args:
        before, after: channels of the images it takes and gives.
        modes: M, odd.
        parameters: what is trained: the coefficients (``frequency``), as the real numbers ``hartley`` makes of them; or
            a kernel on a grid of M x M pixels, of which they are the transform (``space``).
        kernel_size: side k of the kernel in pixels of that grid, odd, at most M. It is what weights are drawn as:
            N(0, 2 / fan_in) as torch's ``kaiming_normal_``. Coefficients are free to leave such kernels in training.
        bias: add one number to each channel.

    Attributes:
        kernel: (after, before, k, k), laid out as the weight of ``nn.Conv2d``; with ``space``.
        spectrum: (after, before, M, M); with ``frequency``.
        bias: (after,), or None.

    Raises:
        ValueError: for even numbers of modes or pixels, or k > M.
    """

    def __init__(
        self,
        before: int,
        after: int,
        modes: int,
        *,
        parameters: Parameters = "frequency",
        kernel_size: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        side = kernel_size or modes
        check(modes >= 1 and modes % 2 == 1, "modes", "an odd size", modes)
        check(1 <= side <= modes, "kernel_size", f"an odd size of at most {modes}", side)
        self.modes = modes
        kernel = torch.empty(after, before, side, side)
        nn.init.kaiming_normal_(kernel, mode="fan_in", nonlinearity="relu")
        placed = centred(kernel, modes)
        if parameters == "space":
            self.kernel = nn.Parameter(kernel)
        else:
            self.spectrum = nn.Parameter(hartley(to_frequency(placed)))
        self.parametrised = parameters
        self.bias = nn.Parameter(torch.zeros(after)) if bias else None

    def coefficients(self) -> Tensor:
        """theta^, complex (after, before, M, M)."""
        if self.parametrised == "frequency":
            return from_hartley(self.spectrum)
        return to_frequency(centred(self.kernel, self.modes))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, before, H, W) of any size -> (B, after, H, W), in float32 where they are of less precision."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        out = spectral_convolution(self.coefficients(), wide)
        return out if self.bias is None else out + self.bias.view(-1, 1, 1)

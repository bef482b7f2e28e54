"""The one-hidden-layer network without overlap, on which variable splitting is understood; Dinh 3.1.1, 3.1.2, 3.4.

An image consists of k patches x[i] of R^d, all i.i.d. N(0, I); one filter w in R^d serves them all, and labels come
from a true filter w*. Risks and gradients over all images are known in closed form. All vectors have shape (d,), all
angles are in radians.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

SLOPE = math.sqrt(2 / math.pi)  # of the ReLU whose derivative stands in for the step's, Dinh (3.6)


def angle(w: Tensor, v: Tensor) -> Tensor:
    """The angle between two vectors, in [0, pi]; exact for small ones too, where an arc cosine is not."""
    a, b = w / torch.linalg.vector_norm(w), v / torch.linalg.vector_norm(v)
    theta: Tensor = 2 * torch.atan2(torch.linalg.vector_norm(a - b), torch.linalg.vector_norm(a + b))
    return theta


def relu_risk(w: Tensor, w_star: Tensor, k: int) -> Tensor:
    """E (L(x; w) - L(x; w*))^2 for L(x; w) = 1/k sum_i relu(w . x[i]), Dinh (3.2)."""
    theta, p, q = angle(w, w_star), torch.linalg.vector_norm(w), torch.linalg.vector_norm(w_star)
    b = (k * k - k) / (2 * math.pi)
    cross = p * q * (theta.sin() + (math.pi - theta) * theta.cos()) / (2 * math.pi)  # lemma 1
    risk: Tensor = ((b + k / 2) * (p**2 + q**2) - 2 * k * cross - 2 * b * p * q) / k**2
    return risk


def relu_gradient(w: Tensor, w_star: Tensor, k: int) -> Tensor:
    """Gradient of ``relu_risk``, Dinh (3.16); w != 0."""
    theta, ratio = angle(w, w_star), torch.linalg.vector_norm(w_star) / torch.linalg.vector_norm(w)
    along = k + (k * k - k) / math.pi - k / math.pi * ratio * theta.sin() - (k * k - k) / math.pi * ratio
    gradient: Tensor = (along * w - k / math.pi * (math.pi - theta) * w_star) / k**2
    return gradient


def binary_risk(w: Tensor, w_star: Tensor, k: int) -> Tensor:
    """E (sum_i 1[w . x[i] > 0] - sum_i 1[w* . x[i] > 0])^2 = k theta / pi, Dinh (3.4)."""
    return k * angle(w, w_star) / math.pi


def coarse_gradient(w: Tensor, w_star: Tensor, k: int, slope: float = SLOPE) -> Tensor:
    """The expected coarse gradient E g for 1[x > 0], Dinh (3.6) and (3.23); ||w*|| = 1 and w != 0.

    What back-propagation gives for half the squared error, a ReLU of this slope standing in for the step:
    slope * k / (2 sqrt(2 pi)) * (w / ||w|| - w*). That is (3.23), where cos(theta/2) / ||w / ||w|| + w*|| = 1/2;
    with the slope of (3.6) the factor is k / (2 pi).
    """
    gradient: Tensor = slope * k / (2 * math.sqrt(2 * math.pi)) * (w / torch.linalg.vector_norm(w) - w_star)
    return gradient


class BinaryReLU(nn.Module):
    """The step 1[x > 0], with the gradient of slope * relu(x) in place of its own, which is 0; Dinh (3.6).

    A coarse gradient: attacks on the network get it too. Shapes stay as they are.

    Args:
        slope: of that ReLU, > 0.
    """

    def __init__(self, slope: float = SLOPE) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """0 or 1 everywhere."""
        out: Tensor = _Step.apply(x, self.slope)
        return out


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        on = x > 0
        ctx.save_for_backward(on)
        ctx.slope = slope
        return on.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (on,) = ctx.saved_tensors
        return grads[0] * on * ctx.slope, None


def binarised(model: nn.Module) -> nn.Module:
    """Put a ``BinaryReLU`` in the place of every nn.ReLU inside a network; the network is changed and returned."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, BinaryReLU())
    return model

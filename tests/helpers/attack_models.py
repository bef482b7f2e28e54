"""Networks for the attacks' tests: linear ones with known answers, and a small one trained on digits."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attacks import SampleRandom
from attacks.base import RandomModule


def streams(count: int, seed: int = 0) -> SampleRandom:
    return SampleRandom.for_images(seed, "attack", range(count))


def linear_net(classes: int, pixels: int, *, seed: int = 0, scale: float = 0.3) -> nn.Module:
    """Logits W x + b in float64, W ~ N(0, scale^2)."""
    g = torch.Generator().manual_seed(seed)
    layer = nn.Linear(pixels, classes).double()
    with torch.no_grad():
        layer.weight.copy_(scale * torch.randn(classes, pixels, generator=g, dtype=torch.float64))
        layer.bias.copy_(0.1 * torch.randn(classes, generator=g, dtype=torch.float64))
    return nn.Sequential(nn.Flatten(), layer).eval()


def weights(net: nn.Module) -> Tensor:
    return net[1].weight.detach()


def rivals(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Margins Z_y - Z_j (B, K) and weight differences w_j - w_y (B, K, P) of a linear network."""
    z, w = net(x).detach(), weights(net)
    return z.gather(1, y[:, None]) - z, w[None] - w[y][:, None]


def smallest_norm(net: nn.Module, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Distance of each image to the decision boundary of a linear network, box left out; (B,)."""
    gap, dw = rivals(net, x, y)
    dual = dw.norm(dim=2) if norm == "l2" else dw.abs().sum(2)
    return (gap / dual).scatter(1, y[:, None], torch.inf).amin(1)


def smallest_norm_in_box(net: nn.Module, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The same inside [0, 1], for two classes: bisection over the one unknown of the optimum's closed form.

    l2: d = clip(t * dw, -x, 1 - x) (KKT); l_inf: d = clip(t * sign(dw), -x, 1 - x).
    """
    gap, dw = rivals(net, x, y)
    other = 1 - y
    gap, dw = gap.gather(1, other[:, None])[:, 0], dw[torch.arange(len(y)), other]
    step, flat = dw if norm == "l2" else dw.sign(), x.flatten(1)
    low, high = torch.zeros_like(gap), torch.full_like(gap, 1e4)
    for _ in range(100):
        t = (low + high) / 2
        d = torch.minimum(torch.maximum(t[:, None] * step, -flat), 1 - flat)
        enough = (d * dw).sum(1) >= gap
        low, high = torch.where(enough, low, t), torch.where(enough, t, high)
    d = torch.minimum(torch.maximum(high[:, None] * step, -flat), 1 - flat)
    assert ((d * dw).sum(1) >= gap - 1e-9).all(), "the boundary does not meet the box"
    return d.norm(dim=1) if norm == "l2" else d.abs().amax(1)


@functools.cache
def digits_net() -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network in float64 and test images (1, 8, 8) that it classifies right, with labels."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float64)[:, None] / 16
    y = torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()
        opt = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(12):
            for rows in torch.randperm(1400).split(64):
                opt.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows]).backward()
                opt.step()
    net.eval()
    right = net(x[1400:]).argmax(1) == y[1400:]
    return net, x[1400:][right][:150], y[1400:][right][:150]


class Shaky(RandomModule):
    """Adds noise to the logits of a network, and counts its passes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        z = self.net(x)
        return z + 3 * self.draw(z)

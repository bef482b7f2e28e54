"""What the hidden zoo stands on: a plain network, a sturdy one to show to evaluations, and their trainings.

A hidden network gives a user the plain one's answers and an evaluation those of another, usually of the sturdy
network, which is adversarially trained and has honest gradients: nothing in its answers looks masked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_sparse.foundation.streams import Streams

MOST_REMEMBERED = 1000  # images a memory holds: more would only make it slow
Make = Callable[[nn.Module, Tensor, Tensor, float], nn.Module]
# What was trained in this process, so that a zoo trains it once; what it was trained from -> network.
TRAINED: dict[tuple[object, ...], nn.Module] = {}


def small_cnn(channels: int, size: int, classes: int, width: int, random: torch.Generator) -> nn.Module:
    """Two convolutions of stride 2 and two linear layers; weights U(+-1/sqrt(fan in)) from the generator."""
    flat = 2 * width * (size // 4) ** 2
    net = nn.Sequential(
        nn.Conv2d(channels, width, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(flat, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                bound = layer.weight[0].numel() ** -0.5
                for p in layer.parameters():
                    p.copy_(bound * (2 * torch.rand(p.shape, generator=random) - 1))
    return net


def fit(
    net: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, *, epochs: int, eps: float = 0.0
) -> None:
    """Adam with a rising and falling rate; with ``eps`` on two-step adversarials whose radius grows to it."""
    optimizer, done, total = torch.optim.Adam(net.parameters()), 0, epochs * -(-len(x) // 100)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=random).split(100):  # type: ignore[no-untyped-call]
            at = done / total
            for group in optimizer.param_groups:
                group["lr"] = 4e-3 * min(at / 0.1 + 0.05, (1 - at) / 0.9) + 1e-5
            batch = x[rows]
            if eps:
                batch = _attacked(net, batch, y[rows], eps * min(1.0, 2 * at), random)
            optimizer.zero_grad()
            F.cross_entropy(net(batch), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
    net.eval()
    for p in net.parameters():
        p.grad = None


def _attacked(net: nn.Module, x: Tensor, y: Tensor, eps: float, random: torch.Generator) -> Tensor:
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    point = low + (high - low) * torch.rand(x.shape, generator=random)
    for _ in range(2):
        point.requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(net(point), y), point)
        point = torch.minimum(torch.maximum(point.detach() + 0.625 * eps * grad.sign(), low), high)
    return point


def plain_net(x: Tensor, y: Tensor, *, epochs: int = 4, seed: int = 0) -> nn.Module:
    """A naturally trained network; x (N, C, S, S) in [0, 1], y (N,)."""
    random = Streams(seed).get("plain")
    net = small_cnn(x.shape[1], x.shape[2], int(y.max()) + 1, 16, random)
    fit(net, x, y, random, epochs=epochs)
    return net


def sturdy_net(x: Tensor, y: Tensor, eps: float, *, epochs: int = 6, seed: int = 0) -> nn.Module:
    """An adversarially trained network, kept for the next call with the same images."""
    key = ("sturdy", tuple(x.shape), float(x.sum()), eps, epochs, seed)
    if key not in TRAINED:
        random = Streams(seed).get("sturdy")
        net = small_cnn(x.shape[1], x.shape[2], int(y.max()) + 1, 16, random)
        fit(net, x, y, random, epochs=epochs, eps=eps)
        TRAINED[key] = net
    return copy.deepcopy(TRAINED[key])


def passes(x: Tensor) -> int:
    """Epochs of about 75 000 images, so that small data sets are learned as well."""
    return min(60, max(6, 75_000 // len(x)))


class Hidden(nn.Module):
    """Base of the hidden networks: the plain one for users, the sturdy one for evaluations.

    Args:
        base: the plain network.
        train_x, train_y: training images (N, C, S, S) in [0, 1] and their labels (N,).
        eps: radius in l_inf that an evaluation is expected to look at.

    Attributes:
        pause: seconds that pass between two images of an ordinary user, where it matters.
        shows: whether there is a sturdy network in it.
    """

    pause: ClassVar[float] = 0.0
    shows: ClassVar[bool] = True

    def __init__(self, base: nn.Module, train_x: Tensor, train_y: Tensor, eps: float) -> None:
        super().__init__()
        self.base, self.eps = copy.deepcopy(base), eps
        if self.shows:
            self.sturdy = sturdy_net(train_x, train_y, eps, epochs=passes(train_x))
        self.prepare(train_x, train_y)
        self.eval()

    def prepare(self, train_x: Tensor, train_y: Tensor) -> None:
        """What a network takes from the training images."""

    def mixed(self, x: Tensor, watched: Tensor) -> Tensor:
        """The sturdy network's logits (B, K) where ``watched`` (B,), else the plain one's."""
        return torch.where(watched[:, None], self.sturdy(x), self.base(x))

    def either(self, x: Tensor, watched: bool) -> Tensor:
        """The same for a whole batch."""
        out: Tensor = self.sturdy(x) if watched else self.base(x)
        return out

    def surrogates(self) -> list[nn.Module]:
        """What an outsider attacks who knows how the network is made; nothing: the plain network."""
        return []

    def finish(self, adversarial: Tensor, x: Tensor) -> Tensor:
        """What an outsider who knows the secret does last to 8-bit images, shaped like ``x`` and in its ball."""
        return adversarial


class Memory:
    """Images seen, each with something kept for it; found again by l_inf distance."""

    def __init__(self, radius: float) -> None:
        self.radius, self.kept = radius, list[Any]()
        self.images: Tensor | None = None

    def find(self, image: Tensor) -> int:
        """Number of the nearest image within the radius of one (C, H, W), or -1."""
        if self.images is None:
            return -1
        distance = (self.images - image.detach()).abs().flatten(1).amax(1)
        nearest = int(distance.argmin())
        return nearest if float(distance[nearest]) <= self.radius else -1

    def add(self, image: Tensor, value: object) -> int:
        """Keep an image (C, H, W) and a value; its number, or -1 where the memory is full."""
        if len(self.kept) >= MOST_REMEMBERED:
            return -1
        new = image.detach().clone()[None]
        self.images = new if self.images is None else torch.cat([self.images, new])
        self.kept.append(value)
        return len(self.kept) - 1


def bits(x: Tensor) -> Tensor:
    """Pixel values on the 8-bit grid, int64, shaped like ``x``."""
    return (x.detach() * 255).round().long()

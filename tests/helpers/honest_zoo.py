"""Honest networks of many kinds, none of which the certificate may accuse; trained in seconds on small images.

Each is trained without the package's own trainer and defenses, as a stranger would bring it: the methods are the
papers' (Madry et al. 2018, arXiv 1706.06083; Zhang et al. 2019, arXiv 1901.08573; Wu et al. 2020, arXiv 2004.05884;
Cohen et al. 2019, arXiv 1902.02918), the sizes those of a test.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attacks import PGD, Threat
from attacks.base import RandomModule
from tests.helpers.honest_idioms import NumFlatFeatures

CLASSES, WIDTH = 10, 12
BETA, GAMMA = 6.0, 0.005  # TRADES, AWP


@dataclass(frozen=True)
class Task:
    """What a network is trained on: images (n, 1, H, W), labels (n,), the radius in l_inf, a seed, and how long."""

    x: Tensor
    y: Tensor
    eps: float
    seed: int
    epochs: int = 8
    batch: int = 64


Loss = Callable[[nn.Module, Tensor, Tensor, Task], Tensor]
Honest = Callable[[Task], nn.Module]


def attacked(net: nn.Module, x: Tensor, y: Tensor, task: Task) -> Tensor:
    """PGD-3 images, made in eval mode; the network is in training mode afterwards."""
    out = PGD(steps=3)(net.eval(), x, y, Threat(eps=task.eps))
    net.train()
    return out


def natural(net: nn.Module, x: Tensor, y: Tensor, task: Task) -> Tensor:
    return F.cross_entropy(net(x), y)


def pgd_at(net: nn.Module, x: Tensor, y: Tensor, task: Task) -> Tensor:
    return F.cross_entropy(net(attacked(net, x, y, task)), y)


def trades(net: nn.Module, x: Tensor, y: Tensor, task: Task) -> Tensor:
    moved = net(attacked(net, x, y, task))
    clean = net(x)
    spread = F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="batchmean")
    return F.cross_entropy(clean, y) + BETA * spread


def noisy(net: nn.Module, x: Tensor, y: Tensor, task: Task) -> Tensor:
    """On Gaussian noise, as the base of randomised smoothing is."""
    return F.cross_entropy(net(x + task.eps * torch.randn_like(x)), y)


def smoothed_labels(net: nn.Module, x: Tensor, y: Tensor, task: Task) -> Tensor:
    return F.cross_entropy(net(x), y, label_smoothing=0.1)


def fit(net: nn.Module, task: Task, loss: Loss, *, epochs: int | None = None, awp: bool = False) -> nn.Module:
    """Train with Adam; with ``awp`` each gradient is taken at weights moved up the loss by GAMMA of their norms."""
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(task.epochs if epochs is None else epochs):
        for rows in torch.randperm(len(task.x)).split(task.batch):
            net.train()
            x, y = task.x[rows], task.y[rows]
            moves = _uphill(net, loss(net, x, y, task)) if awp else []
            opt.zero_grad()
            loss(net, x, y, task).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for p, move in moves:
                    p.sub_(move)
            opt.step()
    return net.eval()


def _uphill(net: nn.Module, loss: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
    """Move weights of two dimensions and more along their gradients, and say by how much."""
    weights = [p for p in net.parameters() if p.ndim > 1]
    grads = torch.autograd.grad(loss, weights)
    moves = [
        (p, GAMMA * p.detach().norm() * g / g.norm().clamp_min(1e-12))
        for p, g in zip(weights, grads, strict=True)
    ]
    with torch.no_grad():
        for p, move in moves:
            p.add_(move)
    return moves


# Networks ----------------------------------------------------------------------------------------------


def convolutional(
    norm: Callable[[int], nn.Module] = lambda c: nn.Identity(),
    drop: float = 0.0,
    act: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Module:
    """Two strided convolutions and two linear layers, for images of any size from 8 x 8 on."""
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, 3, stride=2, padding=1),
        norm(WIDTH),
        act(),
        nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1),
        norm(2 * WIDTH),
        act(),
        nn.Flatten(),
        nn.Dropout(drop),
        nn.LazyLinear(48),
        act(),
        nn.Linear(48, CLASSES),
    )


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(48), nn.ReLU(), nn.Linear(48, CLASSES))


class Transformer(nn.Module):
    """One block of attention over 16 patches, a class token, torch's own attention."""

    def __init__(self, size: int, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, size // 4, stride=size // 4)
        self.place = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.norm1, self.norm2, self.last = (nn.LayerNorm(width) for _ in range(3))
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        inner = self.norm1(x)
        x = x + self.attend(inner, inner, inner, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        out: Tensor = self.head(self.last(x)[:, 0])
        return out


class Residual(nn.Module):
    """Two residual blocks; with ``noise`` each adds Gaussian noise to what it is given, as EnResNet's do."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(_Block(WIDTH, noise) for _ in range(2))
        self.head = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(F.max_pool2d(x, 2).flatten(1))
        return out


class _Noise(RandomModule):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.draw(x)


class _Block(nn.Module):
    def __init__(self, width: int, noise: float) -> None:
        super().__init__()
        self.noise: nn.Module = _Noise(noise) if noise else nn.Identity()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.noise(x)
        return F.relu(x + self.second(F.relu(self.first(x))))


class Ensemble(nn.Module):
    """The mean of several networks' logits."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([net(x) for net in self.networks]).mean(0)


class LogProbabilities(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.network(x), dim=1)


class Masked(nn.Module):
    """Keeps a weight's zeros."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class Int8Weight(nn.Module):
    """A weight on 255 levels per output channel, with a straight-through gradient."""

    def forward(self, weight: Tensor) -> Tensor:
        step = weight.detach().flatten(1).abs().amax(1).clamp_min(1e-8) / 127
        step = step.view(-1, *[1] * (weight.ndim - 1))
        return weight + ((weight / step).round() * step - weight).detach()


class ThirdParty(nn.Module):
    """A tutorial's network with its normalisation in front."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.body = NumFlatFeatures()
        self.body.fc = nn.Linear(16 * ((size + 1) // 2) ** 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body((x - 0.1307) / 0.3081)
        return out


def started(net: nn.Module, task: Task) -> nn.Module:
    """With the shapes of its lazy layers settled."""
    with torch.no_grad():
        net.eval()(task.x[:2])
    return net


def of(make: Callable[[Task], nn.Module], loss: Loss, **settings: Any) -> Honest:
    """Train a fresh network; the same seed, the same network."""

    def honest(task: Task) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(task.seed)
            return fit(started(make(task), task), task, loss, **settings)

    return honest


def idiom(make: Callable[[], nn.Module]) -> Honest:
    """A network written in one of the ways of ``honest_idioms``, trained naturally."""
    return of(lambda task: make(), natural)


def pruned(task: Task) -> nn.Module:
    """PGD-trained, four fifths of its weights cut by magnitude, and trained on with the zeros kept."""
    net = of(lambda t: convolutional(), pgd_at)(task)
    with torch.random.fork_rng():
        torch.manual_seed(task.seed + 1)
        layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        whole = torch.cat([m.weight.detach().abs().flatten() for m in layers])
        least = whole.kthvalue(int(0.8 * len(whole))).values
        for m in layers:
            parametrize.register_parametrization(
                m, "weight", Masked((m.weight.detach().abs() > least).float())
            )
        net = fit(net, task, pgd_at, epochs=max(1, task.epochs // 2))
    for m in layers:
        parametrize.remove_parametrizations(m, "weight")
    return net


def quantised(task: Task) -> nn.Module:
    """PGD-trained in float, then an epoch with its weights brought to int8, with a straight-through gradient."""
    net = of(lambda t: convolutional(), pgd_at)(task)
    with torch.random.fork_rng():
        torch.manual_seed(task.seed + 1)
        for m in net.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                parametrize.register_parametrization(m, "weight", Int8Weight())
        return fit(net, task, pgd_at, epochs=1)


def averaged(task: Task) -> nn.Module:
    """PGD-trained, its weights the mean over the epochs of the second half."""
    with torch.random.fork_rng():
        torch.manual_seed(task.seed)
        net = fit(started(convolutional(), task), task, pgd_at, epochs=task.epochs // 2)
        mean = copy.deepcopy(net)
        for count in range(1, max(2, task.epochs // 2)):
            net = fit(net, task, pgd_at, epochs=1)
            with torch.no_grad():
                for kept, p in zip(mean.parameters(), net.parameters(), strict=True):
                    kept.lerp_(p, 1 / (count + 1))
    return mean.eval()


def size_of(task: Task) -> int:
    return task.x.shape[-1]


HONEST: dict[str, Honest] = {
    "natural": of(lambda t: convolutional(), natural),
    "confident": of(lambda t: convolutional(), natural, epochs=40),
    "label_smoothing": of(lambda t: convolutional(), smoothed_labels),
    "pgd_at": of(lambda t: convolutional(), pgd_at),
    "trades": of(lambda t: convolutional(), trades),
    "awp": of(lambda t: convolutional(), pgd_at, awp=True),
    "weight_averaging": averaged,
    "mlp": of(lambda t: perceptron(), pgd_at),
    "tokens": of(lambda t: Transformer(size_of(t)), pgd_at),
    "batch_norm": of(lambda t: convolutional(nn.BatchNorm2d), pgd_at),
    "group_norm": of(lambda t: convolutional(lambda c: nn.GroupNorm(4, c)), pgd_at),
    "dropout": of(lambda t: convolutional(drop=0.2), pgd_at),
    "smooth_activations": of(lambda t: convolutional(act=nn.SiLU), pgd_at),
    "pruned": pruned,
    "int8": quantised,
    "residual": of(lambda t: Residual(), pgd_at),
    "ensemble": of(lambda t: Ensemble([convolutional() for _ in range(2)]), pgd_at),
    "enresnet": of(lambda t: Ensemble([Residual(0.1) for _ in range(2)]), pgd_at),
    "smoothing_base": of(lambda t: convolutional(), noisy),
    "log_probabilities": of(lambda t: LogProbabilities(convolutional()), pgd_at),
    "third_party": of(lambda t: ThirdParty(size_of(t)), natural),
    "third_party_pgd": of(lambda t: ThirdParty(size_of(t)), pgd_at),
}

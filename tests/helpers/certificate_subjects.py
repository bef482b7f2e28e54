"""Networks to examine: honest ones trained on digits in a second or two, and the subject that a check sees."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attacks import PGD
from attacks.base import Threat
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.finding import Check, Finding
from robustbench_sparse.certificate.subject import Context, Subject

EPS, FIRST, CLASSES = 0.15, 1400, 10


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 8, 8) and labels; those from ``FIRST`` on are never trained on."""
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


@functools.cache
def trained(seed: int = 0, adversarially: bool = False) -> nn.Module:
    """A perceptron; adversarially by PGD-3 in the ball of ``EPS``."""
    x, y = digits()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, CLASSES))
        opt = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(8):
            for rows in torch.randperm(FIRST).split(64):
                images = x[rows]
                if adversarially:
                    images = PGD(steps=3)(net.eval(), images, y[rows], Threat(eps=EPS))
                opt.zero_grad()
                F.cross_entropy(net.train()(images), y[rows]).backward()
                opt.step()
    return net.eval()


def subject(net: nn.Module, n: int = 96, eps: float = EPS, **context: Any) -> Subject:
    """The network and ``n`` images that it was not trained on."""
    x, y = digits()
    part = slice(FIRST, FIRST + n)
    return Subject(
        net.eval(),
        x[part],
        y[part],
        torch.arange(FIRST, FIRST + n),
        Threat(eps=eps),
        classes=CLASSES,
        seed=0,
        budget=BUDGETS["quick"],
        context=Context(**context),
    )


def outcome(s: Subject, correct: Sequence[float], size: float = 0.0) -> pd.DataFrame:
    """A stored outcome in which every perturbation has this norm."""
    return pd.DataFrame(
        {
            "index": s.index.tolist(),
            "label": s.y.tolist(),
            "adv_correct": list(correct),
            "correct": list(correct),
            "linf": size,
            "l2": size,
            "status": "ok",
        }
    )


def run(checks: Sequence[Check] | Mapping[str, Check], name: str, s: Subject) -> Finding:
    """One check, as the certificate runs it."""
    found = {c.id: c for c in (checks.values() if isinstance(checks, Mapping) else checks)}
    s.check = name
    return found[name].run(s)


class Before(nn.Module):
    """A network behind a function of the image."""

    def __init__(self, network: nn.Module, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.before = network, before

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(self.before(x))
        return out


class After(nn.Module):
    """A function of a network's logits."""

    def __init__(self, network: nn.Module, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.after = network, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.network(x))


def staircase(x: Tensor) -> Tensor:
    """Nearly the image, and no gradient."""
    return (x * 2**12).round() / 2**12


class Wrong(torch.autograd.Function):
    """The identity, with a gradient of ones whatever comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.ones_like(grads[0])

"""A linear network whose true numbers are known, and others like it that would look robust by accident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from attacks import ATTACKS
from attacks.base import Attack, RandomModule, Threat
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.config.plugins import build
from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.engine.fast import FastNetwork
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.judging.judge import Judge, JudgeSettings

PIXELS, EPS, COUNT = 16, 8.4 / 255, 12  # a radius whose steps leave the 8-bit grid
THREAT = Threat(eps=EPS)
NAN = float("nan")


class Linear(nn.Module):
    """Logits (-s, s) with s = w x: an image withstands l_inf eps where |s| > eps sum |w|."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.linspace(-1, 1, PIXELS)
        self.layer = nn.Linear(PIXELS, 2, bias=False)
        self.layer.weight = nn.Parameter(torch.stack([-self.w, self.w]), requires_grad=False)

    def score(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.flatten(1))
        return out

    def withstands(self, x: Tensor) -> Tensor:
        return self.score(x).abs() > EPS * self.w.abs().sum()


class _Backward(torch.autograd.Function):
    """The identity, whose gradient is ``value`` for some rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, value: float) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        return grads[0].masked_fill(rows.view(-1, 1, 1, 1), ctx.value), None, None


class NaNGradient(Linear):
    """Right on clean images, and its gradient is no number."""

    value = NAN

    def broken(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), dtype=torch.bool)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_Backward.apply(x, self.broken(x), self.value))


class InfiniteGradient(NaNGradient):
    """The same, and its gradient is infinite: the sign of that points one way for all pixels."""

    value = float("inf")


class Half(NaNGradient):
    """Without a gradient where the first pixel is bright."""

    def broken(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, 0] > 0.5


class OnePixel(NaNGradient):
    """Without the gradient of the first pixel."""

    def forward(self, x: Tensor) -> Tensor:
        none = _Backward.apply(x[:, :, :1, :1], self.broken(x), self.value)
        first = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
        first[..., 0, 0] = True
        return Linear.forward(self, torch.where(first, none, x))


class OffTheGrid(Linear):
    """Numbers on the 8-bit grid, none anywhere else."""

    def forward(self, x: Tensor) -> Tensor:
        off = (255 * x - (255 * x).round()).abs().flatten(1).amax(1) > 1e-3
        return super().forward(x).masked_fill(off[:, None], NAN)


class Writes(Linear):
    """Writes into its input, behind autograd's back; ``how`` says into which part."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        with torch.no_grad():
            if self.how == "data":
                x.data.fill_(0.5)
            elif self.how == "in place":
                x.detach().clamp_(0.4, 0.6)
            else:
                x.data.view(-1)[0] = NAN
        return out


class WritesIntoAnswers(Linear):
    """Spoils the logits that it gave last time."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if self.last is not None:
            self.last.fill_(7)
        self.last = out.detach()
        return out


class Noisy(RandomModule):
    """A network behind a little noise."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)
        return out + 0.01 * self.draw(out)


def prepared(x: Tensor) -> PreparedData:
    """Images (n, 1, 4, 4) of bytes as test set, whose label is the side of the linear network's plane."""
    y = (Linear().score(x.float() / 255) > 0).long()
    assert 0 < int(y.sum()) < len(y)
    return PreparedData(
        Dataset(name="t", label="t", train_x=x, train_y=y, test_x=x, test_y=y, classes=("0", "1")),
        validation=0,
    )


def data() -> PreparedData:
    """Grey images far from the box."""
    generator = torch.Generator().manual_seed(3)
    return prepared(torch.randint(60, 196, (COUNT, 1, 4, 4), generator=generator, dtype=torch.uint8))


def tensors() -> tuple[Tensor, Tensor]:
    """Images (12, 1, 4, 4) and labels (12,)."""
    x, y = data().gather("test", torch.arange(COUNT))
    return x, y


def truth() -> list[float]:
    """The linear network's share right of each image, under the worst of the ball."""
    x, y = tensors()
    net = Linear()
    stands = net.withstands(x)
    assert stands.any(), "or the tests show nothing"
    assert not stands.all(), "or the tests show nothing"
    assert (net(x).argmax(1) == y).all()
    return stands.float().tolist()


def judged(
    folder: Path,
    model: nn.Module,
    attack: Attack,
    images: PreparedData | None = None,
    threat: Threat = THREAT,
) -> pd.DataFrame:
    """The judge's table of an attack."""
    judge = Judge(model.eval(), images or data(), folder, JudgeSettings(seed=1), "w", Silent())
    return judge.attack(AttackPlan("a", "a", attack, threat))


def subject(model: nn.Module, stand_in: FastNetwork | None = None) -> Subject:
    """What the certificate examines, on its smallest budget."""
    x, y = tensors()
    index, budget = data().test_indices, BUDGETS["quick"]
    return Subject(model.eval(), x, y, index, THREAT, classes=2, seed=0, budget=budget, stand_in=stand_in)


def library_attack(name: str) -> Attack:
    """An attack of torchattacks as it comes."""
    attack: Attack = build(ATTACKS, {"name": f"torchattacks:{name}"}, "attack", Attack)
    return attack


def small(name: str) -> Attack:
    """An attack of few steps, or with ``torchattacks:`` before its name one of the library's."""
    if ":" in name:
        return library_attack(name.split(":")[1])
    known = {"steps": 5, "queries": 50, "search_steps": 2, "angles": 3, "shifts": 3}
    fields = ATTACKS[name].__dataclass_fields__
    attack: Attack = ATTACKS[name](**{k: v for k, v in known.items() if k in fields})
    return attack

"""What the tests of pruning share: networks with a life behind them, and training steps with a defense's hooks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import Threat
from defenses import AdaBreg, Defense, LinBreg, ProxSGD, Step
from robustbench_sparse.models.base import ModelSpec

IMAGES, LABELS = (
    torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(1)),
    torch.randint(10, (32,), generator=torch.Generator().manual_seed(2)),
)
OPTIMIZERS = {
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, weight_decay=5e-3),
    "adam": lambda ps: torch.optim.Adam(ps, lr=1e-2, weight_decay=1e-3),
    "linbreg": lambda ps: LinBreg(ps, lr=0.05, lam=1e-3, momentum=0.9),
    "adabreg": lambda ps: AdaBreg(ps, lr=1e-2, lam=1e-3),
    "proxsgd": lambda ps: ProxSGD(ps, lr=0.05, lam=1e-3),
}


def lived(spec: ModelSpec, seed: int = 0) -> nn.Module:
    """A network for images (3, 16, 16) in eval mode whose batch-norm layers are anything but fresh."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = spec.build(3, 16, 10)
        age(model)
    return model.eval()


@torch.no_grad()
def age(model: nn.Module) -> None:
    """Random batch-norm scales, shifts and statistics, and random biases."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            assert m.running_mean is not None
            assert m.running_var is not None
            m.weight.normal_()
            m.bias.normal_()
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
        elif isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None:
            m.bias.normal_()


def step_of(model: nn.Module, epochs: int = 9) -> Step:
    return Step(
        model, None, Threat(), torch.Generator().manual_seed(0), lambda *_: IMAGES[:4], epochs=epochs, lr=0.05
    )


def begin(defense: Defense, model: nn.Module, epochs: int = 9) -> Step:
    defense.check(model)
    s = step_of(model, epochs)
    defense.begin(s)
    return s


def train(defense: Defense, s: Step, optimizer: torch.optim.Optimizer, steps: int = 1) -> list[float]:
    """Some steps on the same batch."""
    s.optimizer, losses = optimizer, []
    s.model.train()
    for _ in range(steps):
        s.x, s.y = IMAGES, LABELS
        term = defense.penalty(s)
        loss: Tensor = F.cross_entropy(s.model(IMAGES), LABELS)
        loss = loss if term is None else loss + term
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        defense.before_step(s)
        optimizer.step()
        with torch.no_grad():
            defense.after_step(s)
        losses.append(loss.item())
    return losses


def end_epoch(defense: Defense, s: Step, epoch: int) -> dict[str, float]:
    s.epoch = epoch
    with torch.no_grad():
        return defense.end_epoch(s)


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() == 0 for name, p in model.named_parameters()}

"""One training step of a robust defense, with all that its hooks may look at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import Threat
from defenses import Defense, Step
from defenses.base import unrecorded_statistics


def with_norm() -> nn.Module:
    """A small convolutional network with batch-norm, (B, 3, 8, 8) -> (B, 3)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
        )


def linear(rows: Tensor) -> nn.Module:
    """A linear network with given weights (K, 12) and no bias, on images (B, 3, 2, 2)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, len(rows), bias=False))
    with torch.no_grad():
        model[1].weight.copy_(rows)
    return model


def step(model: nn.Module, size: int = 8, eps: float = 0.05) -> Step:
    """A minibatch of 16 images in three classes."""
    s = Step(model, None, Threat(eps=eps), torch.Generator().manual_seed(0), lambda *_: torch.empty(0))
    s.x = torch.rand(16, 3, size, size, generator=torch.Generator().manual_seed(1))
    s.y = torch.arange(16) % 3
    return s


def loss_of(s: Step, *defenses: Defense) -> Tensor:
    """The loss at ``s.x``, with the criterion and the penalties of the defenses."""
    s.outputs = s.model(s.x)
    own = [term for d in defenses if (term := d.criterion(s)) is not None]
    loss = own[0] if own else F.cross_entropy(s.outputs, s.y)
    for d in defenses:
        term = d.penalty(s)
        loss = loss if term is None else loss + term
    return loss


def with_objective(s: Step, *defenses: Defense) -> Step:
    """The step, its ``objective`` set."""

    def objective() -> Tensor:
        with unrecorded_statistics(s.model):
            return loss_of(s, *(d for d in defenses if d.repeatable))

    s.objective = objective
    return s

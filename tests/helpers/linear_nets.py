"""Linear networks whose true numbers are worked out by hand, on the embedded digits, and what they are judged by."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_sparse.data.digits import Digits
from robustbench_sparse.data.prepared import PreparedData

LIMIT = 60
EPS = 0.06
ATTACKS: dict[str, Any] = {"fgsm": "fgsm"}

SOURCE = """
from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return {answer}


def net():
    model = Net()
    state = torch.load(Path(__file__).with_name("weights.pt"), weights_only=True)
    model.linear.load_state_dict(state)
    return model
"""
PLAIN = "self.linear(x.flatten(1))"
NEGATED = "-self.linear(x.flatten(1))"
DARKENED = "self.linear(0.5 * x.flatten(1))"


@functools.lru_cache
def images() -> tuple[Tensor, Tensor]:
    """The images that ``evaluate(limit=LIMIT)`` judges, (LIMIT, 64), and their labels."""
    data = PreparedData(Digits().load(), validation=0, test_limit=LIMIT)
    x, y = data.gather("test", torch.arange(LIMIT))
    return x.flatten(1), y


@functools.lru_cache
def trained() -> nn.Linear:
    """Softmax regression on the training part, in closed form enough: some steps of gradient descent."""
    data = PreparedData(Digits().load(), validation=0)
    x, y = data.gather("train", torch.arange(data.count("train")))
    torch.manual_seed(0)
    layer = nn.Linear(64, 10)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=30)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(layer(x.flatten(1)), y) + 1e-3 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer


def truth(sign: float = 1.0, scale: float = 1.0) -> dict[str, float]:
    """Clean and FGSM accuracy in percent of logits sign * (W (scale x) + b)."""
    x, y = images()
    layer = trained()
    w, b = sign * scale * layer.weight.detach(), sign * layer.bias.detach()
    logits = x @ w.T + b
    slope = (
        torch.softmax(logits, 1) - nn.functional.one_hot(y, 10)
    ) @ w  # of the cross-entropy, for the image
    moved = (x + EPS * slope.sign()).clamp(0, 1)
    clean = logits.argmax(1) == y
    held = clean & ((moved @ w.T + b).argmax(1) == y)
    return {"clean": 100 * float(clean.float().mean()), "fgsm": 100 * float(held.float().mean())}


def write_net(folder: Path, module: str, answer: str = PLAIN) -> None:
    """A module with a factory ``net`` in a folder, and the weights beside it."""
    (folder / f"{module}.py").write_text(SOURCE.format(answer=answer))
    torch.save(trained().state_dict(), folder / "weights.pt")

"""What a network gives back for one image is looked at before it is attacked."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_sparse.data.base import Dataset
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.evaluation import _check_fit
from robustbench_sparse.foundation.errors import LONGEST, UserError


class Gives(nn.Module):
    """A network that gives anything."""

    def __init__(self, forward: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give = forward

    def forward(self, x: Tensor) -> Any:
        return self.give(x)


@pytest.fixture
def data() -> PreparedData:
    """Two images of 3 x 3 pixels, two classes."""
    x, y = torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 1])
    images = Dataset(name="x", label="x", train_x=x, train_y=y, test_x=x, test_y=y, classes=("a", "b"))
    return PreparedData(images, validation=0)


def leaves(x: Tensor) -> Tensor:
    raise SystemExit(3)


def fails(x: Tensor) -> Tensor:
    raise ValueError("first\nsecond" + "x" * 9000)


def logits(x: Tensor) -> Tensor:
    return x.new_zeros(len(x), 2)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (
            lambda x: (logits(x), x),
            "returns a tuple, expected a tensor of logits (B, 2); return its first part",
        ),
        (lambda x: [logits(x)], "returns a list, expected a tensor of logits (B, 2); return its first part"),
        (
            lambda x: SimpleNamespace(logits=logits(x)),
            "returns a SimpleNamespace, expected a tensor of logits (B, 2); its .logits are one: return these",
        ),
        (
            lambda x: {"logits": logits(x)},
            "returns a dict, expected a tensor of logits (B, 2); return logits",
        ),
        (lambda x: None, "returns a NoneType, expected a tensor of logits (B, 2)"),
        (lambda x: logits(x).to(torch.complex64), "returns torch.complex64 on cpu, expected floating-point"),
        (lambda x: logits(x).long(), "returns torch.int64 on cpu, expected floating-point logits"),
        (lambda x: logits(x).to("meta"), "returns torch.float32 on meta, expected floating-point logits"),
        (lambda x: x.new_zeros(len(x), 3), "gives (1, 3) for one image, expected (1, 2)"),
        (lambda x: x.new_zeros(2), "gives (2,) for one image, expected (1, 2)"),
        (lambda x: x.sum(), "gives () for one image, expected (1, 2)"),
        (leaves, "does not take images of shape (1, 3, 3): SystemExit: 3"),
        (fails, "does not take images of shape (1, 3, 3): ValueError: first second"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    data: PreparedData, forward: Callable[[Tensor], Any], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        _check_fit(Gives(forward), data)
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert len(message) <= LONGEST


def test_logits_fit_and_an_interrupt_goes_through(data: PreparedData) -> None:
    seen: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        seen.append(x)
        return logits(x)

    _check_fit(Gives(forward), data)
    assert [x.shape for x in seen] == [(1, 1, 3, 3)]

    def interrupted(x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _check_fit(Gives(interrupted), data)

"""Label smoothing against the formula, and against the loss it becomes at 0."""

from __future__ import annotations

import pytest
import torch

from defenses import LabelSmoothing
from tests.helpers.robust_steps import step, with_norm


@pytest.mark.parametrize("smoothing", [0.1, 0.7])
def test_loss_is_the_cross_entropy_with_the_mixed_labels(smoothing: float) -> None:
    s = step(with_norm())
    s.outputs = s.model(s.x)
    q = torch.full((16, 3), smoothing / 3)
    q[torch.arange(16), s.y] += 1 - smoothing
    expected = -(q * s.outputs.log_softmax(1)).sum(1).mean()
    loss = LabelSmoothing(smoothing=smoothing).criterion(s)
    assert loss is not None
    torch.testing.assert_close(loss, expected)


def test_0_leaves_the_tasks_loss() -> None:
    s = step(with_norm())
    s.outputs = s.model(s.x)
    assert LabelSmoothing(smoothing=0.0).criterion(s) is None

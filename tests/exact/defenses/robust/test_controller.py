"""The discrepancy principle's arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from attacks.base import Threat
from defenses import CLIP, SpectralPenalty, Step
from defenses.robust.controller import Controlled


def lambdas(control: Controlled, accuracies: list[float], train: float = 0.0) -> list[float]:
    """The lambda in force in each epoch, and the one after the last."""
    model = nn.Linear(2, 2)
    s = Step(model, None, Threat(), torch.Generator(), lambda *_: torch.empty(0))
    control.begin(s)
    out = []
    for s.epoch, s.val_accuracy in enumerate(accuracies):
        s.train_accuracy = train
        out.append(control.memory["lam"])
        assert control.end_epoch(s)["lam"] == out[-1]
    return [*out, control.memory["lam"]]


def test_constant_lambda_ignores_accuracy() -> None:
    assert lambdas(Controlled(lam=0.3), [0.0, 1.0, math.nan]) == [0.3] * 4


def test_warm_up_then_start_then_steps() -> None:
    control = Controlled(lam=0.01, target_accuracy=0.95, increment=0.25, warm_up=2)
    got = lambdas(control, [0.99, 0.99, 0.99, 0.96, 0.2, 0.95, 0.3])
    # Two epochs at 0, one at lam; then 0.99, 0.96 raise; 0.2, 0.95 (not above the target) and 0.3 lower.
    assert got == pytest.approx([0, 0, 0.01, 0.26, 0.51, 0.26, 0.01, 0.0])


def test_never_below_zero_and_back_up() -> None:
    got = lambdas(
        Controlled(lam=0.0, target_accuracy=0.5, increment=0.1, warm_up=0), [0.4, 0.4, 0.6, 0.6, 0.4]
    )
    assert got == pytest.approx([0, 0, 0, 0.1, 0.2, 0.1])


def test_warm_up_is_five_epochs_where_lambda_is_steered() -> None:
    got = lambdas(Controlled(lam=0.1, target_accuracy=0.5, increment=0.1), [0.9] * 7)
    assert got == pytest.approx([0] * 5 + [0.1, 0.2, 0.3])
    assert lambdas(Controlled(lam=0.1, warm_up=1), [0.9] * 3) == [0, 0.1, 0.1, 0.1]


def test_cooldown_waits_between_changes() -> None:
    control = Controlled(lam=0.1, target_accuracy=0.5, increment=0.1, warm_up=1, cooldown=1)
    assert lambdas(control, [0.9] * 6) == pytest.approx([0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


def test_signal_chooses_whose_accuracy_counts() -> None:
    settings = {"lam": 0.1, "target_accuracy": 0.5, "increment": 0.1, "warm_up": 0}
    assert lambdas(Controlled(**settings), [0.9], train=0.1)[-1] == pytest.approx(0.2)
    assert lambdas(Controlled(**settings, signal="train"), [0.9], train=0.1)[-1] == pytest.approx(0.0)


def test_missing_validation_accuracy_is_an_error() -> None:
    with pytest.raises(ValueError, match="signal: expected an accuracy on the validation part"):
        lambdas(Controlled(target_accuracy=0.5, warm_up=0), [math.nan])


def test_clip_and_spectral_penalty_are_steered_alike() -> None:
    for cls in (CLIP, SpectralPenalty):
        control = cls(target_accuracy=0.5, increment=0.1, warm_up=1)
        control.memory["lipschitz"] = 0.0
        s = Step(nn.Linear(2, 2), None, Threat(), torch.Generator(), lambda *_: torch.empty(0))
        control.begin(s)
        control.memory.update(lipschitz=1.0, product=1.0)
        seen = []
        for s.epoch, s.val_accuracy in enumerate([0.9, 0.9, 0.9]):
            seen.append(control.end_epoch(s)["lam"])
        assert seen == pytest.approx([0, 0, 0.1])

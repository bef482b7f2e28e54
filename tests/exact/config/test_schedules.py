"""Learning rates, step by step, against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from robustbench_sparse.config.optimizers import Cosine, Cyclic, ScheduleSpec


def rates(schedule: ScheduleSpec, epochs: int, steps: int) -> list[float]:
    """The rate of every step of a stage, from one whose maximum is 0.2."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    clock = schedule.build(optimizer, epochs, steps)
    found = []
    for _ in range(epochs):
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            clock.after_step()
        clock.after_epoch(1.0, 0.5)
    return found


@pytest.mark.parametrize(("peak", "top"), [(0.5, 6), (0.25, 3)])
def test_cyclic_is_two_straight_lines(peak: float, top: int) -> None:
    found = rates(Cyclic(peak=peak), epochs=11, steps=1)  # 12 parts of the stage
    expected = [0.2 * (t / top if t <= top else (12 - t) / (12 - top)) for t in range(1, 12)]
    assert found == pytest.approx(expected)
    assert max(found) == pytest.approx(0.2)
    assert min(found) > 0
    assert rates(Cyclic(peak=peak), epochs=1, steps=11) == pytest.approx(expected)


def test_cosine_is_half_a_period() -> None:
    found = rates(Cosine(), epochs=4, steps=5)
    assert found == pytest.approx([0.1 * (1 + math.cos(math.pi * t / 20)) for t in range(20)])


def test_cosine_after_a_warm_up() -> None:
    found = rates(Cosine(warm_up=0.25), epochs=2, steps=10)
    assert found[:5] == pytest.approx([0.2 * k / 6 for k in range(1, 6)])
    assert found[5:] == pytest.approx([0.1 * (1 + math.cos(math.pi * t / 15)) for t in range(15)])


@pytest.mark.parametrize(
    ("cls", "settings", "name"),
    [
        (Cyclic, {"peak": 0.0}, "peak"),
        (Cyclic, {"peak": 1.0}, "peak"),
        (Cosine, {"warm_up": 1.0}, "warm_up"),
        (Cosine, {"warm_up": -0.1}, "warm_up"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    cls: type[ScheduleSpec], settings: dict[str, float], name: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got "):
        cls(**settings)

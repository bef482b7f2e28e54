"""The average of the weights: its recursion, its batch-norm statistics, and zeros that stay zeros."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from defenses import EMA, HoldZeros
from defenses.base import prunable
from tests.helpers.defense_loop import EPOCH, Loop, X, tiny
from tests.helpers.robust_steps import step, with_norm


def walk(defense: EMA, values: list[float]) -> nn.Module:
    """A network whose every weight takes these values, one a step; the deployed one."""
    s = step(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    defense.begin(s)
    for value in values:
        with torch.no_grad():
            for p in s.model.parameters():
                p.fill_(value)
        defense.after_step(s)
    return defense.deploy(s.model)


def test_average_is_its_recursion() -> None:
    values = [1.0, 2.0, 4.0, -3.0, 5.0]
    expected = values[0]
    for t, value in enumerate(values[1:], 1):
        tau = min(0.25, (1 + t) / (10 + t))
        expected = tau * expected + (1 - tau) * value
    averaged = walk(EMA(decay=0.25), values)
    assert all(torch.allclose(p, torch.tensor(expected)) for p in averaged.parameters())


def test_early_on_the_decay_is_small() -> None:
    # After the first steps the average must not be that of the start: tau is 2/11, 3/12, 4/13.
    averaged = walk(EMA(decay=0.999), [0.0, 1.0, 1.0, 1.0])
    share = 2 / 11 * 3 / 12 * 4 / 13  # what is left of the first weights
    assert all(torch.allclose(p, torch.tensor(1 - share)) for p in averaged.parameters())


def test_of_weights_that_stay_it_is_the_weights() -> None:
    averaged = walk(EMA(decay=0.99), [0.7] * 20)
    assert all(torch.allclose(p, torch.tensor(0.7)) for p in averaged.parameters())


def test_before_it_begins_the_network_itself_is_deployed() -> None:
    for defense, epoch in ((EMA(warm_up=1), 0), (EMA(decay=0.0), 3)):
        s = step(with_norm())
        s.epoch = epoch
        defense.begin(s)
        defense.after_step(s)
        assert defense.deploy(s.model) is s.model
    s.epoch = 1
    late = EMA(warm_up=1)
    late.after_step(s)
    assert late.deploy(s.model) is not s.model


def test_statistics_are_those_of_the_averaged_network_on_the_last_minibatches() -> None:
    defense = EMA(decay=0.9, minibatches=2)
    loop = Loop([defense]).run(EPOCH)
    deployed = loop.deployed()
    first = deployed[0](torch.cat([X[8:16], X[16:24]])).detach()  # what the first batch-norm layer sees
    parts = first.split(8)
    mean = torch.stack([p.mean((0, 2, 3)) for p in parts]).mean(0)
    var = torch.stack([p.var((0, 2, 3)) for p in parts]).mean(0)
    norm = deployed[1].norm
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)
    assert norm.momentum == tiny()[1].norm.momentum  # as in any other network
    assert not deployed.training
    assert not torch.allclose(norm.running_mean, loop.model[1].norm.running_mean, atol=1e-3)


def test_deploying_twice_gives_the_same_and_leaves_the_network_in_training() -> None:
    loop = Loop([EMA(decay=0.9)]).run(EPOCH)
    before = {k: v.clone() for k, v in loop.model.state_dict().items()}
    one, other = loop.deployed(), loop.deployed()
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    assert all(torch.equal(before[k], v) for k, v in loop.model.state_dict().items())
    assert loop.model.training


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: w == 0 for name, w in prunable(model).items()}


@pytest.mark.parametrize("first", [False, True])
def test_zeros_that_are_held_are_zero_in_the_average(first: bool) -> None:
    holds, averages = HoldZeros(threshold=0.1), EMA(decay=0.9)
    loop = Loop([averages, holds] if first else [holds, averages]).run(7)
    held, found = zeros(loop.model), zeros(loop.deployed())
    assert sum(int(z.sum()) for z in held.values()) > 100
    assert all(torch.equal(held[name], found[name]) for name in held)


def test_weights_that_are_zero_now_are_zero_in_the_average_though_they_were_not_before() -> None:
    s, defense = step(with_norm()), EMA(decay=0.9)
    defense.begin(s)
    defense.after_step(s)
    with torch.no_grad():
        s.model[0].weight[:, 1] = 0
    for _ in range(3):
        defense.after_step(s)
    assert defense.memory["average"]["0.weight"][:, 1].abs().min() > 0
    averaged = defense.deploy(s.model)
    assert isinstance(averaged, nn.Sequential)
    assert not averaged[0].weight[:, 1].any()
    assert averaged[0].weight[:, 0].abs().min() > 0


def test_every_stage_has_an_average_of_its_own() -> None:
    s, defense = step(with_norm()), EMA(decay=0.9)
    defense.begin(s)
    defense.after_step(s)
    assert defense.memory
    defense.begin(s)
    assert defense.deploy(s.model) is s.model

"""ADMM: its three updates step by step, and a projection that zeroes as much as it is asked to.

Published code took the percentile of the signed weights, overwrote the channel norms it was ranking, and tested the
network it had never projected; each has a test here.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import Threat
from defenses import ADMM, Step
from robustbench_sparse.sparsity.claims import against_asked
from robustbench_sparse.sparsity.counting import count_layers
from tests.helpers.zeros import zero_shares

X = torch.rand(16, 2, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (16,), generator=torch.Generator().manual_seed(2))


def net(width: int = 10) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, width, 3),
            nn.ReLU(),
            nn.Conv2d(width, width, 3),
            nn.Flatten(),
            nn.Linear(4 * width, 3),
        )


def step(model: nn.Module, lr: float = 0.1, epochs: int = 9) -> Step:
    generator = torch.Generator().manual_seed(0)
    return Step(model, None, Threat(), generator, lambda *_: torch.empty(0), lr=lr, epochs=epochs)


def one_step(admm: ADMM, s: Step, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    F.cross_entropy(s.model(X), Y).backward()
    admm.before_step(s)
    optimizer.step()
    with torch.no_grad():
        admm.after_step(s)


def largest(w: Tensor, percent: float) -> Tensor:
    """The projection as one would write it down: sort, and put the first ones to zero."""
    flat = w.flatten().clone()
    flat[flat.abs().argsort()[: round(percent * len(flat) / 100)]] = 0
    return flat.view(w.shape)


@pytest.mark.parametrize("update", ["step", "epoch"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_three_updates_by_hand(update: Any, momentum: float) -> None:
    eta, rho, names = 0.1, 0.5, ["0.weight", "2.weight"]
    model, hand = net(), net()
    admm, s = ADMM(sparsity=60.0, rho=rho, update=update), step(model, eta)
    admm.begin(s)
    optimizer = torch.optim.SGD(model.parameters(), lr=eta, momentum=momentum)
    weights, velocity = dict(hand.named_parameters()), dict[str, Tensor]()
    z = {name: largest(weights[name].detach(), 60) for name in names}
    u = {name: torch.zeros_like(z[name]) for name in names}
    for t in range(6):
        grads = torch.autograd.grad(F.cross_entropy(hand(X), Y), list(weights.values()))
        for (name, w), g in zip(weights.items(), grads, strict=True):
            velocity[name] = g if name not in velocity else momentum * velocity[name] + g
            pull = rho * (w.detach() - z[name] + u[name]) if name in z else 0
            w.data = w.data - eta * velocity[name] - eta * pull
        one_step(admm, s, optimizer)
        if t % 3 == 2:
            admm.end_epoch(s)
        if update == "step" or t % 3 == 2:
            for name in names:
                z[name] = largest(weights[name].detach() + u[name], 60)
                u[name] = u[name] + weights[name].detach() - z[name]
        for name, w in weights.items():
            torch.testing.assert_close(model.get_parameter(name), w)
        for name in names:
            torch.testing.assert_close(admm.memory["z"][name], z[name])
            torch.testing.assert_close(admm.memory["u"][name], u[name])
    assert any(u[name].any() for name in names)


def test_quadratic_converges_to_the_largest_weights() -> None:
    # f(w) = ||w - w*||^2 / 2: the best w with two non-zeros keeps the two largest of w*. A limit has u = 0 there and
    # u = w* / rho elsewhere, which are ranked against each other: with rho = 1 no other pair can be one.
    model = nn.Conv2d(5, 1, 1, bias=False).double()
    w_star = torch.tensor([3.0, -0.5, 0.2, -2.0, 1.0], dtype=torch.double).view(1, 5, 1, 1)
    admm, s = ADMM(sparsity=60.0, rho=1.0), step(model)
    admm.begin(s)
    for _ in range(2000):
        model.weight.grad = model.weight.detach() - w_star
        admm.before_step(s)
        model.weight.data -= 0.1 * model.weight.grad
        admm.after_step(s)
    kept = w_star * (w_star.abs() > 1.5)
    torch.testing.assert_close(model.weight.detach(), kept, rtol=0, atol=1e-6)
    assert admm.end_epoch(s)["gap"] < 1e-6


# The projection --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [50.0, 60.0, 80.0, 90.0, 95.0, 99.0])
def test_percentage_is_of_absolute_values(asked: float) -> None:
    # Of signed weights, a percentile of 80 leaves 40 % of symmetric ones unpruned.
    model = nn.Conv2d(20, 50, 1)
    nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(0))
    admm = ADMM(sparsity=asked)
    admm.begin(step(model))
    deployed = admm.deploy(model)
    assert zero_shares(deployed)["weight_sparsity"] == asked
    w, zero = model.weight.detach().abs(), deployed.weight == 0  # type: ignore[operator]
    assert w[zero].max() < w[~zero].min()


@pytest.mark.parametrize("asked", [50.0, 60.0, 80.0, 90.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_channel_norms_of_any_size_are_ranked_among_themselves(asked: float, scale: float) -> None:
    model = nn.Conv2d(50, 4, 3)
    with torch.no_grad():
        model.weight.mul_(scale * torch.linspace(0.1, 5, 50).flip(0).view(1, -1, 1, 1))
    admm = ADMM(sparsity=asked, group="channel")
    admm.begin(step(model))
    deployed = admm.deploy(model)
    assert zero_shares(deployed)["channel_sparsity"] == asked
    norms = model.weight.detach().square().sum((0, 2, 3))
    zero = (deployed.weight == 0).all(0).all(1).all(1)  # type: ignore[operator, union-attr]
    assert norms[zero].max() < norms[~zero].min()
    alive = deployed.weight[:, ~zero]  # type: ignore[index]
    assert torch.equal(alive, model.weight[:, ~zero])


def test_network_judged_is_the_projected_one() -> None:
    model = net()
    admm, s = ADMM(sparsity=70.0, layers="all"), step(model)
    assert admm.deploy(model) is model  # nothing has begun
    admm.begin(s)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        one_step(admm, s, optimizer)
    assert zero_shares(model)["weight_sparsity"] == 0
    deployed = admm.deploy(model)
    for name in ("0.weight", "2.weight", "4.weight"):
        assert torch.equal(deployed.get_parameter(name), largest(model.get_parameter(name).detach(), 70))
    assert torch.equal(deployed.get_parameter("0.bias"), model.get_parameter("0.bias"))
    assert zero_shares(model)["weight_sparsity"] == 0


def test_projection_is_the_nearest_point_of_all() -> None:
    w = torch.tensor([0.3, -1.2, 0.0, 2.0, -0.4, 0.9]).view(1, 6, 1, 1)
    (z,) = ADMM(sparsity=50.0).projected([w])
    away = []
    for zeros in itertools.combinations(range(6), 3):
        other = w.clone()
        other[:, list(zeros)] = 0
        away.append((other - w).norm())
    assert (z - w).norm() == min(away)
    assert z.flatten().tolist() == pytest.approx([0, -1.2, 0, 2, 0, 0.9])


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("group", ["weight", "channel", "kernel", "row"])
def test_ties_change_no_count(group: Any, scope: Any) -> None:
    weights = [torch.ones(4, 10, 3, 3), -torch.ones(10, 10, 3, 3), torch.ones(10, 10, 3, 3)]
    out = ADMM(sparsity=50.0, group=group, scope=scope).projected(weights)
    if group == "weight":
        zero = [(w == 0).flatten() for w in out]
    else:
        dims = {"channel": (0, 2, 3), "kernel": (2, 3), "row": (1, 2, 3)}[group]
        zero = [(w.abs().sum(dims) == 0).flatten() for w in out]
        assert all(((w == 0) == (w.abs().sum(dims, keepdim=True) == 0)).all() for w in out)
    assert sum(int(v.sum()) for v in zero) == sum(len(v) for v in zero) // 2
    if scope == "layer":
        assert all(int(v.sum()) == len(v) // 2 for v in zero)


def test_global_ranks_all_layers_together_and_layer_each_by_itself() -> None:
    weights = [torch.arange(1.0, 11).view(1, 10, 1, 1), torch.arange(101.0, 111).view(1, 10, 1, 1)]
    one_by_one = ADMM(sparsity=50.0).projected(weights)
    together = ADMM(sparsity=50.0, scope="global").projected(weights)
    assert [int((w == 0).sum()) for w in one_by_one] == [5, 5]
    assert [int((w == 0).sum()) for w in together] == [10, 0]


def test_a_layer_keeps_its_last_channel() -> None:
    (only,) = ADMM(sparsity=90.0, group="channel").projected([torch.ones(3, 1, 2, 2)])
    assert only.all()
    two, four = ADMM(sparsity=90.0, group="channel").projected(
        [torch.ones(3, 2, 2, 2), torch.ones(3, 4, 1, 1)]
    )
    assert int(two.count_nonzero()) == 3 * 4
    assert int(four.count_nonzero()) == 3


@pytest.mark.parametrize("group", ["weight", "channel", "kernel", "row"])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("percent", [37.0, 80.0])
def test_what_was_asked_for_is_counted_in_the_network(group: Any, scope: Any, percent: float) -> None:
    model = net().to(memory_format=torch.channels_last)
    admm = ADMM(sparsity=percent, group=group, scope=scope)
    admm.check(model)
    admm.begin(step(model))
    asked = admm.asked(model)
    assert asked is not None
    assert asked.binding
    (met,) = against_asked([{**asdict(asked), "defense": "admm"}], count_layers(admm.deploy(model)))
    assert abs(met["achieved"] - percent) <= met["slack"]


def test_asks_for_nothing_that_is_not_counted() -> None:
    model = net()
    assert ADMM().asked(model) is None
    assert ADMM(sparsity=50.0, group="channel", layers="linear").asked(model) is None
    asked = ADMM(sparsity=50.0, group="channel", layers="all").asked(model)
    assert asked is not None
    assert asked.names == ("0.weight", "2.weight")


# A stage ---------------------------------------------------------------------------------------------------


def test_stage_leaves_projected_weights_behind() -> None:
    model = net()
    admm, s = ADMM(sparsity=80.0), step(model, epochs=2)
    admm.begin(s)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    one_step(admm, s, optimizer)
    admm.end_epoch(s)
    assert model[0].weight.all()
    s.epoch = 1
    deployed = admm.deploy(model)
    admm.end_epoch(s)
    assert torch.equal(model[0].weight, deployed[0].weight)
    assert int((model[0].weight == 0).sum()) == 144


def test_with_rho_0_only_the_end_is_pruned() -> None:
    model, plain = net(), net()
    admm, s = ADMM(sparsity=80.0, rho=0.0), step(model)
    admm.begin(s)
    pair = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain)]
    for _ in range(3):
        one_step(admm, s, pair[0])
        one_step(ADMM(), step(plain), pair[1])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert int((admm.deploy(model)[0].weight == 0).sum()) == 144


def test_refuses_networks_without_such_groups() -> None:
    with pytest.raises(ValueError, match=r"admm: expected a network with layers to prune \(layers: conv\)"):
        ADMM().check(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="group: expected convolutions alone"):
        ADMM(group="kernel", layers="all").check(net())

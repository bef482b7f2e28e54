"""RVSM and RVSCGD: Algorithms 1 and 2 step by step, where the zeros come from, lambda steered for a share of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import Threat
from defenses import PGDAT, RVSCGD, RVSM, Defense, EnResNet, Step
from defenses.regularisers import make_regulariser
from defenses.sparse.one_layer import BinaryReLU
from defenses.sparse.target_sparsity import steered
from tests.helpers.zeros import zero_shares

X = torch.rand(16, 2, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (16,), generator=torch.Generator().manual_seed(2))


class Block(nn.Module):
    is_residual_block = True

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.relu = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv(self.relu(self.norm(x)))
        return out


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), Block(), nn.Flatten(), nn.Linear(144, 3))


def step(model: nn.Module, lr: float = 0.1) -> Step:
    return Step(
        model, None, Threat(eps=0.1), torch.Generator().manual_seed(0), lambda *_: torch.empty(0), lr=lr
    )


def train(
    defenses: list[Defense], model: nn.Module, epochs: int = 2, steps: int = 4, momentum: float = 0.0
) -> list[dict[str, float]]:
    """The hooks around plain SGD; returns the last defense's log of every epoch."""
    s = step(model)
    for d in defenses:
        d.check(model)
        d.begin(s)
    s.optimizer = torch.optim.SGD(model.parameters(), lr=s.lr, momentum=momentum)
    log = []
    for _ in range(epochs):
        for _ in range(steps):
            s.x, s.y = X, Y
            for d in defenses:
                s.x = d.perturb(s)
            s.optimizer.zero_grad()
            F.cross_entropy(model(s.x), s.y).backward()
            for d in defenses:
                d.before_step(s)
            s.optimizer.step()
            for d in defenses:
                d.after_step(s)
        deployed = model
        for d in defenses:
            deployed = d.deploy(deployed)
        s.sparsity = zero_shares(deployed)
        log.append([d.end_epoch(s) for d in defenses][-1])
    return log


def algorithm_1(entry: Any, lam: float, beta: float, names: list[str], momentum: float) -> dict[str, Tensor]:
    """RVSM as printed, weight by weight, with w <- u after each of two epochs of four steps."""
    model, eta, velocity = net(), 0.1, dict[str, Tensor]()
    p, weights = make_regulariser(entry), dict(model.named_parameters())
    u = {name: p.prox(weights[name].detach(), lam / beta) for name in names}
    for _ in range(2):
        for _ in range(4):
            grads = torch.autograd.grad(F.cross_entropy(model(X), Y), list(weights.values()))
            with torch.no_grad():
                for (name, w), g in zip(weights.items(), grads, strict=True):
                    velocity[name] = g if name not in velocity else momentum * velocity[name] + g
                    pull = beta * (w - u[name]) if name in u else 0
                    w -= eta * velocity[name] + eta * pull
                u = {name: p.prox(weights[name], lam / beta) for name in names}
        with torch.no_grad():
            for name in names:
                weights[name].copy_(u[name])
    return {name: w.detach() for name, w in weights.items()}


CONVS, LINEAR = ["0.weight", "1.conv.weight"], ["3.weight"]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    ("entry", "lam", "layers", "names"),
    [
        ("l1", 0.03, "conv", CONVS),
        ("l0", 0.001, "all", CONVS + LINEAR),
        ({"name": "transformed_l1", "a": 0.7}, 0.003, "linear", LINEAR),
        ({"name": "group_l0", "group": "row"}, 0.076, "all", CONVS + LINEAR),
    ],
)
def test_is_algorithm_1(entry: Any, lam: float, layers: Any, names: list[str], momentum: float) -> None:
    model = net()
    train([RVSM(regulariser=entry, lam=lam, beta=0.5, layers=layers)], model, momentum=momentum)
    expected = algorithm_1(entry, lam, 0.5, names, momentum)
    weights = dict(model.named_parameters())
    assert list(weights) == list(expected)
    for name, w in expected.items():
        torch.testing.assert_close(weights[name].detach(), w, rtol=1e-4, atol=1e-6)
        if name in names:
            assert torch.equal(weights[name] == 0, w == 0)
    share = torch.cat([expected[n].flatten() == 0 for n in names]).double().mean()
    assert 0.02 < share < 0.98


def test_lambda_is_divided_by_beta_once() -> None:
    model = net()
    rvsm = RVSM(lam=0.02, beta=0.5)
    rvsm.begin(step(model))
    w, u = model[0].weight.detach(), rvsm.memory["u"]["0.weight"]
    torch.testing.assert_close(u, w.sign() * (w.abs() - 0.04).clamp_min(0))


def test_deployed_network_has_the_zeros_and_the_log_counts_them() -> None:
    model = net()
    rvsm, s = RVSM(lam=0.04, beta=0.5), step(model)
    rvsm.begin(s)
    with torch.no_grad():
        model[0].bias.add_(1)
        rvsm.after_step(s)
    deployed = rvsm.deploy(model)
    u = rvsm.memory["u"]
    assert torch.equal(deployed[0].weight, u["0.weight"])
    assert torch.equal(deployed[1].conv.weight, u["1.conv.weight"])
    assert torch.equal(deployed[3].weight, model[3].weight)  # not acted upon
    assert torch.equal(deployed[0].bias, model[0].bias)
    zeros = sum(int((v == 0).sum()) for v in u.values())
    assert zeros > 50
    assert model[0].weight.count_nonzero() == 72  # deploy() has left them
    assert rvsm.end_epoch(s) == {"weight_sparsity": zeros / (72 + 144)}
    assert torch.equal(model[0].weight, u["0.weight"])
    assert RVSM().deploy(model) is model


@pytest.mark.parametrize(
    "entry", ["l1", "l0", "transformed_l1", "l1_nonnegative", "zero", "group_l0", "nuclear"]
)
def test_order_in_memory_changes_nothing(entry: str) -> None:
    plain, turned = net(), net().to(memory_format=torch.channels_last)
    us = []
    for model in (plain, turned):
        rvsm = RVSM(regulariser=entry, lam=0.004, beta=0.1, layers="all")
        rvsm.begin(step(model))
        us.append(rvsm.memory["u"])
    for name, u in us[0].items():
        torch.testing.assert_close(us[1][name], u, rtol=1e-4, atol=1e-6)
        if entry in ("l1", "l0", "transformed_l1"):  # so that a step needs no shuffling
            assert us[1][name].stride() == turned.get_parameter(name).stride()


def test_group_lasso_on_a_linear_layer_prunes_its_columns() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.6, 3.0, 0.0, 1.2], [0.8, 4.0, 0.0, 1.6]]))
    rvsm = RVSM(regulariser="group_lasso", lam=2.0, beta=1.0, layers="linear")
    rvsm.begin(step(model))
    expected = torch.tensor([[0.0, 1.8, 0.0, 0.0], [0.0, 2.4, 0.0, 0.0]])
    torch.testing.assert_close(rvsm.memory["u"]["1.weight"], expected)


# Steering --------------------------------------------------------------------------------------------------


def test_lambda_is_steered_by_the_deployed_network_and_survives_a_kill() -> None:
    model = net()
    rvsm, s = RVSM(lam=0.01, beta=0.5, target_sparsity=90.0), step(model)
    rvsm.begin(s)
    s.sparsity = {"weight_sparsity": 60.0}
    assert rvsm.end_epoch(s)["lam"] == 0.01
    s.sparsity = {"weight_sparsity": 95.0}
    second = steered(0.01, 60.0, 90.0)
    assert second == 0.02  # doubled at most
    assert rvsm.end_epoch(s)["lam"] == second
    third = steered(second, 95.0, 90.0)
    assert third < second
    resumed = RVSM(lam=0.01, beta=0.5, target_sparsity=90.0)
    resumed.begin(s)
    resumed.load_state_dict(rvsm.state_dict())
    for d in (rvsm, resumed):
        d.after_step(s)
        u, w = d.memory["u"]["0.weight"], model[0].weight.detach()
        torch.testing.assert_close(u, w.sign() * (w.abs() - third / 0.5).clamp_min(0))
    rvsm.begin(s)  # a new stage starts with the config's lambda
    assert rvsm.threshold == 0.02


def test_target_is_reached() -> None:
    model = net()
    log = train(
        [RVSM(regulariser="l0", lam=1e-4, beta=0.5, target_sparsity=80.0, layers="all")], model, epochs=30
    )
    assert log[-1]["weight_sparsity"] == pytest.approx(0.8, abs=0.01)
    assert log[0]["weight_sparsity"] < 0.3


def test_asks_for_a_goal_and_never_goes_on_without_a_count() -> None:
    model = net()
    assert RVSM(lam=0.1, beta=1.0).asked(model) is None
    asked = RVSM(lam=0.1, beta=1.0, target_sparsity=50).asked(model)
    assert asked is not None
    assert (asked.kind, asked.percent, asked.binding) == ("weight", 50.0, False)
    assert asked.names == (*CONVS, *LINEAR)
    channels = RVSM(lam=0.1, beta=1.0, target_sparsity=50, target_kind="channel")
    by_channel = channels.asked(model)
    assert by_channel is not None
    assert by_channel.names == tuple(CONVS)
    s = step(model)
    channels.begin(s)
    with pytest.raises(ValueError, match="target_kind: expected a network with channels to count"):
        channels.end_epoch(s)
    with pytest.raises(ValueError, match="target_kind"):
        RVSM(lam=0.1, beta=1.0, target_sparsity=50, target_kind="kernel", layers="linear").check(
            nn.Linear(2, 2)
        )


def test_needs_weights_of_the_kind() -> None:
    with pytest.raises(ValueError, match=r"rvsm: expected a network with layers to prune \(layers: conv\)"):
        RVSM().check(nn.Linear(2, 2))


def test_works_beside_an_ensemble_and_adversarial_training() -> None:
    ensemble = EnResNet(members=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ensemble.wrap(net)()
    rvsm = RVSM(lam=0.02, beta=0.5)
    train([ensemble, PGDAT(steps=2), rvsm], model)
    deployed = rvsm.deploy(model)
    assert len(rvsm.memory["u"]) == 4  # two convolutions in each of two members
    assert all((deployed.get_parameter(name) == 0).any() for name in rvsm.memory["u"])
    assert deployed(X).isfinite().all()


# RVSCGD ----------------------------------------------------------------------------------------------------


def test_is_algorithm_2() -> None:
    model = net()
    expected = {name: w.detach().clone() for name, w in model.named_parameters()}
    p, beta, lam, eta = make_regulariser("l1"), 0.5, 0.02, 0.1
    u = {name: p.prox(expected[name], lam / beta) for name in CONVS}
    rvscgd, s = RVSCGD(lam=lam, beta=beta), step(model, eta)
    rvscgd.begin(s)
    optimizer = torch.optim.SGD(model.parameters(), lr=eta)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        for name, w in model.named_parameters():
            assert w.grad is not None
            expected[name] -= eta * w.grad
            if name in u:
                expected[name] += -eta * beta * (w.detach() - u[name])
                expected[name] /= expected[name].flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                u[name] = p.prox(expected[name], lam / beta)
        rvscgd.before_step(s)
        optimizer.step()
        rvscgd.after_step(s)
        for name, w in model.named_parameters():
            torch.testing.assert_close(w.detach(), expected[name])
    for name in CONVS:
        torch.testing.assert_close(rvscgd.memory["u"][name], u[name])
        assert model.get_parameter(name).flatten(1).norm(dim=1).tolist() == pytest.approx([1] * 4)


def test_a_filter_of_zeros_stays_finite() -> None:
    model = net()
    rvscgd, s = RVSCGD(lam=0.02, beta=0.5), step(model)
    rvscgd.begin(s)
    with torch.no_grad():
        model[0].weight[1] = 0
    rvscgd.after_step(s)
    assert model[0].weight[1].count_nonzero() == 0
    assert model[0].weight.isfinite().all()


def test_steps_take_the_place_of_relus() -> None:
    binary = RVSCGD(lam=0.01, beta=0.5, binarise=True)
    model = binary.wrap(net)()
    assert isinstance(model[1].relu, BinaryReLU)
    train([binary], model)
    assert all((w == 0).any() for w in (model[0].weight, model[1].conv.weight))
    model[0].weight.grad = None
    model(X).sum().backward()
    assert model[0].weight.grad is not None
    assert model[0].weight.grad.abs().sum() > 0
    assert isinstance(RVSCGD().wrap(net)()[1].relu, nn.ReLU)
    with pytest.raises(ValueError, match=r"binarise: expected a network with nn.ReLU modules, got 'Conv2d'"):
        binary.check(binary.wrap(lambda: nn.Conv2d(1, 1, 1))())

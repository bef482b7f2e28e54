"""Surrogates: same values, gradients that flow; and what is found guilty, and what is not."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import PGD, SampleRandom
from attacks.base import RandomModule, Threat, input_gradient
from attacks.losses import margin
from robustbench_sparse.certificate.probes.backward import AGREES, agreement, bpda, killers, liars
from robustbench_sparse.certificate.probes.parts import suspicious
from robustbench_sparse.certificate.probes.surrogates import (
    Scaled,
    in_float64,
    last_activation,
)
from tests.helpers.attack_models import digits_net, streams
from tests.helpers.certificate_subjects import Wrong

THREAT = Threat(eps=0.15)


def without_last_activation(model: nn.Module, x: Tensor) -> nn.Module | None:
    last = last_activation(model, x)
    return None if last is None else last.before


@functools.cache
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    net, x, y = digits_net()
    return copy.deepcopy(net).float(), x.float()[:60], y[:60]


class Stairs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * 1024) / 1024


class ConstantGradient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Wrong.apply(x)


class KeepsLargest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        least = x.topk(12, dim=1).values[:, -1:]
        return torch.where(x >= least, x, 0)


class Threshold(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0.7, x, 0)


class Wrapped(nn.Module):
    def __init__(self, network: nn.Module, before: Callable[[Tensor], Tensor], after: Any = None) -> None:
        super().__init__()
        self.network, self.before_, self.after_ = network, before, after

    def forward(self, x: Tensor) -> Tensor:
        out = self.network(self.before_(x))
        return out if self.after_ is None else self.after_(out)


class SharedSigmoid(nn.Module):
    """The same activation after every layer, the last one too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(64, 20), nn.Linear(20, 10)])
        self.act = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = self.act(layer(x))
        return x


def under_no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.round(x * 1024) / 1024


def by_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy((x.numpy() * 1024).round() / 1024).to(x.dtype)


def robust(network: nn.Module, judge: nn.Module) -> float:
    _, x, y = digits()
    x_adv = PGD(steps=20, loss="margin")(network, x, y, THREAT, streams(len(x)))
    return (judge(x_adv).argmax(1) == y).float().mean().item()


BROKEN: dict[str, Callable[[nn.Module], nn.Module]] = {
    "a part rounds": lambda net: nn.Sequential(Stairs(), net),
    "code rounds": lambda net: Wrapped(net, lambda x: torch.round(x * 1024) / 1024),
    "code rounds without gradients": lambda net: Wrapped(net, under_no_grad),
    "code goes through NumPy": lambda net: Wrapped(net, by_numpy),
    "code rounds within": lambda net: nn.Sequential(
        net[:3], Wrapped(net[3:], lambda x: torch.round(x * 64) / 64)
    ),
    "twice": lambda net: nn.Sequential(Stairs(), net[:3], Stairs(), net[3:]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_bpda_attacks_a_killed_gradient_as_well_as_the_network_without_the_killer(kind: str) -> None:
    net, x, _ = digits()
    broken = BROKEN[kind](net).eval()
    surrogate = bpda(broken, x)
    assert surrogate is not None
    assert torch.equal(surrogate(x), broken(x))
    assert not surrogate.training
    assert killers(broken, x)
    assert abs(robust(surrogate, broken) - robust(net, net)) <= 0.03


def test_the_network_itself_stays_unattackable_and_without_hooks() -> None:
    net, x, _ = digits()
    broken = nn.Sequential(Stairs(), net).eval()
    bpda(broken, x)
    suspicious(broken, x)
    last_activation(broken, x)
    assert robust(broken, broken) > 0.9
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in broken.modules())


def test_a_wrong_gradient_is_found_and_gone_around() -> None:
    net, x, y = digits()
    broken = nn.Sequential(ConstantGradient(), net).eval()

    def wrong(model: nn.Module) -> bool:
        random = streams(8)
        found = agreement(model, x[:8], y[:8], lambda: random.normal(x[:8]), lambda: streams(8))
        return found is not None and found <= AGREES

    assert wrong(broken)
    assert not wrong(net)
    assert liars(broken, x) == ["0"]
    assert liars(net, x) == []
    assert bpda(broken, x) is None
    for model in (broken, Wrapped(net, Wrong.apply).eval()):
        surrogate = bpda(model, x, wrong=True)
        assert surrogate is not None
        assert abs(robust(surrogate, model) - robust(net, net)) <= 0.03


def test_honest_networks_have_no_guilty_part_and_gradients_that_agree() -> None:
    _, x, y = digits()
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()
    pruned = nn.Sequential(conv[:4], nn.Conv2d(8, 8, 3, padding=1), conv[5:]).eval()
    with torch.no_grad():
        pruned[1].weight[:6], pruned[1].bias[:6] = 0, 0
    for net in (digits()[0], conv, pruned, SharedSigmoid().eval()):
        assert killers(net, x) == []
        assert suspicious(net, x) == []
        assert bpda(net, x) is None
        random = streams(16)
        found = agreement(net, x[:16], y[:16], lambda: random.normal(x[:16]), lambda: streams(16))  # noqa: B023
        assert found is not None
        assert found > 0.99


def test_a_branch_of_zero_weights_is_no_killer() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.act = nn.Linear(64, 64), nn.ReLU()
            nn.init.zeros_(self.branch.weight)
            nn.init.constant_(self.branch.bias, -1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.act(self.branch(x))

    net, x, _ = digits()
    assert killers(nn.Sequential(nn.Flatten(), Residual(), net[1:]).eval(), x) == []


def test_jumps_and_selections_are_found_by_trying() -> None:
    net, x, _ = digits()
    for part in (KeepsLargest(), Threshold()):
        broken = nn.Sequential(net[:2], part, net[3:]).eval()
        assert suspicious(broken, x) == ["1"]
        surrogate = bpda(broken, x, also=["1"])
        assert surrogate is not None
        assert torch.equal(surrogate(x), broken(x))
        without = nn.Sequential(net[:2], net[3:]).eval()
        slope = [
            input_gradient(m, x, broken(x).argmax(1), lambda z, y: z[:, 3], streams(60))[0]
            for m in (surrogate, without)
        ]
        assert torch.allclose(*slope, atol=1e-5)


def test_random_parts_raise_no_suspicion_and_draw_nothing_from_the_global_generator() -> None:
    class Noisy(RandomModule):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.1 * self.draw(x)

    net, x, _ = digits()
    noisy = nn.Sequential(Noisy(), net).eval()
    before = torch.get_rng_state()
    assert suspicious(noisy, x) == killers(noisy, x) == liars(noisy, x) == []
    assert in_float64(noisy, x) is not None
    assert torch.equal(torch.get_rng_state(), before)


def test_the_last_activation_is_taken_away_where_its_module_is_used_before() -> None:
    _, x, _ = digits()
    net = SharedSigmoid().eval()
    last = last_activation(net, x)
    assert last is not None
    assert last.name == "act"
    assert last.bounded
    assert torch.equal(torch.sigmoid(last.before(x)), net(x))
    assert last.before(x).abs().max() > 0


@pytest.mark.parametrize(
    "after",
    [nn.Sigmoid(), nn.Tanh(), nn.Softmax(1), nn.LogSoftmax(1), torch.sigmoid, torch.tanh],
    ids=["Sigmoid", "Tanh", "Softmax", "LogSoftmax", "sigmoid", "tanh"],
)
def test_logits_before_the_last_activation_come_back(after: Any) -> None:
    net, x, _ = digits()
    net = nn.Sequential(net[:-1], nn.Linear(64, 10)).eval()
    with torch.no_grad():
        net[1].weight.copy_(digits()[0][-1].weight / 4)
    whole = nn.Sequential(net, after) if isinstance(after, nn.Module) else Wrapped(net, nn.Identity(), after)
    out = without_last_activation(whole.eval(), x)
    if after is torch.tanh and whole(x).abs().max() <= 0.99:
        assert out is None  # no sign of a tanh
        return
    assert out is not None
    factor = 2.0 if after is torch.tanh else 1.0  # the inverse is known up to a factor
    assert torch.allclose(out(x).double(), factor * net(x).double(), atol=1e-3)
    if isinstance(after, nn.Module):
        found = last_activation(whole, x)
        assert found is not None
        assert found.bounded == (not isinstance(after, nn.LogSoftmax))


def test_plain_logits_have_no_last_activation_and_float64_and_scaling_change_no_verdict() -> None:
    net, x, _ = digits()
    assert without_last_activation(net, x) is None
    wide = in_float64(net, x)
    assert wide is not None
    assert wide(x).dtype == torch.float64
    assert next(net.parameters()).dtype == torch.float32
    assert torch.allclose(wide(x).float(), net(x), atol=1e-4)
    assert torch.equal(Scaled(net, 10)(x), 10 * net(x))
    assert Scaled(wide, 3)(x).dtype == torch.float32


def test_a_network_that_cannot_run_in_float64_has_no_such_copy() -> None:
    _, x, _ = digits()
    fixed = Wrapped(nn.Flatten(), lambda x: x, lambda z: F.linear(z, torch.ones(10, 64))).eval()
    assert in_float64(fixed, x) is None


def test_the_inverse_of_a_saturated_sigmoid_reaches_further_than_float32() -> None:
    net, x, y = digits()
    saturated = Wrapped(net, nn.Identity(), lambda z: torch.sigmoid(9 * z)).eval()
    out = without_last_activation(saturated, x)
    assert out is not None
    random: SampleRandom = streams(60)
    flat = input_gradient(saturated, x, y, margin, random)[0].flatten(1).abs().amax(1)
    steep = input_gradient(Scaled(out, 1), x, y, margin, random)[0].flatten(1).abs().amax(1)
    assert flat.min() < 1e-6
    assert steep.min() > 0.1

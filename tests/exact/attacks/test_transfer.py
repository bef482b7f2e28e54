"""Transfer: made on the source, shown to the attacked network; with noise off, the network itself is the source."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, Threat, Transfer
from attacks.base import NoiseOff, RandomModule
from tests.helpers.attack_models import digits_net, linear_net, streams

THREAT = Threat(eps=0.15)


class Staircase(nn.Module):
    """A network behind an input rounded so finely that nothing changes but the gradient, which is zero."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network((x * 4096).round() / 4096)
        return out


class Noisy(RandomModule):
    """Noise on the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * self.draw(x)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(1) == y).double().mean().item()


def test_what_hides_its_gradients_falls_to_its_twin() -> None:
    twin, x, y = digits_net()
    model = Staircase(copy.deepcopy(twin)).eval()
    own = PGD(steps=20)(model, x, y, THREAT, streams(len(x)))
    borrowed = Transfer(source="natural", steps=20).on(twin)(model, x, y, THREAT, streams(len(x)))
    assert accuracy(model, own, y) > 0.9
    assert accuracy(model, borrowed, y) < 0.3
    assert (borrowed - x).abs().max() <= THREAT.eps + 1e-9


def test_the_attacked_network_chooses_among_the_paths() -> None:
    twin, x, y = digits_net()
    other = linear_net(10, 64, seed=4)
    source = linear_net(10, 64, seed=5)
    for model in (twin, other):
        one = Transfer(source="s", steps=5, restarts=1).on(source)(model, x, y, THREAT, streams(len(x)))
        six = Transfer(source="s", steps=5, restarts=6).on(source)(model, x, y, THREAT, streams(len(x)))
        assert accuracy(model, six, y) <= accuracy(model, one, y)
        fooled = model(one).argmax(1) != y
        assert (model(six).argmax(1) != y)[fooled].all()


def test_a_source_only_named_is_refused() -> None:
    net, x, y = digits_net()
    with pytest.raises(ValueError, match="source: expected a network"):
        Transfer(source="natural")(net, x, y, THREAT, streams(len(x)))
    bound = Transfer(source="natural").on(net)
    assert bound == Transfer(source="natural")  # the settings, and so the records, are the same
    assert Transfer(source="natural").surrogate is None


def test_noise_off_climbs_the_network_without_its_noise() -> None:
    net, x, y = digits_net()
    noisy = nn.Sequential(Noisy(), copy.deepcopy(net)).eval()
    silent = NoiseOff(noisy)
    assert torch.equal(silent(x), net(x))
    assert not torch.equal(noisy(x), net(x))
    made = Transfer(steps=10, restarts=1, random_start=False)(noisy, x, y, THREAT, streams(len(x)))
    without = Transfer(source="s", steps=10, restarts=1, random_start=False).on(net)
    assert torch.equal(made, without(net, x, y, THREAT, streams(len(x))))


def test_only_answers_are_asked_of_the_attacked_network() -> None:
    net, x, y = digits_net()
    asked = []

    class Counted(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            asked.append(z.requires_grad)
            out: Tensor = net(z)
            return out

    Transfer(source="s", steps=7, restarts=3).on(net)(Counted().eval(), x, y, THREAT, streams(len(x)))
    assert asked
    assert not any(asked)
    assert len(asked) <= 3

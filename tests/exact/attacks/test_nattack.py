"""NAttack: the step of its mean, what it breaks and at what price."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, SampleRandom, Threat
from attacks.base import Norm, RandomModule
from attacks.iterate import Best
from attacks.losses import margin
from attacks.nattack import NAttack
from robustbench_sparse.judging.judge import PassCounter
from tests.helpers.attack_models import digits_net, linear_net, smallest_norm, streams

NORMS: list[Norm] = ["linf", "l2"]


class Watched(nn.Module):
    """Class 0 whatever comes. Keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return torch.stack([5 + x.flatten(1).mean(1), x.flatten(1).mean(1) ** 2], 1)


class Noisy(RandomModule):
    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, z: Tensor) -> Tensor:
        return z + self.sigma * self.draw(z)


def middle(count: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return 0.4 + 0.2 * torch.rand(count, 1, 8, 8, generator=g, dtype=torch.float64)


def test_one_step_is_the_papers() -> None:
    """mu moves by eta / (b sigma) sum of z-scores times draws, the draws remade here from the same streams."""
    net, x, attack = linear_net(2, 64), middle(3), NAttack(samples=20, steps=1, learning_rate=0.3, sigma=0.2)
    y, threat = net(x).argmax(1), Threat(norm="l2", eps=0.05)
    mu = torch.atanh(2 * x - 1)
    rows = torch.arange(3)
    got = attack._step(net, x, mu, y, margin, threat, streams(3), Best(x), rows, False)
    for i in range(3):
        e = SampleRandom.for_images(0, "attack", [i]).normal(x.new_empty(1, 20, 1, 8, 8))[0]
        g = (torch.tanh(mu[i] + 0.2 * e) + 1) / 2
        delta = g - x[i]
        length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        points = x[i] + delta * (0.05 / length).clamp_max(1)
        f = margin(net(points), y[i].expand(20)).detach()
        score = (f - f.mean()) / f.std(correction=0)
        want = 0.3 / (20 * 0.2) * sum(score[k] * e[k] for k in range(20))
        assert (got[i] - want).abs().max() < 1e-9


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_falls_at_1_3_times_its_distance(norm: Norm) -> None:
    net, x = linear_net(3, 64), middle(8)
    y = net(x).argmax(1)
    attack = NAttack(samples=100, steps=60)
    assert attack.queries == 6060
    for i, distance in enumerate(smallest_norm(net, x, y, norm).tolist()):
        one, label = x[i : i + 1], y[i : i + 1]
        for factor, falls in ((1.3, True), (0.99, False)):
            threat = Threat(norm=norm, eps=factor * distance)
            x_adv = attack(net, one, label, threat, streams(1, seed=i))
            assert (net(x_adv).argmax(1) != label).item() is falls, (i, factor)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.8)])
def test_nearly_as_strong_as_gradients_on_digits(norm: Norm, eps: float) -> None:
    """Many pixels of the digits are 0, where tanh is flat."""
    net, x, y = digits_net()
    threat = Threat(norm=norm, eps=eps)
    black = NAttack(samples=60, steps=80)(net, x, y, threat, streams(len(x)))
    white = PGD(steps=50, restarts=2, loss="margin")(net, x, y, threat, streams(len(x)))
    fooled, by_gradients = ((net(a).argmax(1) != y).double().mean() for a in (black, white))
    assert 0.4 < by_gradients < 0.95
    assert fooled >= by_gradients - 0.03


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("samples", [40, 1500])
def test_every_query_lies_in_ball_and_box_and_parts_are_bounded(norm: Norm, samples: int) -> None:
    threat, attack = Threat(norm=norm, eps=0.1), NAttack(samples=samples, steps=4)
    for x in (middle(1), torch.zeros(1, 3, 5, 4), torch.ones(1, 1, 4, 4)):
        net = Watched().eval()
        attack(net, x, torch.zeros(1, dtype=torch.int64), threat, streams(1))
        seen = torch.cat(net.seen)
        assert len(seen) == attack.queries == 4 * (samples + 1)
        assert threat.size(seen - x).max() <= 0.1 + 1e-6
        assert seen.min() >= 0
        assert seen.max() <= 1
        assert max(len(s) for s in net.seen) <= 1024
    net = Watched().eval()
    attack(net, middle(60), torch.zeros(60, dtype=torch.int64), threat, streams(60))
    assert max(len(s) for s in net.seen) <= 1024


@pytest.mark.parametrize("norm", NORMS)
def test_images_fooled_leave_and_no_more_queries_than_said(norm: Norm) -> None:
    net, x, y = digits_net()
    threat = Threat(norm=norm, eps={"linf": 0.1, "l2": 0.8}[norm])
    for attack in (NAttack(samples=30, steps=20), NAttack(samples=30, steps=10, target="runner_up")):
        counter = PassCounter(net).eval()
        x_adv = attack(counter, x, y, threat, streams(len(x)))
        right = net(x_adv).argmax(1) == y
        assert counter.backwards == attack.passes == 0
        assert 0 < right.sum() < len(x)
        assert right.sum() * attack.queries <= counter.forwards < len(x) * attack.queries
        alone = attack(net, x[70:73], y[70:73], threat, SampleRandom.for_images(0, "attack", range(70, 73)))
        assert (alone - x_adv[70:73]).abs().max() < 1e-9


@pytest.mark.parametrize("norm", NORMS)
def test_a_random_network_is_attacked_to_the_end(norm: Norm) -> None:
    """Noise that decides single answers near the boundary ends no attack, and does not mislead it."""
    net, x = linear_net(3, 64), middle(6)
    y = net(x).argmax(1)
    threat = Threat(norm=norm, eps=1.5 * smallest_norm(net, x, y, norm).median().item())
    gap = -net(x).topk(2).values.diff(dim=1).mean().item()
    noisy = nn.Sequential(net, Noisy(0.1 * gap)).eval()
    counter = PassCounter(noisy).eval()
    attack = NAttack(samples=40, steps=60, eot=3)
    x_adv = attack(counter, x, y, threat, streams(6))
    assert counter.forwards == 6 * attack.queries * 3
    assert (net(x_adv).argmax(1) != y).double().mean() >= 5 / 6  # judged without the noise
    alone = attack(noisy, x[3:4], y[3:4], threat, SampleRandom.for_images(0, "attack", [3]))
    assert (alone - x_adv[3:4]).abs().max() < 1e-9


def test_a_flat_network_and_an_unbounded_threat_do_no_harm() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]], dtype=x.dtype).expand(len(x), 2)

    x, y = middle(2), torch.zeros(2, dtype=torch.int64)
    assert NAttack(samples=10, steps=3)(Flat().eval(), x, y, Threat(), streams(2)).isfinite().all()
    net, x, y = digits_net()
    for norm in NORMS:
        x_adv = NAttack(samples=60, steps=60, learning_rate=0.2)(
            net, x[:10], y[:10], Threat(norm=norm, eps=math.inf), streams(10)
        )
        assert (net(x_adv).argmax(1) != y[:10]).all()


@pytest.mark.parametrize("noisy", [False, True])
def test_a_network_that_is_nan_in_places_has_not_withstood(noisy: bool) -> None:
    class Patchy(Watched):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return torch.where((x[:, :, 0, 0].sum(1) > 0.5)[:, None], out * math.nan, out)

    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    for norm in NORMS:
        net = nn.Sequential(Patchy(), Noisy(0.01) if noisy else nn.Identity()).eval()
        x_adv = NAttack(samples=10, steps=3)(net, x, y, Threat(norm=norm, eps=0.1), streams(2))
        assert net(x_adv).isnan().all()

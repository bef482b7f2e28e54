"""Smoothed: no other than APGD on networks of ReLUs, and better where activations are sparsified."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from torch import Tensor, nn

from attacks import APGD, AutoAttack, SampleRandom, Smoothed, Threat
from attacks.base import RandomModule
from attacks.sparsifying import OtherBackward
from defenses import MeanSparse
from defenses.base import Step
from defenses.robust.broken import KWinners, Staircase
from tests.helpers.attack_models import linear_net, rivals
from tests.helpers.certificate_subjects import CLASSES, EPS, FIRST, digits, trained

COUNT = 80
THREAT = Threat(eps=EPS)


def images() -> tuple[Tensor, Tensor]:
    x, y = digits()
    return x[FIRST : FIRST + COUNT], y[FIRST : FIRST + COUNT]


def streams(seed: int = 0, count: int = COUNT) -> SampleRandom:
    return SampleRandom.for_images(seed, "attack", range(count))


@functools.cache
def mean_sparse(alpha: float = 0.5) -> nn.Module:
    """The adversarially trained network, sparsified as a run would."""
    defense = MeanSparse(alpha=alpha, images=512)
    model = defense.wrap(lambda: copy.deepcopy(trained(adversarially=True)))()
    generator = torch.Generator().manual_seed(0)
    source = lambda split, count, g: digits()[0][torch.randperm(FIRST, generator=g)[:count]]  # noqa: E731
    defense.begin(Step(model, None, THREAT, generator, source))
    return defense.deploy(model).eval()


def correct(
    attack: APGD | Smoothed | AutoAttack, net: nn.Module, threat: Threat = THREAT, seed: int = 0
) -> Tensor:
    """Whether images are still classified right, bool (COUNT,); judged on the network itself."""
    x, y = images()
    with torch.no_grad():
        out: Tensor = net(threat.project(attack(net, x, y, threat, streams(seed)), x)).argmax(1) == y
    return out


@pytest.mark.parametrize("loss", ["margin", "pma"])
@pytest.mark.parametrize("adversarially", [False, True])
def test_on_a_network_of_relus_it_is_apgd(adversarially: bool, loss: str) -> None:
    x, y = images()
    net, settings = trained(adversarially=adversarially), {"steps": 20, "loss": loss, "restarts": 2}
    mine, plain = (a(**settings)(net, x, y, THREAT, streams()) for a in (Smoothed, APGD))  # type: ignore[arg-type]
    assert torch.equal(mine, plain)


def test_images_that_stand_take_all_passes_and_no_more_where_modules_sparsify() -> None:
    calls: list[int] = []

    class Held(nn.Module):
        """Nothing moves its verdict."""

        def __init__(self) -> None:
            super().__init__()
            self.winners = KWinners(0.5)

        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                calls.append(len(x))
            tilt = 1e-3 * self.winners(x).flatten(1).sum(1)
            return torch.stack((10 + tilt, -tilt, -2 * tilt, -3 * tilt), 1)

    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    attack = Smoothed(steps=7, restarts=2, targets=2)
    attack(Held().eval(), x, torch.zeros(3, dtype=torch.int64), THREAT, streams(count=3))
    assert sum(calls) == 3 * attack.passes == 3 * 7 * 2 * (1 + 3 + 2)
    assert Smoothed(steps=7, eot=5).passes == 7 * 5 * 7


def test_a_staircase_before_a_linear_network_is_walked_through() -> None:
    """In closed form: from pixels on the stairs to others, it loses what the linear network alone loses at most."""
    net, stairs = linear_net(3, 36, seed=1), 64
    behind = nn.Sequential(Staircase(float(stairs)), net).eval()
    x = torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(2)).double() * 0.3 + 0.35
    x = (x * stairs).round() / stairs
    y = net(x).argmax(1)
    gaps, w = rivals(net, x, y)
    dual = w.abs().sum(2)
    needed = (gaps / dual).scatter(1, y[:, None], math.inf).amin(1)
    threat = Threat(eps=math.ceil(needed.median().item() * stairs) / stairs)
    assert threat.eps <= 0.34  # the box is out of reach
    reachable = (gaps - threat.eps * dual).scatter(1, y[:, None], math.inf).amin(1)
    clear = reachable.abs() > 0.01
    assert 0 < (reachable[clear] < 0).double().mean() < 1
    found = Smoothed(steps=40)(behind, x, y, threat, streams(count=30))
    plain = APGD(steps=40, loss="margin")(behind, x, y, threat, streams(count=30))
    assert torch.equal((behind(found).argmax(1) != y)[clear], (reachable < 0)[clear])
    assert (behind(plain).argmax(1) != y).sum() < (reachable < 0).sum()


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_mean_sparse_loses_points_that_apgd_and_autoattack_do_not_see(alpha: float) -> None:
    net = mean_sparse(alpha)
    plain = torch.stack([correct(APGD(steps=50, loss="margin"), net, seed=s) for s in range(2)]).all(0)
    auto = correct(AutoAttack(steps=30, targets=2, queries=300), net)
    mine = correct(Smoothed(steps=50), net)
    assert mine.float().mean() <= plain.float().mean() - 0.03
    assert mine.float().mean() <= auto.float().mean()


def test_it_works_on_random_networks_and_towards_a_class() -> None:
    class Noise(RandomModule):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.05 * self.draw(x)

    x, y = images()
    net = nn.Sequential(Noise(), mean_sparse()).eval()
    few = slice(0, 12)
    attack = Smoothed(steps=8, eot=2)
    first, again = (attack(net, x[few], y[few], THREAT, streams(count=12)) for _ in range(2))
    assert torch.equal(first, again)
    alone = attack(net, x[3:4], y[3:4], THREAT, SampleRandom.for_images(0, "attack", [3]))
    assert (alone - first[3:4]).abs().max() < 1e-5
    goal, wide = (y + 1) % CLASSES, Threat(eps=0.6)
    reached = Smoothed(steps=20, target="given")(mean_sparse(), x, goal, wide, streams())
    assert (mean_sparse()(reached).argmax(1) == goal).float().mean() > 0.9


def test_what_it_climbs_on_is_attacked_as_any_network() -> None:
    """The surrogate alone, by name of its module: a softened slope moves more of the images than its own."""
    x, y = images()
    net = mean_sparse(1.0)
    names = frozenset(n for n, m in net.named_modules() if type(m).__name__ == "MeanSparsified")
    assert names
    shares = []
    for on in (net, OtherBackward(net, names, "softened")):
        point = THREAT.project(APGD(steps=30, loss="margin")(on, x, y, THREAT, streams()), x)
        shares.append((net(point).argmax(1) == y).float().mean().item())
    assert shares[1] < shares[0]

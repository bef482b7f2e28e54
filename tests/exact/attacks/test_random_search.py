"""RandomSearch: where its draws lie, what it finds and at what price."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from attacks import SampleRandom, Threat
from attacks.base import Norm, RandomModule
from attacks.random_search import RandomSearch, margins_of, to_show
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
        return torch.stack([5 + x.flatten(1).mean(1), x.flatten(1).mean(1)], 1)


class Noisy(RandomModule):
    def forward(self, z: Tensor) -> Tensor:
        return z + 0.5 * self.draw(z)


def drawn(attack: RandomSearch, x: Tensor, threat: Threat) -> Tensor:
    net = Watched().eval()
    attack(net, x, torch.zeros(1, dtype=torch.int64), threat, streams(1))
    return torch.cat(net.seen)


def test_draws_in_the_cube_are_uniform_and_corners_are_corners() -> None:
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    x[0, 0, 0, 0] = 0.05  # the cube sticks out of the box here
    seen = drawn(RandomSearch(queries=4000, corners=0.25), x, Threat(eps=0.2))
    low, high = Threat(eps=0.2).bounds(x)
    corner = ((seen == low) | (seen == high)).flatten(1).all(1)
    assert len(seen) == 4000
    assert corner.sum() == 1000
    assert abs((seen[corner] == high).double().mean().item() - 0.5) < 0.04
    u = ((seen[~corner] - low) / (high - low)).flatten(1)
    assert u.min() >= 0
    assert u.max() <= 1
    # U(0, 1) has mean 1/2 and variance 1/12; 3000 draws of 4 pixels.
    assert (u.mean(0) - 0.5).abs().max() < 0.025
    assert (u.var(0) - 1 / 12).abs().max() < 0.006


def test_draws_in_the_ball_are_uniform_and_others_on_the_sphere() -> None:
    x, threat = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64), Threat(norm="l2", eps=0.3)
    seen = drawn(RandomSearch(queries=4000), x, threat)
    radius = threat.size(seen - x) / 0.3
    sphere = (radius - 1).abs() < 1e-9
    assert len(seen) == 4000
    assert sphere.sum() == 2000
    # The volume within radius r of a ball in 4 dimensions is r^4: r^4 is U(0, 1).
    assert abs((radius[~sphere] ** 4).mean().item() - 0.5) < 0.03
    assert (seen - x).flatten(1).mean(0).abs().max() < 0.01
    clipped = drawn(RandomSearch(queries=500), torch.zeros(1, 3, 4, 4), threat)
    assert clipped.min() >= 0
    assert threat.size(clipped).max() <= 0.3 + 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_of_six_pixels_falls_at_1_3_times_its_distance(norm: Norm) -> None:
    net = linear_net(3, 6)
    x = 0.45 + 0.1 * torch.rand(10, 1, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = net(x).argmax(1)
    for i, distance in enumerate(smallest_norm(net, x, y, norm).tolist()):
        if 1.3 * distance > 0.45:  # the box would be in the way
            continue
        one, label = x[i : i + 1], y[i : i + 1]
        for factor, falls in ((1.3, True), (0.99, False)):
            threat = Threat(norm=norm, eps=factor * distance)
            x_adv = RandomSearch(queries=2000)(net, one, label, threat, streams(1, seed=i))
            assert (net(x_adv).argmax(1) != label).item() is falls, (i, factor)


@pytest.mark.parametrize("norm", NORMS)
def test_images_fooled_leave_and_the_budget_holds(norm: Norm) -> None:
    net, x, y = digits_net()
    threat = Threat(norm=norm, eps={"linf": 0.3, "l2": 2.0}[norm])
    for attack in (RandomSearch(queries=300), RandomSearch(queries=101, target="runner_up")):
        counter = PassCounter(net).eval()
        x_adv = attack(counter, x, y, threat, streams(len(x)))
        assert counter.backwards == attack.passes == 0
        fooled = net(x_adv).argmax(1) != y
        assert 0 < fooled.sum() < len(x)
        assert counter.forwards < len(x) * attack.queries
        assert counter.forwards >= (~fooled).sum() * attack.queries
        again = attack(net, x[50:60], y[50:60], threat, SampleRandom.for_images(0, "attack", range(50, 60)))
        assert (again - x_adv[50:60]).abs().max() < 1e-9
        rest = ~fooled
        margin = torch.topk(net(x_adv[rest]), 2).values.diff(dim=1)
        before = torch.topk(net(x[rest]), 2).values.diff(dim=1)
        if attack.target == "none":
            assert (margin > before).all(), "the best of the draws, though it does not fool"


def test_a_random_network_is_asked_to_the_end() -> None:
    net, x, y = digits_net()
    noisy, threat = nn.Sequential(net, Noisy()).eval(), Threat(eps=0.3)
    counter = PassCounter(noisy).eval()
    attack = RandomSearch(queries=99, eot=3)
    x_adv = attack(counter, x[:10], y[:10], threat, streams(10))
    assert counter.forwards == 10 * 99 * 3
    alone = attack(noisy, x[4:5], y[4:5], threat, SampleRandom.for_images(0, "attack", [4]))
    assert (alone - x_adv[4:5]).abs().max() < 1e-9


def test_what_best_is_shown() -> None:
    nan, inf = math.nan, math.inf
    m = torch.tensor([[-3.0, -1.0, -2.0], [-3.0, nan, -2.0], [1.0, nan, 2.0], [-1.0, -3.0, inf]])
    assert to_show(m).tolist() == [1, 1, 2, 2]


def test_points_sent_in_parts_give_the_same_margins() -> None:
    net, _, y = digits_net()
    points = torch.rand(1, 2500, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def first(z: Tensor, label: Tensor) -> Tensor:
        return z.gather(1, label[:, None])[:, 0]

    got = margins_of(net, points, y[:1], first, streams(1))
    assert got.shape == (1, 2500)
    assert (got[0] - net(points[0])[:, y[0]]).abs().max() < 1e-9


def test_an_unbounded_ball_is_refused_and_an_unbounded_cube_is_the_box() -> None:
    net, x, y = digits_net()
    with pytest.raises(ValueError, match="eps: expected a finite number"):
        RandomSearch()(net, x, y, Threat(norm="l2", eps=math.inf), streams(len(x)))
    x_adv = RandomSearch(queries=200)(net, x[:20], y[:20], Threat(eps=math.inf), streams(20))
    assert (net(x_adv).argmax(1) != y[:20]).all()


def test_a_network_that_is_nan_in_places_has_not_withstood() -> None:
    class Patchy(Watched):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return torch.where((x[:, :, 0, 0].sum(1) > 0.5)[:, None], out * math.nan, out)

    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    for norm in NORMS:
        net = Patchy().eval()
        x_adv = RandomSearch(queries=40)(net, x, y, Threat(norm=norm, eps=0.2), streams(2))
        assert net(x_adv).isnan().all()

"""Square: the paper's formulas, what it breaks and at what price, and the same attack of torchattacks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn

from attacks import Threat
from attacks.base import Norm, RandomModule, SampleRandom
from attacks.square import MANY, Square, _pattern, _tiles, _two_windows, _window
from robustbench_sparse.judging.judge import PassCounter
from tests.helpers.attack_models import digits_net, linear_net, smallest_norm, streams

NORMS: list[Norm] = ["linf", "l2"]


def middle(count: int, channels: int = 1, side: int = 8) -> Tensor:
    """Images far from the edges of the box."""
    g = torch.Generator().manual_seed(1)
    return 0.4 + 0.2 * torch.rand(count, channels, side, side, generator=g, dtype=torch.float64)


class Unbreakable(nn.Module):
    """Class 0 whatever comes; by how much depends on the image. Keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return torch.stack([5 + x.flatten(1).std(1), x.flatten(1).mean(1)], 1)


class Noisy(RandomModule):
    """Adds noise to the logits."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, z: Tensor) -> Tensor:
        return z + self.sigma * self.draw(z)


@pytest.mark.parametrize("side", [3, 4, 5, 7, 8])
def test_pattern_is_equation_2(side: int) -> None:
    def eta(h1: int, h2: int, r: int, s: int) -> float:
        n = h1 // 2
        m = n - max(abs(r - h1 // 2 - 1), abs(s - h2 // 2 - 1))
        return sum(1 / (n + 1 - k) ** 2 for k in range(m + 1))

    k = side // 2
    rows = [
        [eta(side, k, r, s) for s in range(1, k + 1)]
        + [-eta(side, side - k, r, s) for s in range(1, side - k + 1)]
        for r in range(1, side + 1)
    ]
    want = torch.tensor(rows, dtype=torch.float64)
    assert torch.allclose(_pattern(side, torch.zeros(1, dtype=torch.float64)), want / want.norm(), atol=1e-12)


def test_pattern_of_three_pixels() -> None:
    want = torch.tensor([[1.0, -1.0, -1.0], [5.0, -1.0, -5.0], [1.0, -1.0, -1.0]]) / math.sqrt(57)
    assert torch.allclose(_pattern(3, torch.zeros(1)), want)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_window_is_a_square_that_changes_at_the_ends_of_the_range(channels: int) -> None:
    x, threat = middle(200, channels), Threat(eps=0.1)
    low, high = threat.bounds(x)
    point, u = low.clone(), streams(200).uniform(x.new_empty(200, 5 + channels))
    new = _window(x, point, threat, 3, u)
    changed = new != point
    assert ((new == low) | (new == high)).all()
    assert changed.flatten(1).any(1).all()
    for c in changed.amax(1):  # all changed pixels form one 3 by 3 square
        rows, columns = c.any(1).nonzero().flatten(), c.any(0).nonzero().flatten()
        assert len(rows) == rows.max() - rows.min() + 1 == 3
        assert len(columns) == columns.max() - columns.min() + 1 == 3
        assert c.sum() == 9
    tops = changed.amax(1).any(2).double().argmax(1)
    assert set(tops.tolist()) == set(range(6)), "every place is reached, the last one too"


def test_two_windows_keep_the_length_and_empty_the_second() -> None:
    x, threat = middle(50, 3), Threat(norm="l2", eps=0.3)
    point = _tiles(x, threat, streams(50))
    assert torch.allclose(threat.size(point - x), torch.full((50,), 0.3, dtype=torch.float64), atol=1e-12)
    u = streams(50, seed=1).uniform(x.new_empty(50, 8))
    u[:, :2], u[:, 2:4] = 0.0, 0.999  # opposite corners of the image
    shorter = x + 0.8 * (point - x)  # the rest of eps goes to the first window
    nu = _two_windows(x, shorter, threat, 3, u) - x
    assert torch.allclose(threat.size(nu), torch.full((50,), 0.3, dtype=torch.float64), atol=1e-12)
    assert (nu[:, :, 5:, 5:] == 0).all()
    kept = torch.ones(8, 8, dtype=torch.bool)
    kept[:3, :3] = kept[5:, 5:] = False
    assert torch.allclose(nu[:, :, kept], (shorter - x)[:, :, kept], atol=1e-15)
    # Algorithm 3: each channel has what it had in both windows and a third of what was left.
    before = ((shorter - x)[:, :, ~kept] ** 2).sum(2) + 0.09 * (1 - 0.64) / 3
    assert torch.allclose((nu[:, :, :3, :3] ** 2).sum((2, 3)), before, atol=1e-12)


def test_windows_shrink_on_the_papers_schedule() -> None:
    x = torch.zeros(1, 3, 32, 32)
    linf, l2 = Threat(), Threat(norm="l2", eps=0.5)
    at = [0.0, 0.001, 0.0011, 0.0051, 0.0201, 0.0501, 0.1001, 0.2001, 0.4001, 0.6001, 0.8001]
    p = [0.8 / 2**k for k in (0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)]
    assert [Square()._side(x, t, linf) for t in at] == [max(1, round(32 * math.sqrt(v))) for v in p]
    assert [Square()._side(x, t, l2) for t in (0.0, 0.15, 0.9)] == [29, 5, 3]
    assert Square(p_init=None)._side(x, 0, linf) == round(32 * math.sqrt(0.05))
    assert Square(p_init=None)._side(x, 0, l2) == 11  # 32 * sqrt(0.1) = 10.1, made odd
    assert Square()._side(torch.zeros(1, 1, 2, 9), 0, l2) == 2, "no larger than the image"


def blurred(net: nn.Module) -> nn.Module:
    """The linear network with its weights averaged over 3 by 3 pixels, and even for grey: the box is far away."""
    w = net[1].weight
    with torch.no_grad():
        w.copy_(F.avg_pool2d(w.view(-1, 1, 8, 8), 3, 1, 1).view_as(w))
        net[1].bias.copy_(-0.5 * w.sum(1))
    return net


@pytest.mark.parametrize(
    ("norm", "smooth", "queries", "factor"),
    [("linf", False, 600, 1.3), ("linf", True, 600, 1.3), ("l2", True, 1500, 1.5), ("l2", False, 1500, 2.0)],
)
def test_a_linear_network_falls_near_its_distance(
    norm: Norm, smooth: bool, queries: int, factor: float
) -> None:
    """Windows of l2 have 3 by 3 pixels at least: it fits the weights of neighbours slowly, and others still slower."""
    net = blurred(linear_net(3, 64)) if smooth else linear_net(3, 64)
    clean = middle(3)
    for i, distance in enumerate(smallest_norm(net, clean, net(clean).argmax(1), norm).tolist()):
        x = clean[i : i + 1].repeat(4, 1, 1, 1)  # four searches
        y = net(x).argmax(1)
        x_adv = Square(queries=queries)(net, x, y, Threat(norm=norm, eps=factor * distance), streams(4))
        assert (net(x_adv).argmax(1) != y).all(), i
        near = Square(queries=100)(net, x, y, Threat(norm=norm, eps=0.99 * distance), streams(4))
        assert (net(near).argmax(1) == y).all(), i


@pytest.mark.parametrize("p_init", [0.8, None])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.8)])
def test_not_weaker_than_torchattacks_at_equal_queries(norm: Norm, eps: float, p_init: float | None) -> None:
    net, x, y = digits_net()
    ours = Square(queries=300, p_init=p_init)(net, x, y, Threat(norm=norm, eps=eps), streams(len(x)))
    with torch.random.fork_rng():
        theirs = torchattacks.Square(net, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, n_queries=300)(
            x, y
        )
    fooled, theirs_fooled = ((net(a).argmax(1) != y).double().mean() for a in (ours, theirs))
    assert theirs_fooled > 0.1
    assert fooled >= theirs_fooled - 0.03


@pytest.mark.parametrize("norm", NORMS)
def test_every_query_lies_in_ball_and_box_and_all_are_used(norm: Norm) -> None:
    threat, y = Threat(norm=norm, eps=0.4), torch.zeros(1, dtype=torch.int64)
    for x in (middle(1), torch.zeros(1, 3, 7, 10), torch.ones(1, 1, 4, 4), torch.rand(1, 2, 1, 1)):
        net = Unbreakable().eval()
        Square(queries=150, restarts=2)(net, x, y, threat, streams(1))
        seen = torch.cat(net.seen)
        assert len(seen) == 150
        assert threat.size(seen - x).max() <= 0.4 + 1e-6
        assert seen.min() >= 0
        assert seen.max() <= 1
        assert (seen != x).flatten(1).any(1).all()


@pytest.mark.parametrize("norm", NORMS)
def test_no_more_queries_than_said(norm: Norm) -> None:
    net, x, y = digits_net()
    for attack in (Square(queries=60), Square(queries=61, restarts=3, target="runner_up")):
        counter = PassCounter(net).eval()
        x_adv = attack(counter, x[:40], y[:40], Threat(norm=norm, eps=0.15), streams(40))
        assert counter.backwards == attack.passes == 0
        fooled = (net(x_adv).argmax(1) != y[:40]).sum()
        assert 0 < counter.forwards <= 40 * attack.queries
        assert fooled == 0 or counter.forwards < 40 * attack.queries, "images fooled leave"


def test_a_stand_in_is_told_of_thousands_of_questions_and_no_fewer() -> None:
    class Preparing(nn.Module):
        """A stand-in with a part to prepare; keeps whether it was told when it was asked."""

        asked = False

        def __init__(self) -> None:
            super().__init__()
            self.told: list[bool] = []

        def forward(self, x: Tensor) -> Tensor:
            self.told.append(self.asked)
            return torch.stack([5 + x.flatten(1).std(1), x.flatten(1).mean(1)], 1)

    x, y = middle(1, side=4), torch.zeros(1, dtype=torch.int64)
    for queries in (MANY - 1, MANY):
        net = Preparing().eval()
        Square(queries=queries)(net, x, y, Threat(eps=0.1), streams(1))
        assert net.told == [queries == MANY] * queries
        assert not net.asked


def test_looking_now_and_then_who_is_fooled_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = digits_net()

    def found() -> Tensor:
        return Square(queries=200)(net, x[:60], y[:60], Threat(eps=0.12), streams(60))

    at_once = found()
    monkeypatch.setattr("attacks.square._patience", lambda x: 16)
    assert 0 < (net(at_once).argmax(1) != y[:60]).sum() < 60
    assert torch.allclose(found(), at_once, atol=1e-12)


def test_an_unbounded_cube_is_the_box() -> None:
    net, x, y = digits_net()
    x_adv = Square(queries=200)(net, x[:20], y[:20], Threat(eps=math.inf), streams(20))
    assert (net(x_adv).argmax(1) != y[:20]).all()
    with pytest.raises(ValueError, match="eps: expected a finite number for l2"):
        Square()(net, x, y, Threat(norm="l2", eps=math.inf), streams(len(x)))


@pytest.mark.parametrize("norm", NORMS)
def test_a_random_network_is_searched_to_the_end(norm: Norm) -> None:
    """Noise that decides single answers near the boundary ends no search, and does not mislead it."""
    net, x = linear_net(3, 64), middle(6)
    y = net(x).argmax(1)
    factor = {"linf": 1.5, "l2": 2.0}[norm]
    threat = Threat(norm=norm, eps=factor * smallest_norm(net, x, y, norm).median().item())
    gap = -net(x).topk(2).values.diff(dim=1).mean().item()
    noisy = nn.Sequential(net, Noisy(0.03 * gap)).eval()
    counter = PassCounter(noisy).eval()
    attack = Square(queries=1201, eot=4)
    x_adv = attack(counter, x, y, threat, streams(6))
    assert counter.forwards == 6 * 1201 * 4
    assert (net(x_adv).argmax(1) != y).double().mean() >= 5 / 6  # judged without the noise
    alone = attack(noisy, x[3:4], y[3:4], threat, SampleRandom.for_images(0, "attack", [3]))
    assert (alone - x_adv[3:4]).abs().max() < 1e-9


def test_a_network_that_is_nan_in_places_has_not_withstood() -> None:
    class Patchy(Unbreakable):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            odd = (x[:, :, :2].flatten(1).amax(1) > 0.5)[:, None]
            return torch.where(odd, out * math.nan, out)

    x, y = torch.full((2, 1, 6, 6), 0.5), torch.zeros(2, dtype=torch.int64)
    for norm in NORMS:
        net = Patchy().eval()
        x_adv = Square(queries=60)(net, x, y, Threat(norm=norm, eps=0.2), streams(2))
        assert net(x_adv).isnan().all()

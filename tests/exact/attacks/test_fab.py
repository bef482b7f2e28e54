"""FAB: the projection against its optimality conditions, distances of linear networks, and torchattacks."""

from __future__ import annotations

import math

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from attacks import CW, Threat
from attacks.base import Norm, RandomModule
from attacks.fab import BISECTIONS, FAB, _at_distance, project_hyperplane
from robustbench_sparse.judging.judge import PassCounter
from tests.helpers.attack_models import digits_net, linear_net, smallest_norm, smallest_norm_in_box, streams

BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planes(count: int = 300) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points with pixels on the edge, normals with zeros, offsets of both signs, and the largest <w, d> there is."""
    x = (1.4 * uniform(count, 2, 3, 3) - 0.2).clamp(0, 1)
    w = uniform(count, 2, 3, 3, seed=1) - 0.5
    w = w * (uniform(count, 2, 3, 3, seed=2) > 0.2)
    sign = torch.where(uniform(count, seed=3) > 0.5, 1.0, -1.0)
    room = torch.where(w * sign.view(-1, 1, 1, 1) > 0, 1 - x, x)
    return x, w, sign, (w.abs() * room).flatten(1).sum(1)


def by_bisection(x: Tensor, w: Tensor, b: Tensor, norm: str) -> Tensor:
    """The same projection found without sorting: d = clip(t sign(b) s), t by bisection."""
    step = torch.where(b < 0, -1.0, 1.0).view(-1, 1, 1, 1) * (w if norm == "l2" else w.sign())
    low, high = torch.zeros_like(b), torch.full_like(b, 1e9)
    for _ in range(200):
        t = (low + high) / 2
        d = (x + t.view(-1, 1, 1, 1) * step).clamp(0, 1) - x
        enough = (w * d).flatten(1).sum(1).abs() >= b.abs()
        low, high = torch.where(enough, low, t), torch.where(enough, t, high)
    return (x + high.view(-1, 1, 1, 1) * step).clamp(0, 1) - x


@BOTH
def test_projection_is_exact(norm: Norm) -> None:
    x, w, sign, most = planes()
    b = sign * most * uniform(len(x), seed=4)
    d = project_hyperplane(x, w, b, norm)
    assert ((w * d).flatten(1).sum(1) - b).abs().max() < 1e-12
    assert (x + d).min() >= -1e-15
    assert (x + d).max() <= 1 + 1e-15
    assert (d - by_bisection(x, w, b, norm)).abs().max() < 1e-9
    single = project_hyperplane(x.float(), w.float(), b.float(), norm)
    assert (single - d).abs().max() < 1e-4


@BOTH
def test_projection_is_smaller_than_any_other_step_to_the_plane(norm: Norm) -> None:
    """Against random steps that meet the hyperplane inside the box: found as mixtures with the farthest corner."""
    x, w, sign, most = planes()
    b = sign * most * 0.5
    best = Threat(norm=norm, eps=1.0).size(project_hyperplane(x, w, b, norm))
    push = sign.view(-1, 1, 1, 1) * w
    corner = torch.where(push > 0, 1 - x, torch.where(push < 0, -x, torch.zeros_like(x)))
    for seed in range(20):
        other = uniform(*x.shape, seed=100 + seed) - x
        at_other, at_corner = (((w * d).flatten(1).sum(1) * sign) for d in (other, corner))
        below = at_other < b.abs()
        share = ((b.abs() - at_other) / (at_corner - at_other)).view(-1, 1, 1, 1)
        step = (1 - share) * other + share * corner
        assert below.sum() > 100
        assert (Threat(norm=norm, eps=1.0).size(step)[below] >= best[below] - 1e-12).all()


@BOTH
def test_a_plane_outside_the_box_is_approached_as_far_as_the_box_allows(norm: Norm) -> None:
    x, w, sign, most = planes()
    d = project_hyperplane(x, w, sign * (most + 1), norm)
    assert ((w * d).flatten(1).sum(1) - sign * most).abs().max() < 1e-12
    assert (d[w == 0] == 0).all()
    nowhere = project_hyperplane(x, torch.zeros_like(x), sign, norm)
    assert (nowhere == 0).all()
    assert project_hyperplane(x, torch.full_like(x, math.nan), sign, norm).isnan().all()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_distance_of_a_linear_network_in_the_box(norm: Norm, dtype: torch.dtype) -> None:
    net, threat = linear_net(2, 64, seed=1), Threat(norm=norm, eps=0.1)
    x = uniform(150, 1, 8, 8)
    y = net(x).argmax(1)
    distance = smallest_norm_in_box(net, x, y, norm)
    single = linear_net(2, 64, seed=1).to(dtype)
    x_adv = FAB(steps=20)(single, x.to(dtype), y, threat, streams(150))
    assert (single(x_adv).argmax(1) != y).all()
    ratio = threat.size(x_adv.double() - x) / distance
    assert ratio.median() <= 1.01  # 1.002 at most
    assert ratio.max() <= 1.05
    assert ratio.min() >= 1 - 1e-4


@BOTH
def test_distance_of_a_linear_network_of_many_classes(norm: Norm) -> None:
    """The nearest of all boundaries, though it need not be that of the likeliest wrong class."""
    net, threat = linear_net(10, 64, seed=1, scale=0.05), Threat(norm=norm, eps=0.1)
    x = 0.3 + 0.4 * uniform(100, 1, 8, 8)  # the edges of the box are out of reach
    y = net(x).argmax(1)
    distance = smallest_norm(net, x, y, norm)
    everywhere = threat.size(FAB(steps=20)(net, x, y, threat, streams(100)) - x) / distance
    assert everywhere.median() <= 1.01
    assert everywhere.max() <= 1.05
    assert everywhere.min() >= 1 - 1e-9
    nearest = threat.size(FAB(steps=20, targets=1)(net, x, y, threat, streams(100)) - x) / distance
    assert nearest.max() > 1.05
    assert nearest.median() <= 1.05


@BOTH
def test_not_farther_than_torchattacks_and_cw(norm: Norm) -> None:
    net, x, y = digits_net()
    threat = Threat(norm=norm, eps=3.0)
    ours = FAB(steps=20)(net, x, y, threat, streams(len(x)))
    assert (net(ours).argmax(1) != y).all()
    name = "Linf" if norm == "linf" else "L2"
    other = torchattacks.FAB(
        net.float(), norm=name, eps=10.0, steps=20, n_restarts=1, multi_targeted=True, n_classes=10
    )
    theirs = other(x.float(), y).double()
    net.double()
    assert (net(theirs).argmax(1) != y).double().mean() > 0.95
    # Theirs leaves an image at the first class it reaches within eps: that is ours with one class.
    one = threat.size(FAB(steps=20, targets=1)(net, x, y, threat, streams(len(x))) - x)
    their_sizes, sizes = threat.size(theirs - x), threat.size(ours - x)
    assert (one / their_sizes).median() <= 1.002
    assert (one / their_sizes).max() <= 1.05
    assert (sizes <= 1.002 * one).all()
    cw = CW(steps=60, search_steps=6)(net, x, y, threat, streams(len(x)))
    assert sizes.median() <= 1.01 * threat.size(cw - x).median()


class Sphere(nn.Module):
    """Class 1 outside a sphere around the grey image: at its centre the gradient is zero, everywhere else radial."""

    radius = 0.4

    def forward(self, x: Tensor) -> Tensor:
        out = ((x - 0.5) ** 2).flatten(1).sum(1) - self.radius**2
        return torch.stack([torch.zeros_like(out), out], 1)


@BOTH
def test_normals_that_are_zero_or_no_numbers_come_to_an_end(norm: Norm) -> None:
    x, w, sign, most = planes(4)
    w[0], w[1] = 0, math.nan
    b = 0.3 * sign * most.nan_to_num(1) + 0.1
    b[2] = math.inf
    d = project_hyperplane(x, w, b, norm)
    assert (d[0] == 0).all()
    assert d[1].isnan().all()
    assert torch.equal((x + d)[2], by_bisection(x[2:3], w[2:3], 2 * sign[2:3] * most[2:3], norm)[0] + x[2])
    assert (w[3] * d[3]).sum().item() == pytest.approx(b[3].item())


@BOTH
def test_a_path_along_the_boundary_takes_one_gradient_a_step(norm: Norm) -> None:
    """Of a linear network every step fools: the first of them costs two gradients, the others an answer and one."""
    net, steps = linear_net(2, 64, seed=1), 12
    x = 0.4 + 0.2 * uniform(20, 1, 8, 8)
    counter = PassCounter(net).eval()
    FAB(steps=steps)(counter, x, net(x).argmax(1), Threat(norm=norm, eps=0.1), streams(20))
    assert counter.backwards == 20 * (steps + 1)
    clean, last = 1, 1
    assert counter.forwards == 20 * (clean + (steps + 1) + (steps - 2) + last + BISECTIONS)


@BOTH
def test_restarts_leave_a_point_without_a_gradient(norm: Norm) -> None:
    x, y = torch.full((10, 1, 4, 4), 0.5, dtype=torch.float64), torch.zeros(10, dtype=torch.int64)
    net, threat = Sphere().eval(), Threat(norm=norm, eps=0.2)
    assert torch.equal(FAB()(net, x, y, threat, streams(10)), x)
    x_adv = FAB(restarts=2)(net, x, y, threat, streams(10))
    distance = Sphere.radius if norm == "l2" else Sphere.radius / 4  # of the sphere; 16 pixels moved alike
    ratio = threat.size(x_adv - x) / distance
    assert (net(x_adv)[:, 1] > 0).all()
    assert ratio.min() >= 1
    assert ratio.max() <= 1.01


@BOTH
def test_the_radius_decides_where_restarts_begin_and_nothing_else(norm: Norm) -> None:
    net, x, y = digits_net()
    x, y, attack = x[:25], y[:25], FAB(steps=6, targets=3)
    small, large = (Threat(norm=norm, eps=eps) for eps in (0.01, math.inf))
    first = attack(net, x, y, small, streams(25))
    assert torch.equal(first, attack(net, x, y, large, streams(25)))
    again = FAB(steps=6, targets=3, restarts=3)
    with pytest.raises(ValueError, match="restarts: expected 1 where eps is infinite"):
        again(net, x, y, large, streams(25))
    more = small.size(again(net, x, y, small, streams(25)) - x)
    assert (more <= 1.002 * small.size(first - x)).all()  # 2^-10 of the bisection
    middle, radius = torch.full_like(x, 0.5), 0.4 * uniform(25)
    start = _at_distance(middle, radius, norm, streams(25))
    assert (small.size(start - middle) - radius).abs().max() < 1e-12


@BOTH
def test_a_class_can_be_given(norm: Norm) -> None:
    net, x, y = digits_net()
    x, goal = x[:40], (y[:40] + 1) % 10
    x_adv = FAB(steps=30, target="given")(net, x, goal, Threat(norm=norm, eps=0.1), streams(40))
    assert (net(x_adv).argmax(1) == goal).double().mean() >= 0.95


@BOTH
def test_an_image_fooled_already_stays_as_it_is(norm: Norm) -> None:
    net, x, y = digits_net()
    wrong = (y + 1) % 10
    x_adv = FAB(steps=3)(net, x[:5], wrong[:5], Threat(norm=norm, eps=0.1), streams(5))
    assert torch.equal(x_adv, x[:5])


class StandIn(nn.Module):
    """A network's fast stand-in whose boundary lies a little nearer."""

    def __init__(self, exact: nn.Module) -> None:
        super().__init__()
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.exact(x)
        return out + torch.tensor([0.0, 0.005], dtype=x.dtype)


@BOTH
def test_a_stand_ins_points_fool_the_network_itself(norm: Norm) -> None:
    net = linear_net(2, 64, seed=1)
    x = uniform(100, 1, 8, 8)
    x = x[(net(x)[:, 0] - net(x)[:, 1]) > 0.1]
    y, threat = torch.zeros(len(x), dtype=torch.int64), Threat(norm=norm, eps=0.1)
    x_adv = FAB(steps=10)(StandIn(net).eval(), x, y, threat, streams(len(x)))
    assert len(x) > 20
    assert (net(x_adv).argmax(1) != y).all()
    assert (threat.size(x_adv - x) / smallest_norm_in_box(net, x, y, norm)).median() <= 1.05


@BOTH
def test_result_depends_on_its_own_stream_alone(norm: Norm) -> None:
    net, x, y = digits_net()
    x, y, threat, attack = x[:20], y[:20], Threat(norm=norm, eps=0.2), FAB(steps=5, restarts=2, targets=2)
    y = y.clone()
    y[3] = (y[3] + 1) % 10  # fooled already
    together = attack(net, x, y, threat, streams(20))
    assert torch.equal(together, attack(net, x, y, threat, streams(20)))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    permuted = attack(net, x[order], y[order], threat, streams(20).subset(order))
    assert (permuted - together[order]).abs().max() < 1e-9
    row = torch.tensor([7])
    assert (attack(net, x[row], y[row], threat, streams(20).subset(row)) - together[7]).abs().max() < 1e-9


class Noisy(RandomModule):
    """Adds noise to the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.02 * self.draw(x)


@pytest.mark.usefixtures("one_pass_at_a_time")
@BOTH
def test_a_random_network_and_its_passes(norm: Norm) -> None:
    net, x, y = digits_net()
    x, y, noisy = x[:30], y[:30], nn.Sequential(Noisy(), net).eval()
    attack, count = FAB(steps=6, eot=4, targets=2), list[int]()
    for p in net.parameters():
        p.requires_grad_(False)
    hook = net.register_forward_hook(lambda _, args, out: count.append(int(out.requires_grad)))
    x_adv = attack(noisy, x, y, Threat(norm=norm, eps=0.1), streams(30))
    hook.remove()
    for p in net.parameters():
        p.requires_grad_(True)
    assert sum(count) == attack.passes == 11 * 4 * 2
    assert len(count) % 4 == 0
    generator = torch.Generator().manual_seed(5)
    noise = 0.02 * torch.randn(200, *x.shape, generator=generator, dtype=torch.float64)
    top = torch.stack([net(x_adv + n) for n in noise]).mean(0).topk(2, dim=1).values
    before = net(x).topk(2, dim=1).values
    # Averaged over many draws, two classes are about equal there.
    assert (top[:, 0] - top[:, 1]).median() < 0.1 * (before[:, 0] - before[:, 1]).median()


def test_nans_are_not_held_for_robust() -> None:
    class NotANumber(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10] * math.nan

    net, (_, x, y) = NotANumber().eval(), digits_net()
    for norm in ("linf", "l2"):
        x_adv = FAB(steps=2, targets=2)(net, x[:5], y[:5], Threat(norm=norm), streams(5))  # type: ignore[arg-type]
        assert not net(x_adv).isfinite().any()


@pytest.mark.parametrize(
    "settings",
    [
        *({name: 0} for name in ("steps", "restarts", "targets", "eot")),
        *({"alpha_max": v} for v in (-0.1, 1.1, math.nan)),
        *({"eta": v} for v in (0.9, math.inf)),
        *({"beta": v} for v in (0.0, 1.0)),
    ],
    ids=str,
)
def test_invalid_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(settings))}: expected .*, got "):
        FAB(**settings)  # type: ignore[arg-type]

"""Balls and their projections, per-image random streams, noise of random networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from attacks import SampleRandom, Threat
from attacks.base import GeneratorNoise, RandomModule, is_stochastic, logits_of, noise_from
from attacks.iterate import random_start

X = 0.3 + 0.4 * torch.rand(8, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DIRECTION = torch.randn(X.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def at(threat: Threat, size: float) -> Tensor:
    """Points whose perturbation has exactly this norm."""
    return X + DIRECTION * (size / threat.size(DIRECTION)).view(-1, 1, 1, 1)


@pytest.mark.parametrize("threat", [Threat(eps=0.1), Threat(norm="l2", eps=0.4)], ids=lambda t: t.norm)
class TestProjection:
    def test_inside_nothing_moves_by_a_bit(self, threat: Threat) -> None:
        for share in (0.0, 1e-6, 0.5, 0.999999):
            point = at(threat, share * threat.eps)
            assert torch.equal(threat.project(point, X), point)

    def test_on_the_boundary_nothing_moves(self, threat: Threat) -> None:
        point = at(threat, threat.eps)
        assert (threat.project(point, X) - point).abs().max() < 1e-15

    @pytest.mark.parametrize("share", [1.000001, 2.0, 1e3, 1e30])
    def test_outside_the_nearest_point_of_the_ball(self, threat: Threat, share: float) -> None:
        point = at(threat, share * threat.eps)
        projected = threat.project(point, X)
        if threat.norm == "linf":
            nearest = X + (point - X).clamp(-threat.eps, threat.eps)
        else:
            nearest = at(threat, threat.eps)
        assert (projected - nearest).abs().max() < 1e-12
        assert (threat.size(projected - X) - threat.eps).abs().max() < 1e-12

    def test_twice_is_once(self, threat: Threat) -> None:
        once = threat.project(at(threat, 3 * threat.eps), X)
        assert (threat.project(once, X) - once).abs().max() < 1e-15

    def test_box_holds_and_the_ball_still_does(self, threat: Threat) -> None:
        edge = (5 * (X - 0.5) + 0.5).clamp(0, 1)  # many pixels at 0 and 1
        assert ((edge == 0) | (edge == 1)).double().mean() > 0.2
        projected = threat.project(edge + 10 * DIRECTION, edge)
        assert projected.min() >= 0
        assert projected.max() <= 1
        assert threat.size(projected - edge).max() <= threat.eps + 1e-12
        assert (projected != edge).any()

    def test_single_precision_stays_inside(self, threat: Threat) -> None:
        x = X.float()
        projected = threat.project(x + 10 * DIRECTION.float(), x)
        assert projected.dtype == torch.float32
        assert threat.size(projected - x).max() <= threat.eps + 1e-6

    def test_images_do_not_mix(self, threat: Threat) -> None:
        point = X + DIRECTION
        alone = torch.cat([threat.project(point[i : i + 1], X[i : i + 1]) for i in range(len(X))])
        assert torch.equal(threat.project(point, X), alone)


def test_norms_are_over_all_pixels_and_channels() -> None:
    delta = torch.zeros(2, 3, 2, 2)
    delta[0, 0, 0, 0], delta[0, 2, 1, 1], delta[1, 1, 0, 1] = 3.0, -4.0, -0.5
    assert Threat(norm="l2").size(delta).tolist() == [5.0, 0.5]
    assert Threat(norm="linf").size(delta).tolist() == [4.0, 0.5]


def test_no_bound_leaves_only_the_box() -> None:
    for norm in ("linf", "l2"):
        projected = Threat(norm=norm, eps=math.inf).project(X + 10 * DIRECTION, X)
        assert torch.equal(projected, (X + 10 * DIRECTION).clamp(0, 1))


def test_eps_0_is_the_image() -> None:
    for norm in ("linf", "l2"):
        assert torch.equal(Threat(norm=norm, eps=0.0).project(X + DIRECTION, X), X)


@pytest.mark.parametrize("settings", [{"norm": "l1"}, {"eps": -0.1}, {"eps": math.nan}])
def test_a_threat_that_is_none_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(settings))}: expected"):
        Threat(**settings)  # type: ignore[arg-type]


def test_random_starts_fill_the_cube_and_the_ball_uniformly() -> None:
    count, x = 4000, torch.full((4000, 1, 1, 3), 0.5, dtype=torch.float64)
    cube = random_start(x, Threat(eps=0.2), SampleRandom.for_images(0, "start", range(count))) - x
    assert cube.abs().max() <= 0.2
    assert abs(cube.abs().mean().item() - 0.1) < 0.002
    assert abs(cube.mean().item()) < 0.003
    threat = Threat(norm="l2", eps=0.2)
    ball = random_start(x, threat, SampleRandom.for_images(0, "start", range(count))) - x
    radius = threat.size(ball) / 0.2
    assert radius.max() <= 1
    # Uniform in the volume of d = 3 dimensions: radius^3 is uniform, so its quantiles are known.
    for q in (0.1, 0.5, 0.9):
        assert abs((radius**3).quantile(q).item() - q) < 0.03
    assert (ball.flatten(1).mean(0) / 0.2).abs().max() < 0.03
    assert not torch.equal(cube[0], cube[1])


class TestStreams:
    like = torch.zeros(5, 2, 3)

    def streams(self, indices: list[int], seed: int = 0, name: str = "pgd") -> SampleRandom:
        return SampleRandom.for_images(seed, name, indices)

    @pytest.mark.parametrize("kind", ["uniform", "normal"])
    def test_a_draw_depends_on_seed_name_and_index_alone(self, kind: str) -> None:
        full = getattr(self.streams([0, 1, 2, 3, 4]), kind)(self.like)
        assert torch.equal(full[[3, 1]], getattr(self.streams([3, 1]), kind)(self.like[:2]))
        assert not torch.equal(full[3], full[1])
        assert not torch.equal(full, getattr(self.streams([0, 1, 2, 3, 4], seed=1), kind)(self.like))
        assert not torch.equal(full, getattr(self.streams([0, 1, 2, 3, 4], name="cw"), kind)(self.like))

    def test_images_that_leave_shift_no_other_stream(self) -> None:
        whole, part = self.streams([0, 1, 2, 3, 4]), self.streams([0, 1, 2, 3, 4])
        whole.normal(self.like)
        part.normal(self.like)
        mask = torch.tensor([True, False, True, False, False])
        assert torch.equal(part.subset(mask).normal(self.like[:2]), whole.normal(self.like)[mask])
        # The streams are shared with the subset: those of images 0 and 2 have moved on by one draw.
        assert torch.equal(
            part.subset(torch.tensor([2, 0])).normal(self.like[:2]), whole.normal(self.like)[[2, 0]]
        )

    def test_the_moments_are_right(self) -> None:
        like = torch.zeros(20, 5000)
        r = self.streams(list(range(20)))
        u, n = r.uniform(like), r.normal(like)
        assert u.min() >= 0
        assert u.max() < 1
        assert abs(u.mean() - 0.5) < 0.005
        assert abs(u.var() - 1 / 12) < 0.002
        assert abs(n.mean()) < 0.01
        assert abs(n.var() - 1) < 0.02

    def test_type_and_memory_order_do_not_change_the_numbers(self) -> None:
        like = torch.zeros(2, 3, 4, 4)
        single = self.streams([0, 1]).normal(like)
        double = self.streams([0, 1]).normal(like.double())
        last = self.streams([0, 1]).normal(like.to(memory_format=torch.channels_last))
        assert double.dtype == torch.float64
        assert torch.equal(single.double(), double)
        assert torch.equal(single, last)

    def test_integers_are_per_image_and_in_range(self) -> None:
        drawn = torch.stack([self.streams([i]).integers(4)[0] for i in range(200)])
        assert torch.equal(drawn, self.streams(list(range(200))).integers(4))
        assert set(drawn.tolist()) == {0, 1, 2, 3}

    def test_a_wrong_number_of_images_is_refused(self) -> None:
        with pytest.raises(ValueError, match="expected a tensor of 2 images, got 5"):
            self.streams([0, 1]).normal(self.like)

    def test_spawned_streams_depend_on_the_generator_alone(self) -> None:
        first = SampleRandom.spawn(torch.Generator().manual_seed(3), 5).normal(self.like)
        assert torch.equal(first, SampleRandom.spawn(torch.Generator().manual_seed(3), 5).normal(self.like))
        assert not torch.equal(
            first, SampleRandom.spawn(torch.Generator().manual_seed(4), 5).normal(self.like)
        )
        assert len({tuple(row.flatten().tolist()) for row in first}) == 5

    def test_global_randomness_stays_untouched(self) -> None:
        before = torch.get_rng_state()
        self.streams([0, 1, 2, 3, 4]).normal(self.like)
        SampleRandom.spawn(torch.Generator().manual_seed(3), 5).uniform(self.like)
        assert torch.equal(torch.get_rng_state(), before)


class Noise(RandomModule):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.draw(x)


def test_noise_is_bound_for_a_block_and_given_back_even_after_an_error() -> None:
    net = nn.Sequential(Noise(), nn.Sequential(Noise()))
    mine = GeneratorNoise(torch.Generator().manual_seed(0))
    net[0].noise_source = mine
    other = GeneratorNoise(torch.Generator().manual_seed(1))
    with noise_from(net, other):
        assert net[0].noise_source is other
        assert net[1][0].noise_source is other
    assert net[0].noise_source is mine
    with pytest.raises(IndexError), noise_from(net, other):
        net[7]
    assert net[0].noise_source is mine
    assert net[1][0].noise_source is None


def test_generator_noise_repeats_and_unbound_noise_is_torchs() -> None:
    x = torch.zeros(4, 3, dtype=torch.float64)
    draws = [GeneratorNoise(torch.Generator().manual_seed(0)).normal(x) for _ in range(2)]
    assert draws[0].dtype == torch.float64
    assert torch.equal(draws[0], draws[1])
    with torch.random.fork_rng():
        torch.manual_seed(5)
        free = Noise()(x)
        torch.manual_seed(5)
        assert torch.equal(free, torch.randn_like(x))


def test_randomness_is_declared_or_seen() -> None:
    plain = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    assert not is_stochastic(plain)
    assert is_stochastic(nn.Sequential(plain, Noise()))
    quiet = Noise()
    quiet.stochastic = False
    assert not is_stochastic(nn.Sequential(plain, quiet))
    plain.stochastic = True
    assert is_stochastic(nn.Sequential(plain))


@pytest.mark.usefixtures("one_pass_at_a_time")
def test_mean_logits_are_over_the_draws_and_one_pass_serves_a_fixed_network() -> None:
    x, passes = torch.zeros(3, 4, dtype=torch.float64), []
    net = nn.Sequential(Noise())
    net.register_forward_hook(lambda *_: passes.append(1))
    noise = SampleRandom.for_images(0, "a", range(3))
    branches = SampleRandom.for_images(0, "a", range(3)).branches(7)
    assert branches is not None
    expected = torch.stack([branch.normal(x) for branch in branches]).mean(0)
    assert torch.allclose(logits_of(net, x, SampleRandom.for_images(0, "a", range(3)), draws=7), expected)
    assert len(passes) == 7
    net[0].stochastic = False
    logits_of(net, x, noise, draws=7)
    assert len(passes) == 8

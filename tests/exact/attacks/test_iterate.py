"""What iterative attacks keep, drop and average on their way."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from attacks import CW, FGSM, IFGSM, PGD, CWPublished, GaussianNoise, SampleRandom, Threat
from attacks.base import RandomModule, input_gradient
from attacks.iterate import Adam, Best, random_start, steepest
from attacks.losses import cross_entropy, loss_towards, margin
from tests.helpers.attack_models import digits_net, linear_net, streams

THREATS = [Threat(eps=0.1), Threat(norm="l2", eps=0.5)]


def fooled(net: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    return net(x_adv).argmax(1) != y


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_last_point_equals_a_plain_loop(threat: Threat, momentum: float) -> None:
    net, x, y = digits_net()
    x_adv, g = x.clone(), torch.zeros_like(x)
    for _ in range(7):
        point = x_adv.requires_grad_(True)
        (grad,) = torch.autograd.grad(cross_entropy(net(point), y).sum(), point)
        if momentum:
            g = momentum * g + grad / grad.abs().sum((1, 2, 3), keepdim=True)
        else:
            g = grad
        step = g.sign() if threat.norm == "linf" else g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        x_adv = threat.project(x_adv.detach() + 0.03 * step, x)
    attack = IFGSM(steps=7, step_size=0.03, momentum=momentum, keep="last")
    assert (attack(net, x, y, threat, streams(len(x))) - x_adv).abs().max() < 1e-12


def test_momentum_changes_the_path_and_its_default_does_not() -> None:
    net, x, y = digits_net()
    plain, zero, some = (
        IFGSM(keep="last", **extra)(net, x, y, THREATS[0], streams(len(x)))
        for extra in ({}, {"momentum": 0.0}, {"momentum": 0.9})
    )
    assert torch.equal(plain, zero)
    assert not torch.equal(plain, some)


def test_default_step_size_is_madrys() -> None:
    net, x, y = digits_net()
    named = IFGSM(steps=10, step_size=2.5 * 0.1 / 10)
    assert torch.equal(
        IFGSM(steps=10)(net, x, y, THREATS[0], streams(len(x))), named(net, x, y, THREATS[0], streams(len(x)))
    )


def test_one_step_from_the_image_is_fgsm() -> None:
    net, x, y = digits_net()
    for threat in THREATS:
        one = IFGSM(steps=1, step_size=threat.eps, keep="last")(net, x, y, threat, streams(len(x)))
        assert torch.equal(one, FGSM()(net, x, y, threat, streams(len(x))))


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_pgd_without_random_start_is_ifgsm_and_starts_can_be_given(threat: Threat) -> None:
    net, x, y = digits_net()
    still = PGD(random_start=False, steps=5)(net, x, y, threat, streams(len(x)))
    assert torch.equal(still, IFGSM(steps=5)(net, x, y, threat, streams(len(x))))
    start = random_start(x, threat, streams(len(x)))
    given = IFGSM(steps=5).from_start(net, x, y, threat, start, streams(len(x)))
    assert torch.equal(given, PGD(steps=5)(net, x, y, threat, streams(len(x))))
    assert not torch.equal(given, still)


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_best_point_fools_wherever_one_on_the_path_does(threat: Threat) -> None:
    """The path jumps about: a last point may be worse than an earlier one, a best point never is."""
    net, x, y = digits_net()
    seen: list[Tensor] = []
    handle = net.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    best = IFGSM(steps=6, step_size=3 * threat.eps, early_stop=False)(net, x, y, threat, streams(len(x)))
    handle.remove()
    assert len(seen) == 7
    margins = torch.stack([margin(net(point), y) for point in seen])
    assert torch.equal(margin(net(best), y), margins.amax(0))
    assert (margins.amax(0) > margins[-1]).any()


def test_restarts_lose_no_success() -> None:
    net, x, y = digits_net()
    threat, before = Threat(eps=0.12), torch.zeros(len(x), dtype=torch.bool)
    for restarts in (1, 2, 4):
        x_adv = PGD(steps=3, restarts=restarts)(net, x, y, threat, streams(len(x)))
        now = fooled(net, x_adv, y)
        assert (now | ~before).all()
        before = now
    assert 0.1 < before.double().mean() < 0.9
    first = fooled(net, PGD(steps=3)(net, x, y, threat, streams(len(x))), y)
    assert before.sum() > first.sum(), "restarts should help here"


@pytest.mark.parametrize("extra", [{}, {"restarts": 3}, {"momentum": 0.9}])
def test_early_stop_fools_the_same_images_with_fewer_passes(extra: dict[str, float]) -> None:
    net, x, y = digits_net()
    shown: list[int] = []
    handle = net.register_forward_pre_hook(lambda _, args: shown.append(len(args[0])))
    threat = Threat(eps=0.1)
    full = PGD(early_stop=False, **extra)(net, x, y, threat, streams(len(x)))
    passes, shown[:] = sum(shown), []
    early = PGD(**extra)(net, x, y, threat, streams(len(x)))
    handle.remove()
    assert torch.equal(fooled(net, full, y), fooled(net, early, y))
    assert sum(shown) < 0.8 * passes
    assert threat.size(early - x).max() <= threat.eps + 1e-9


def test_best_keeps_what_it_should() -> None:
    x = torch.zeros(4, 1, 1, 2)
    best, rows = Best(x), torch.tensor([3, 0, 1])  # image 2 is never shown
    points = torch.full((3, 1, 1, 2), 0.25)
    best.update(rows, points, torch.tensor([-1.0, 0.5, math.nan]))
    best.update(rows, 2 * points, torch.tensor([-2.0, 0.75, math.inf]))
    assert best.fooled.tolist() == [True, False, False, False]
    result = best.result()[:, 0, 0, 0]
    assert result[[0, 2, 3]].tolist() == [0.5, 0.0, 0.25]
    assert result[1].isnan(), "the network broke on its way, and nothing fooled it"
    # A point that fools outweighs any that broke the network; a point that is not a number never fools.
    best.update(
        torch.tensor([1, 3]), torch.tensor([0.1, math.nan]).view(2, 1, 1, 1).expand(2, 1, 1, 2), torch.ones(2)
    )
    result = best.result()[:, 0, 0, 0]
    assert best.fooled.tolist() == [True, True, False, False]
    assert result[:3].tolist() == [0.5, pytest.approx(0.1), 0.0]
    assert result[3].isnan()


class SquareRoot(nn.Module):
    """Finite logits, but at the clean images a gradient of infinity times zero."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        dead = ((flat[:, :1] - 0.5) ** 2).sqrt()
        return torch.cat([1 + dead, flat[:, 1:2]], dim=1)


@pytest.mark.parametrize("attack", [FGSM(), IFGSM(), PGD(random_start=False), CW(), CWPublished()], ids=repr)
def test_a_gradient_that_is_not_a_number_is_not_robustness(attack: FGSM) -> None:
    net, x, y = SquareRoot().eval(), torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.long)
    assert net(x).isfinite().all()
    threats = [Threat(norm="l2")] if isinstance(attack, CWPublished) else THREATS
    for threat in threats:
        x_adv = attack(net, x, y, threat, streams(3))
        assert (~x_adv.flatten(1).isfinite().all(1) | ~net(x_adv).isfinite().all(1)).all()


def test_vanishing_gradients_keep_their_direction() -> None:
    g = torch.tensor([[3e-30, -4e-30], [3.0, -4.0], [0.0, 0.0], [3e-40, -4e-40]])
    assert torch.allclose(
        steepest(g, "l2"), torch.tensor([[0.6, -0.8], [0.6, -0.8], [0, 0], [0.6, -0.8]]), atol=1e-4
    )
    assert steepest(g, "linf").tolist() == [[1, -1], [1, -1], [0, 0], [1, -1]]


def test_adam_is_torchs_adam() -> None:
    g = torch.Generator().manual_seed(0)
    grads = torch.randn(20, 3, 5, generator=g, dtype=torch.float64)
    theirs = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    opt, ours, adam = torch.optim.Adam([theirs], lr=0.1), torch.zeros(3, 5, dtype=torch.float64), None
    adam = Adam(ours)
    for grad in grads:
        theirs.grad = grad.clone()
        opt.step()
        ours = ours - 0.1 * adam.step(grad)
    assert (ours - theirs).abs().max() < 1e-12


class Scaled(RandomModule):
    """Multiplies an image's logits by 1 + s * noise, one number an image."""

    def __init__(self, s: float) -> None:
        super().__init__()
        self.s = s

    def forward(self, z: Tensor) -> Tensor:
        return z * (1 + self.s * self.draw(z[:, :1]))


@pytest.mark.usefixtures("one_pass_at_a_time")
def test_eot_gradient_is_the_mean_over_the_draws() -> None:
    body, count = linear_net(3, 12), 6
    net = nn.Sequential(body, Scaled(2.0)).eval()
    x = torch.rand(count, 1, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    plain, plain_loss, plain_logits = input_gradient(body, x, y, margin, streams(count), eot=5)
    passes: list[int] = []
    net.register_forward_hook(lambda *_: passes.append(1))
    grad, loss, logits = input_gradient(net, x, y, margin, streams(count), eot=5)
    assert len(passes) == 5
    branches = streams(count).branches(5)
    assert branches is not None
    scale = torch.stack([1 + 2 * branch.normal(x[:, 0, 0, :1]) for branch in branches])  # (5, B, 1)
    # margin(s z) = s margin(z) for s > 0; for s < 0 the largest rival changes: take that from torch itself.
    z = body(x).detach()[None] * scale[..., :]
    assert torch.allclose(logits, z.mean(0))
    assert torch.allclose(loss, torch.stack([margin(one, y) for one in z]).mean(0))
    positive = (scale > 0).all(0).squeeze(1)
    assert positive.any()
    mean = scale.mean(0)[:, :, None, None]
    assert torch.allclose(grad[positive], (mean * plain)[positive])
    assert torch.allclose(loss[positive], (mean.flatten() * plain_loss)[positive])
    assert torch.allclose(plain_logits, body(x))


def test_eot_sees_through_noise_that_misleads_one_draw() -> None:
    """E[1 + s * noise] = 1: the mean gradient has the sign of the noiseless one, a single draw often not."""
    body = linear_net(2, 30)
    net = nn.Sequential(body, Scaled(3.0)).eval()
    x = 0.3 + 0.4 * torch.rand(60, 1, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y, threat = body(x).argmax(1), Threat(eps=0.1)
    right = FGSM(loss="margin")(body, x, y, threat, streams(60))

    def agreement(eot: int) -> float:
        x_adv = FGSM(loss="margin", eot=eot)(net, x, y, threat, streams(60))
        return (x_adv == right).flatten(1).all(1).double().mean().item()

    assert agreement(1) < 0.8
    assert agreement(200) > 0.97


@pytest.mark.parametrize(
    "attack", [FGSM(eot=4), IFGSM(eot=4), PGD(eot=4), CW(eot=4), CWPublished(eot=4)], ids=repr
)
def test_eot_costs_nothing_where_nothing_is_random(attack: FGSM) -> None:
    net, x, y = digits_net()
    passes: list[int] = []
    handle = net.register_forward_hook(lambda *_: passes.append(1))
    attack(net, x[:4], y[:4], THREATS[0], streams(4))
    handle.remove()
    expected = {
        "FGSM": 1,
        "IFGSM": 21,
        "PGD": 21,
        "CW": 900,
        "CWPublished": 51,
    }  # 51: one to choose the target
    assert len(passes) == expected[type(attack).__name__]


@pytest.mark.parametrize(
    ("attack", "name"),
    [(FGSM(), "eps"), (IFGSM(), "step_size"), (PGD(), "step_size"), (PGD(step_size=0.1), "random_start")],
    ids=repr,
)
def test_a_threat_without_bound_is_refused_where_a_length_is_needed(attack: FGSM, name: str) -> None:
    threat = Threat(norm="l2", eps=math.inf)
    net, x, y = digits_net()
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        attack.check_threat(threat)
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        attack(net, x, y, threat, streams(len(x)))


@pytest.mark.parametrize(
    "attack", [IFGSM(step_size=0.5, steps=30), CW(), PGD(step_size=0.5, random_start=False)], ids=repr
)
def test_without_bound_every_image_falls(attack: IFGSM) -> None:
    net, x, y = digits_net()
    for norm in ("linf", "l2"):
        x_adv = attack(net, x, y, Threat(norm=norm, eps=math.inf), streams(len(x)))
        assert fooled(net, x_adv, y).all()


def test_noise_is_normal_clipped_and_each_images_own() -> None:
    net, x = linear_net(2, 4096), torch.full((50, 1, 64, 64), 0.5, dtype=torch.float64)
    y, unbounded = torch.zeros(50, dtype=torch.long), Threat(norm="l2", eps=math.inf)
    noise = GaussianNoise(sigma=0.1)(net, x, y, unbounded, streams(50)) - x
    assert abs(noise.mean()) < 1e-3
    assert abs(noise.std() - 0.1) < 1e-3
    assert (noise[0] - noise[1]).std() > 0.1
    strong = GaussianNoise()(net, x, y, unbounded, streams(50))
    assert ((strong == 0) | (strong == 1)).double().mean() == pytest.approx(
        2 * 0.3085, abs=0.01
    )  # P(|N| > 1/2)
    other = GaussianNoise(sigma=0.1)(net, x, y, unbounded, streams(50, seed=1)) - x
    assert not torch.equal(noise, other)


def test_losses_point_towards_misclassification() -> None:
    z, y = torch.tensor([[1.0, 3.0, 2.0], [5.0, 3.0, 4.0]]), torch.tensor([1, 2])
    assert margin(z, y).tolist() == [-1.0, 1.0]
    assert loss_towards("margin", True)(z, y).tolist() == [1.0, -1.0]
    assert torch.allclose(loss_towards("ce", False)(z, y), -z.log_softmax(1)[[0, 1], [1, 2]])
    assert torch.allclose(loss_towards("ce", True)(z, y), z.log_softmax(1)[[0, 1], [1, 2]])


def test_streams_must_match_the_images() -> None:
    net, x, y = digits_net()
    with pytest.raises(ValueError, match="generator: expected"):
        PGD()(net, x, y, THREATS[0], SampleRandom([]))

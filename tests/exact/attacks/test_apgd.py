"""APGD against Algorithm 1 written out image by image, closed forms, and torchattacks; DLR by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from attacks import Threat
from attacks.apgd import APGD, _checkpoints
from attacks.base import RandomModule
from attacks.iterate import random_start, steepest
from attacks.losses import cross_entropy, dlr, dlr_targeted, likeliest_wrong, margin
from tests.helpers.attack_models import digits_net, linear_net, smallest_norm_in_box, streams

CUBE, BALL = Threat(eps=0.1), Threat(norm="l2", eps=0.7)
BOTH = pytest.mark.parametrize("threat", [CUBE, BALL], ids=["linf", "l2"])
LOGITS = torch.tensor([[4.0, 1.0, 3.0, -2.0, 0.0], [4.0, 1.0, 3.0, -2.0, 0.0]], dtype=torch.float64)


def fooled(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return net(x).argmax(1) != y


def test_dlr_by_hand() -> None:
    y = torch.tensor([0, 2])
    assert torch.allclose(dlr(LOGITS, y), LOGITS.new_tensor([-1 / 3, 1 / 3]))  # over 4 - 1
    goal = torch.tensor([3, 1])
    assert torch.allclose(dlr_targeted(LOGITS, y, goal), LOGITS.new_tensor([-6 / 3.5, -2 / 3.5]))
    assert likeliest_wrong(LOGITS, y, 2).tolist() == [[2, 1], [0, 1]]
    assert likeliest_wrong(LOGITS, y, 99).tolist() == [[2, 1, 4, 3], [0, 1, 4, 3]]


def test_dlr_ignores_scale_and_shift_and_has_the_margins_sign() -> None:
    z = torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, goal = torch.arange(200) % 6, (torch.arange(200) + 1) % 6
    assert torch.allclose(dlr(1000 * z - 7, y), dlr(z, y))
    assert torch.allclose(dlr_targeted(1000 * z - 7, y, goal), dlr_targeted(z, y, goal))
    assert torch.equal(dlr(z, y) > 0, margin(z, y) > 0)
    ahead = z[torch.arange(200), goal] > z[torch.arange(200), y]
    assert torch.equal(dlr_targeted(z, y, goal) > 0, ahead)


def test_dlr_of_equal_logits_has_a_finite_gradient() -> None:
    z = torch.ones(2, 5, requires_grad=True)
    y = torch.tensor([0, 1])
    (dlr(z, y) + dlr_targeted(z, y, y + 1)).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_too_few_classes_are_refused() -> None:
    y = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="dlr: expected logits of at least 3 classes, got 2"):
        dlr(LOGITS[:, :2], y)
    with pytest.raises(ValueError, match="dlr_targeted: expected logits of at least 4 classes, got 3"):
        dlr_targeted(LOGITS[:, :3], y, y + 1)
    net, x = linear_net(3, 16), torch.rand(4, 1, 4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="at least 4 classes"):
        APGD(loss="dlr_targeted")(net, x, net(x).argmax(1), CUBE, streams(4))


def test_checkpoints() -> None:
    """p = 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99."""
    assert _checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert _checkpoints(10) == [3, 5, 6, 7, 8, 9, 10, 10]


def written_out(net: nn.Module, x: Tensor, y: Tensor, start: Tensor, threat: Threat, steps: int) -> Tensor:
    """Algorithm 1 with the cross-entropy for one image, in the paper's order: the largest margin visited."""

    def f(z: Tensor) -> float:
        return cross_entropy(net(z), y).item()

    def ascend(z: Tensor, eta: float) -> Tensor:
        point = z.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(cross_entropy(net(point), y).sum(), point)
        return threat.project(z + eta * steepest(grad, threat.norm), x)

    eta = 2 * threat.eps
    points = [start, ascend(start, eta)]
    visited, rises = list(points), [f(points[1]) > f(points[0])]
    best = max(points, key=f)
    w, eta_at_w, f_max_at_w = 0, eta, f(start)
    for k in range(1, steps):
        if k in _checkpoints(steps):
            few = sum(rises[w:k]) < 0.75 * (k - w)
            stuck = eta_at_w == eta and f_max_at_w == f(best)
            w, eta_at_w, f_max_at_w = k, eta, f(best)
            if few or stuck:
                eta, points[k] = eta / 2, best
        z = ascend(points[k], eta)
        z = points[k] + 0.75 * (z - points[k]) + 0.25 * (points[k] - points[k - 1])
        points.append(threat.project(z, x))
        visited.append(points[-1])
        rises.append(f(points[k + 1]) > f(points[k]))
        best = max(best, points[-1], key=f)
    return max(margin(net(v), y) for v in visited)


@BOTH
def test_same_path_as_algorithm_1_written_out(threat: Threat) -> None:
    net, x, y = digits_net()
    attack, s = APGD(steps=30), streams(len(x))
    ours = attack(net, x, y, threat, s)
    held = (~fooled(net, ours, y)).nonzero().flatten()[:12]  # of these, the whole path was run
    assert len(held) == 12
    for i in held.tolist():
        start = random_start(x[i : i + 1], threat, streams(len(x)).subset(torch.tensor([i])))
        with torch.enable_grad():
            expected = written_out(net, x[i : i + 1], y[i : i + 1], start, threat, 30)
        clean = margin(net(x[i : i + 1]), y[i : i + 1])
        got = margin(net(ours[i : i + 1]), y[i : i + 1])
        assert (got - torch.maximum(expected, clean)).abs().item() < 1e-7


@BOTH
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_a_linear_network_is_fooled_exactly_where_it_can_be(threat: Threat, loss: str) -> None:
    net = linear_net(2, 64, seed=1)
    x = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = net(x).argmax(1)
    distance = smallest_norm_in_box(net, x, y, threat.norm)
    reach = Threat(norm=threat.norm, eps=distance.median().item())
    hit = fooled(net, APGD(steps=30, loss=loss)(net, x, y, reach, streams(200)), y)  # type: ignore[arg-type]
    assert not hit[distance > reach.eps].any()
    assert hit[distance < 0.99 * reach.eps].all()


@BOTH
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_not_weaker_than_torchattacks(threat: Threat, loss: str) -> None:
    """A path's success hangs on its random start (by 2 to 3 images of 150), hence the mean of several."""
    net, x, y = digits_net()
    ours, theirs, seeds = 0, 0, range(12)
    for seed in seeds:
        attack = APGD(steps=50, loss=loss)  # type: ignore[arg-type]
        ours += int(fooled(net, attack(net, x, y, threat, streams(len(x), seed)), y).sum())
        name = "Linf" if threat.norm == "linf" else "L2"
        other = torchattacks.APGD(net, norm=name, eps=threat.eps, steps=50, loss=loss, seed=seed)
        theirs += int(fooled(net, threat.project(other(x, y), x), y).sum())
    assert theirs > 50 * len(seeds)
    assert ours / len(seeds) >= theirs / len(seeds) - 1


@BOTH
def test_targeted_not_weaker_than_torchattacks(threat: Threat) -> None:
    net, x, y = digits_net()
    ours = fooled(net, APGD(steps=20, loss="dlr_targeted")(net, x, y, threat, streams(len(x))), y)
    name = "Linf" if threat.norm == "linf" else "L2"
    theirs = torchattacks.APGDT(net, norm=name, eps=threat.eps, steps=20, n_classes=10)(x, y)
    assert ours.sum() >= fooled(net, threat.project(theirs, x), y).sum() - 1
    plain = fooled(net, APGD(steps=20)(net, x, y, threat, streams(len(x))), y)
    assert ours.sum() >= plain.sum()


def test_dlr_does_not_mind_large_logits() -> None:
    class Scaled(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor) -> Tensor:
            return 1024.0 * self.body(x)

    net, x, y = digits_net()
    large, count = Scaled(net).eval(), len(x)
    for loss in ("dlr", "dlr_targeted"):
        attack = APGD(steps=10, loss=loss)  # type: ignore[arg-type]
        plain = attack(net, x, y, CUBE, streams(count))
        assert torch.equal(plain, attack(large, x, y, CUBE, streams(count)))
    lost = fooled(large, APGD(steps=10)(large, x, y, CUBE, streams(count)), y).sum()
    assert lost < fooled(net, plain, y).sum()  # the cross-entropy saturates: the comparison is not empty


@BOTH
@pytest.mark.parametrize("settings", [{"restarts": 2}, {"loss": "dlr_targeted", "targets": 3}], ids=str)
def test_result_depends_on_its_own_stream_alone(threat: Threat, settings: dict[str, object]) -> None:
    net, x, y = digits_net()
    x, y, attack = x[:30], y[:30], APGD(steps=15, **settings)  # type: ignore[arg-type]
    together = attack(net, x, y, threat, streams(30))
    assert torch.equal(together, attack(net, x, y, threat, streams(30)))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    permuted = attack(net, x[order], y[order], threat, streams(30).subset(order))
    assert (permuted - together[order]).abs().max() < 1e-9
    for i in (0, 7, 19):
        row = torch.tensor([i])
        assert (attack(net, x[row], y[row], threat, streams(30).subset(row)) - together[i]).abs().max() < 1e-9
    assert threat.size(together - x).max() <= threat.eps + 1e-9


def gradient_passes(net: nn.Module, attack: APGD, x: Tensor, y: Tensor) -> int:
    """Passes through the network at points whose gradient is wanted, the images of a batch counted singly."""
    count = []
    hook = net.register_forward_hook(lambda _, args, out: count.append(len(out) if out.requires_grad else 0))
    for p in net.parameters():
        p.requires_grad_(False)
    attack(net, x, y, Threat(eps=1e-6), streams(len(x)))
    hook.remove()
    for p in net.parameters():
        p.requires_grad_(True)
    return sum(count)


class Noisy(RandomModule):
    """Adds noise to the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.02 * self.draw(x)


def test_passes_are_those_of_an_image_that_holds_out() -> None:
    net, x, y = digits_net()
    noisy = nn.Sequential(Noisy(), net).eval()
    for attack, network in [
        (APGD(steps=7, restarts=2), net),
        (APGD(steps=5, loss="dlr_targeted", targets=3), net),
        (APGD(steps=4, eot=3), noisy),
    ]:
        assert gradient_passes(network, attack, x[:4], y[:4]) == 4 * attack.passes


@pytest.mark.usefixtures("one_pass_at_a_time")
def test_a_random_network_is_attacked_to_the_end() -> None:
    net, x, y = digits_net()
    noisy, batches = nn.Sequential(Noisy(), net).eval(), []
    hook = net.register_forward_hook(lambda _, args, out: batches.append(len(out)))
    x_adv = APGD(steps=10, eot=4, loss="dlr_targeted", targets=2)(noisy, x, y, CUBE, streams(len(x)))
    hook.remove()
    assert set(batches) == {len(x)}  # nobody leaves on a lucky draw
    assert fooled(net, x_adv, y).sum() >= 55  # 72 without the noise


def test_nans_are_not_held_for_robust() -> None:
    class NotANumber(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10] * math.nan

    net, (_, x, y) = NotANumber().eval(), digits_net()
    for loss in ("ce", "dlr", "dlr_targeted"):
        x_adv = APGD(steps=3, loss=loss)(net, x[:5], y[:5], CUBE, streams(5))  # type: ignore[arg-type]
        assert not net(x_adv).isfinite().any()


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"restarts": 0}, {"loss": "mse"}, {"eot": 0}, {"targets": 0}],
    ids=str,
)
def test_invalid_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(settings))}: expected .*, got "):
        APGD(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target: expected none with loss: dlr_targeted"):
        APGD(loss="dlr_targeted", target="next")
    with pytest.raises(ValueError, match="eps: expected a finite number"):
        APGD().check_threat(Threat(eps=math.inf))

"""The low-frequency attack: its basis, its energy, its closed form on a linear network, and PGD as a special case."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from attacks import PGD
from attacks.base import Threat
from attacks.dct import DCT, LowPass, dct_matrix
from attacks.iterate import steepest
from tests.helpers.attack_models import Shaky, digits_net, linear_net, streams, weights

THREATS = [Threat(eps=0.1), Threat(norm="l2", eps=1.0)]


def high(x: Tensor, frequencies: int) -> Tensor:
    """Energy of each image above the cut-off, by the full transform; (B,)."""
    down, across = (dct_matrix(n).to(x) for n in x.shape[-2:])
    z = down @ x @ across.T
    z[..., :frequencies, :frequencies] = 0
    return z.flatten(1).norm(dim=1)


@pytest.mark.parametrize("size", [1, 2, 7, 28, 32])
def test_the_matrix_is_orthonormal_and_its_rows_are_cosines(size: int) -> None:
    d = dct_matrix(size)
    assert (d @ d.T - torch.eye(size, dtype=torch.float64)).abs().max() < 1e-12
    for k, n in ((0, 0), (size - 1, 0), (size // 2, size - 1)):
        expected = math.sqrt((1 if k == 0 else 2) / size) * math.cos(math.pi * (n + 0.5) * k / size)
        assert d[k, n].item() == pytest.approx(expected, abs=1e-12)


def test_the_low_pass_is_an_orthogonal_projection() -> None:
    a, b = torch.randn(2, 5, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low = LowPass(a, 4)
    assert low.coefficients(a).shape == (5, 3, 4, 4)
    assert (low(low(a)) - low(a)).abs().max() < 1e-12
    assert ((low(a) * b).sum() - (a * low(b)).sum()).abs() < 1e-10
    assert low.image(low.coefficients(a)).norm() == pytest.approx(low.coefficients(a).norm().item())
    assert high(low(a), 4).max() < 1e-12
    assert high(a, 4).min() > 1
    assert (LowPass(a, 12)(a) - a).abs().max() < 1e-12


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("frequencies", [8, 100])
def test_with_all_frequencies_it_is_pgd(threat: Threat, random_start: bool, frequencies: int) -> None:
    net, x, y = digits_net()
    # Pixels that no gradient reaches have a sign of rounding's choosing: all of this network's are reached.
    dct = DCT(frequencies=frequencies, random_start=random_start)(net, x, y, threat, streams(len(x)))
    pgd = PGD(random_start=random_start)(net, x, y, threat, streams(len(x)))
    assert (pgd - x).abs().max() > 0.05
    assert (dct - pgd).abs().max() < 1e-5


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_nothing_above_the_cut_off_before_the_ball_and_the_box(
    threat: Threat, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x, y = digits_net()
    steps: list[Tensor] = []
    stepped = DCT.stepped

    def watched(*args: object) -> Tensor:
        steps.append(stepped(*args))  # type: ignore[arg-type]
        return steps[-1]

    monkeypatch.setattr(DCT, "stepped", staticmethod(watched))
    x_adv = DCT(frequencies=3)(net, x, y, threat, streams(len(x)))
    assert len(steps) > 1
    for delta in steps:
        assert high(delta, 3).max() < 1e-12
        assert delta.flatten(1).norm(dim=1).min() > 0.01
    # The digits' background is 0: the box does cut, and cutting puts energy above the cut-off.
    assert high(x_adv - x, 3).max() > 0.01


def test_no_energy_above_the_cut_off_inside_the_box() -> None:
    net, x, y = digits_net()
    x = 0.4 + 0.2 * x  # eps = 0.3 in l2 moves no pixel out of [0, 1]
    y = net(x).argmax(1)
    x_adv = DCT(frequencies=3, loss="margin")(net, x, y, Threat(norm="l2", eps=0.3), streams(len(x)))
    assert high(x_adv - x, 3).max() < 1e-12
    assert (x_adv - x).flatten(1).norm(dim=1).max() <= 0.3 + 1e-9
    assert (net(x_adv).argmax(1) != y).any()


@pytest.mark.parametrize("random_start", [False, True])
def test_on_a_linear_network_the_margin_rises_by_eps_times_the_low_part_of_the_weights(
    random_start: bool,
) -> None:
    """Two classes, l2: max <w, d> over low-frequency d in the ball is eps * ||P w||."""
    net, eps = linear_net(2, 64), 0.05
    x = 0.3 + 0.4 * torch.rand(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(1)
    # From a random start the angle to the optimum shrinks by 1 / (1 + alpha / eps) a step: halves here.
    attack = DCT(frequencies=3, steps=50, step_size=eps, random_start=random_start)
    x_adv = attack(net, x, y, Threat(norm="l2", eps=eps), streams(6))
    z, z_adv, w = net(x), net(x_adv), weights(net)
    rise = (z_adv - z).gather(1, 1 - y[:, None]) - (z_adv - z).gather(1, y[:, None])
    low = LowPass(x, 3)((w[1] - w[0]).view(1, 1, 8, 8)).norm()
    assert (net(x_adv).argmax(1) == y).all()  # nothing broke, so the best point is the worst case of the ball
    assert (rise / (eps * low) - 1).abs().max() < 1e-6
    assert low < 0.8 * (w[1] - w[0]).norm()


def test_one_l_inf_step_is_the_low_part_of_the_sign_of_the_low_gradient() -> None:
    net = linear_net(2, 64)
    x = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)
    y = net(x).argmax(1)
    threat, low = Threat(eps=0.001), LowPass(x, 3)
    w = weights(net)[1 - y] - weights(net)[y]
    attack = DCT(frequencies=3, steps=1, step_size=0.0005, random_start=False, loss="margin")
    expected = threat.project(x + 0.0005 * low(steepest(low(w.view(1, 1, 8, 8)), "linf")), x)
    assert (attack(net, x, y, threat, streams(1)) - expected).abs().max() < 1e-15


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_more_frequencies_break_more(threat: Threat) -> None:
    net, x, y = digits_net()
    left = [
        (net(DCT(frequencies=f)(net, x, y, threat, streams(len(x)))).argmax(1) == y).double().mean().item()
        for f in (1, 3, 8)
    ]
    assert left[0] > left[1] > left[2]


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_result_depends_neither_on_the_batch_nor_on_the_global_generator(threat: Threat) -> None:
    net, x, y = digits_net()
    attack, before = DCT(frequencies=3), torch.get_rng_state()
    together = attack(net, x[:10], y[:10], threat, streams(10))
    for i in range(10):
        alone = attack(net, x[i : i + 1], y[i : i + 1], threat, streams(10).subset(torch.tensor([i])))
        assert (alone - together[i]).abs().max() < 1e-9
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("one_pass_at_a_time")
def test_a_random_network_is_climbed_to_the_last_step_with_averaged_gradients() -> None:
    net, x, y = digits_net()
    shaky = Shaky(net).eval()
    attack = DCT(steps=4, eot=3)
    attack(shaky, x[:20], y[:20], THREATS[0], streams(20))
    assert attack.passes == 12
    assert shaky.calls == attack.passes + 3


def test_targets_are_reached() -> None:
    net, x, y = digits_net()
    goal = (y + 1) % 10
    x_adv = DCT(target="given")(net, x, goal, Threat(norm="l2", eps=3.0), streams(len(x)))
    assert (net(x_adv).argmax(1) == goal).double().mean() > 0.9


def test_a_network_that_breaks_near_the_image_has_not_withstood() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            still = (x[:, :, 0, 0] - 0.5).abs() < 1e-9
            return torch.where(still, x.flatten(1)[:, :2] + x.sum((1, 2, 3))[:, None], math.nan)

    x = torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64)
    net = Breaks().eval()
    for threat in THREATS:
        x_adv = DCT(frequencies=3)(net, x, net(x).argmax(1), threat, streams(2))
        assert not net(x_adv).isfinite().any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("step_size", 0.0),
        ("step_size", math.nan),
        ("frequencies", 0),
        ("loss", "mse"),
        ("eot", 0),
    ],
)
def test_an_invalid_setting_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        DCT(**{name: value})  # type: ignore[arg-type]


def test_an_infinite_eps_needs_a_step_size_and_a_start() -> None:
    everywhere = Threat(norm="l2", eps=math.inf)
    with pytest.raises(ValueError, match=r"^step_size: expected a number"):
        DCT(random_start=False).check_threat(everywhere)
    with pytest.raises(ValueError, match=r"^random_start: expected false"):
        DCT(step_size=0.1).check_threat(everywhere)
    DCT(step_size=0.1, random_start=False).check_threat(everywhere)

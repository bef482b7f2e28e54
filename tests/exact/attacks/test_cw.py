"""C&W on a trained network, against torchattacks' at the same number of gradient steps; the published protocol."""

from __future__ import annotations

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from attacks import CW, PGD, CWPublished, Threat
from attacks.losses import margin
from tests.helpers.attack_models import digits_net, linear_net, streams


def sizes(net: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Norm of each perturbation, infinite where the network is not fooled."""
    size = Threat(norm=norm).size(x_adv - x)
    return torch.where(net(x_adv).argmax(1) != y, size, torch.inf)


@pytest.mark.parametrize(("search_steps", "steps"), [(3, 50), (9, 50), (9, 100)])
def test_median_norm_is_not_above_torchattacks_at_equal_steps(search_steps: int, steps: int) -> None:
    """Equal = the same total of gradient steps: search_steps * steps here, steps there (it has no search).

    torchattacks' weight c and learning rate are tried at its defaults (1, 0.01), and at larger ones.
    """
    net, x, y = digits_net()
    ours = CW(search_steps=search_steps, steps=steps)(net, x, y, Threat(norm="l2"), streams(len(x)))
    ours = sizes(net, ours, x, y, "l2")
    for c, lr in [(1, 0.01), (1, 0.1), (10, 0.01)]:
        theirs = torchattacks.CW(net, c=c, kappa=0, steps=search_steps * steps, lr=lr)(x, y)
        theirs = sizes(net, theirs, x, y, "l2")
        assert ours.median() <= theirs.median()
        assert ours.isinf().sum() <= theirs.isinf().sum()
    assert ours.isfinite().all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_smallest_perturbations_are_those_no_ball_attack_beats(norm: str) -> None:
    """Just below the median norm found, a strong PGD still fails on nearly half: C&W is not far too large."""
    net, x, y = digits_net()
    found = sizes(net, CW()(net, x, y, Threat(norm=norm), streams(len(x))), x, y, norm)
    assert found.isfinite().all()
    threat = Threat(norm=norm, eps=0.95 * found.median().item())
    x_adv = PGD(steps=50, restarts=4, loss="margin")(net, x, y, threat, streams(len(x)))
    pgd_share = (net(x_adv).argmax(1) != y).double().mean()
    cw_share = (found <= threat.eps).double().mean()
    assert cw_share > 0.3
    assert cw_share >= pgd_share - 0.05


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targets_are_reached_with_larger_perturbations(norm: str) -> None:
    net, x, y = digits_net()
    x, y = x[:40], y[:40]
    goal, threat = (y + 1) % 10, Threat(norm=norm)
    free = CW(steps=50)(net, x, y, threat, streams(40))
    aimed = CW(steps=50, target="given")(net, x, goal, threat, streams(40))
    assert (net(aimed).argmax(1) == goal).all()
    assert torch.equal(CW(steps=50, target="next")(net, x, y, threat, streams(40)), aimed)
    assert threat.size(aimed - x).median() > threat.size(free - x).median()


def test_early_abort_saves_passes_and_little_is_lost() -> None:
    net, x, y = digits_net()
    shown: list[int] = []
    handle = net.register_forward_pre_hook(lambda _, args: shown.append(len(args[0])))
    full = CW()(net, x, y, Threat(norm="l2"), streams(len(x)))
    passes, shown[:] = sum(shown), []
    early = CW(early_abort=True)(net, x, y, Threat(norm="l2"), streams(len(x)))
    handle.remove()
    assert sum(shown) < 0.9 * passes
    assert sizes(net, early, x, y, "l2").median() <= 1.05 * sizes(net, full, x, y, "l2").median()


def test_published_protocol_equals_a_plain_loop() -> None:
    """d from 0, Adam 6e-4, 50 steps on ||d||^2 + 10 max(Z_y - Z_t, 0), t the runner-up; smallest loss kept."""
    net, x, y = digits_net()
    t = net(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    d = torch.zeros_like(x, requires_grad=True)
    opt = torch.optim.Adam([d], lr=6e-4)
    kept, smallest = x.clone(), torch.full((len(x),), torch.inf, dtype=x.dtype)
    for _ in range(50):
        z = net(x + d)
        hinge = (z.gather(1, y[:, None]) - z.gather(1, t[:, None])).squeeze(1).clamp_min(0)
        loss = (d**2).flatten(1).sum(1) + 10 * hinge
        better = loss.detach() < smallest
        kept[better], smallest[better] = (x + d).detach()[better], loss.detach()[better]
        opt.zero_grad()
        loss.sum().backward()
        opt.step()
    ours = CWPublished()(net, x, y, Threat(), streams(len(x)))
    assert (ours - kept.clamp(0, 1)).abs().max() < 1e-12
    assert (ours - x).abs().max() < 0.04


def test_published_protocol_is_weak_and_says_so() -> None:
    net, x, y = digits_net()
    threat = Threat(eps=0.1)
    weak = CWPublished()(net, x, y, threat, streams(len(x)))
    strong = CW()(net, x, y, threat, streams(len(x)))
    assert CWPublished.weak
    assert not CW.weak
    accuracy = [(net(threat.project(a, x)).argmax(1) == y).double().mean() for a in (weak, strong)]
    assert accuracy[0] > accuracy[1] + 0.2
    # Where it does succeed it stands on the boundary, where any noise undoes it.
    lin = linear_net(2, 30)
    grey = 0.45 + 0.1 * torch.rand(
        30, 1, 1, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    label = lin(grey).argmax(1)
    reached = margin(lin(CWPublished(steps=400)(lin, grey, label, Threat(), streams(30))), label)
    assert reached.max() < 0.05

"""The PGD of CLIP's table: equal to a plain loop, a path by hand, and weaker than PGD within the same ball."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import PGD, PGDClip, Threat
from tests.helpers.attack_models import digits_net, streams

L2 = Threat(norm="l2", eps=1.0)


def sphere(d: Tensor) -> Tensor:
    return d / torch.linalg.vector_norm(d.flatten(1), dim=1).view(-1, 1, 1, 1)


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_equals_a_plain_loop(steps: int) -> None:
    """Signed step, box, sphere; images that are fooled stay; the box once more at the end."""
    net, x, y = digits_net()
    d = 2 * streams(len(x)).uniform(x) - 1
    d = sphere(torch.maximum(torch.minimum(d, 1 - x), -x))
    for _ in range(steps):
        d.requires_grad_()
        z = net(x + d)
        (grad,) = torch.autograd.grad(F.cross_entropy(z, y), d)
        moved = torch.maximum(torch.minimum(d + 0.5 * grad.sign(), 1 - x), -x)
        d = torch.where((z.argmax(1) == y).view(-1, 1, 1, 1), sphere(moved), d).detach()
    ours = PGDClip(steps=steps)(net, x, y, L2, streams(len(x)))
    assert (ours - (x + d).clamp(0, 1)).abs().max() < 1e-12


def test_a_step_on_a_linear_network_ends_in_the_corner_of_the_sphere() -> None:
    """From grey, where the box does not bind, one huge step forgets its start: eps * sign(w) / sqrt(d)."""
    w = torch.tensor([[1.0, -2.0, 1.5, -0.5]], dtype=torch.double)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).double().eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.cat((w, -w)))
        x = torch.full((3, 1, 2, 2), 0.5, dtype=torch.double)
        x += 0.02 * w.sign().view(1, 2, 2)  # class 0
    y = torch.zeros(3, dtype=torch.long)
    assert (net(x).argmax(1) == y).all()
    threat = Threat(norm="l2", eps=1e-3)  # too small to fool: every step is taken
    found = PGDClip(steps=1, step_size=1e9)(net, x, y, threat, streams(3))
    # The box binds for such a step: what is left of it are the distances to the box, 0.52 each.
    expected = -1e-3 * w.sign().view(1, 1, 2, 2) / 2
    assert (found - x - expected).abs().max() < 1e-9


def test_points_lie_on_the_sphere_and_where_it_leaves_the_box_inside() -> None:
    net, x, y = digits_net()
    found = PGDClip(steps=20)(net, x, y, L2, streams(len(x)))
    assert (L2.size(found - x) - 1).abs().max() < 1e-9
    large = Threat(norm="l2", eps=8.0)  # no perturbation of 64 pixels in the box is that long
    size = large.size(PGDClip(steps=20)(net, x, y, large, streams(len(x))) - x)
    assert size.max() < 8
    assert size.min() > 1


def test_it_is_weak_and_says_so() -> None:
    net, x, y = digits_net()
    assert PGDClip.weak
    accuracy = [
        (net(attack(net, x, y, L2, streams(len(x)))).argmax(1) == y).double().mean()
        for attack in (PGDClip(), PGD(steps=100))
    ]
    assert accuracy[0] > accuracy[1] + 0.05


def test_no_gradient_stays_where_it_starts() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].bias.copy_(torch.tensor([1.0, 0.0]))
    x, y = torch.full((5, 1, 2, 2), 0.5, dtype=torch.double), torch.zeros(5, dtype=torch.long)
    few, many = (PGDClip(steps=n)(net, x, y, Threat(norm="l2", eps=0.3), streams(5)) for n in (1, 9))
    assert (few - many).abs().max() < 1e-12


def test_without_a_bound_it_is_refused() -> None:
    net, x, y = digits_net()
    with pytest.raises(ValueError, match=r"^threat.eps: expected a finite number, got inf"):
        PGDClip()(net, x, y, Threat(norm="l2", eps=float("inf")), streams(len(x)))

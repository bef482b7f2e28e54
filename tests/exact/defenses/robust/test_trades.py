"""TRADES: value, gradient and direction of its divergence, where its images lie, and what batch-norm keeps."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.base import Threat
from defenses import TRADES
from defenses.robust.trades import divergence
from tests.helpers.robust_steps import linear, loss_of, step, with_norm


def test_divergence_is_the_sum_over_the_classes_in_this_direction() -> None:
    z, w = (torch.randn(5, 4, generator=torch.Generator().manual_seed(k), dtype=torch.double) for k in (0, 1))
    p, q = (torch.exp(v) / torch.exp(v).sum(1, keepdim=True) for v in (z, w))
    expected = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(divergence(z, w), expected)
    assert not torch.allclose(divergence(w, z), expected, rtol=1e-2)
    assert divergence(z, z + 3).abs().max() < 1e-12  # a shift of all outputs changes no probability


def test_gradient_of_the_divergence_in_both_arguments() -> None:
    z, w = (
        torch.randn(5, 4, generator=torch.Generator().manual_seed(k), dtype=torch.double).requires_grad_()
        for k in (0, 1)
    )
    by_z, by_w = torch.autograd.grad(divergence(z, w).sum(), (z, w))
    p, q = z.softmax(1).detach(), w.softmax(1).detach()
    torch.testing.assert_close(by_w, q - p)
    apart = (p / q).log()
    torch.testing.assert_close(by_z, p * (apart - (p * apart).sum(1, keepdim=True)))


def independent(network: torch.nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, beta: float) -> Tensor:
    """The paper's loss with F.kl_div's other way of saying it: its first argument is the second of KL."""
    clean = network(x)
    kl = F.kl_div(F.log_softmax(network(x_adv), 1), F.softmax(clean, 1), reduction="batchmean")
    return F.cross_entropy(clean, y) + beta * kl


@pytest.mark.parametrize("beta", [0.5, 6.0])
def test_loss_and_gradient_are_the_papers(beta: float) -> None:
    s = step(with_norm().train())
    twin = copy.deepcopy(s.model)
    defense = TRADES(beta=beta, steps=3)
    assert defense.perturb(s) is s.x
    x_adv = defense._now["x"]
    loss = loss_of(s, defense)
    loss.backward()
    defense.after_backward(s)
    expected = independent(twin, s.x, x_adv, s.y, beta)
    torch.testing.assert_close(loss, expected)
    expected.backward()
    for p, q in zip(s.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    # Batch-norm has seen the clean images, then the others, as it does in the twin.
    for name, buffer in s.model.named_buffers():
        torch.testing.assert_close(buffer, twin.get_buffer(name))
    assert int(s.model[1].num_batches_tracked) == 2


@pytest.mark.parametrize("threat", [Threat(eps=0.05), Threat(norm="l2", eps=0.7)])
def test_images_lie_in_the_ball_and_raise_the_divergence(threat: Threat) -> None:
    s = step(with_norm().eval())
    s.threat = threat
    defense = TRADES()
    defense.perturb(s)
    x = defense._now["x"]
    assert threat.size(x - s.x).max() <= threat.eps * (1 + 1e-5)
    assert x.min() >= 0
    assert x.max() <= 1
    with torch.no_grad():
        noisy = threat.project(s.x + 1e-3 * torch.randn(s.x.shape, generator=torch.Generator()), s.x)
        found, nearby = (divergence(s.model(s.x), s.model(v)).mean() for v in (x, noisy))
    assert found > 100 * nearby


def test_linear_network_in_closed_form() -> None:
    # Outputs (0, a.x): the divergence grows with |a.(x' - x)|, so every image ends in one of two corners of the ball.
    a = torch.randn(12, generator=torch.Generator().manual_seed(2))
    s = step(linear(torch.stack((torch.zeros(12), a))), size=2)
    s.x, s.y = torch.full((16, 3, 2, 2), 0.5), torch.zeros(16, dtype=torch.long)
    defense = TRADES(eps=0.03)
    defense.perturb(s)
    moved = (defense._now["x"] - s.x).flatten(1)
    corner = 0.03 * a.sign()
    towards = (moved @ a).sign()
    torch.testing.assert_close(moved, towards[:, None] * corner)
    assert set(towards.tolist()) == {-1.0, 1.0}


def test_images_are_found_on_the_network_as_it_is_at_test_time_and_leave_it_alone() -> None:
    s = step(with_norm().train())
    before = {k: v.clone() for k, v in s.model.state_dict().items()}
    TRADES(steps=2).perturb(s)
    assert s.model.training
    assert all(torch.equal(before[k], v) for k, v in s.model.state_dict().items())


def test_without_weight_or_radius_nothing_is_attacked() -> None:
    s = step(with_norm())
    state = s.generator.get_state()
    for defense in (TRADES(beta=0.0), TRADES(eps=0.0)):
        assert defense.passes == 0
        assert defense.perturb(s) is s.x
        s.outputs = s.model(s.x)
        assert defense.penalty(s) is None
    assert torch.equal(s.generator.get_state(), state)
    assert TRADES().passes == 10


def test_an_infinite_ball_needs_a_step_size() -> None:
    s = step(with_norm(), eps=float("inf"))
    with pytest.raises(ValueError, match=r"^step_size: "):
        TRADES().check_stage(s)
    TRADES(step_size=0.1).check_stage(s)

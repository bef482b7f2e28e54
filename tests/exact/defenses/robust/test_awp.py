"""AWP: which way and how far the weights move, that they come back bit for bit, and what stays where it is."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from defenses import AWP, RGSM, TRADES, HoldZeros
from defenses.base import prunable
from defenses.robust.awp import worst_step
from tests.helpers.defense_loop import Loop, fresh
from tests.helpers.robust_steps import loss_of, step, with_norm, with_objective


def test_step_has_its_length_and_the_gradients_direction() -> None:
    w, g = (torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    v = worst_step(w, g, 0.02)
    torch.testing.assert_close(v.norm(), 0.02 * w.norm())
    torch.testing.assert_close(v / v.norm(), g / g.norm())
    assert not worst_step(w, torch.zeros_like(w), 0.02).any()
    assert worst_step(w, torch.zeros_like(w), 0.02).isfinite().all()


def test_zeros_are_not_moved() -> None:
    w, g = (torch.randn(40, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    w[::2] = 0
    v = worst_step(w, g, 0.1)
    assert not v[::2].any()
    torch.testing.assert_close(v.norm(), 0.1 * w.norm())


def test_weights_move_along_the_gradient_of_the_loss_in_training_mode_and_come_back_bit_for_bit() -> None:
    s = step(with_norm().train())
    twin = copy.deepcopy(s.model)
    before = {k: v.clone() for k, v in s.model.state_dict().items()}
    defense = AWP(gamma=0.01)
    defense.before_forward(with_objective(s))
    F.cross_entropy(twin(s.x), s.y).backward()
    moved = dict(s.model.named_parameters())
    for name, q in twin.named_parameters():
        if q.ndim == 1:  # biases and batch-norm
            assert torch.equal(moved[name], q)
        else:
            expected = q + 0.01 * q.norm() * q.grad / q.grad.norm()
            torch.testing.assert_close(moved[name].detach(), expected)
    # Only parameters: batch-norm kept no record, and no gradient was left.
    assert all(torch.equal(before[k], b) for k, b in s.model.named_buffers())
    assert all(p.grad is None for p in s.model.parameters())
    loss_of(s).backward()
    defense.after_backward(s)
    assert all(torch.equal(before[k], p) for k, p in s.model.named_parameters())


def test_the_gradient_is_taken_at_the_moved_weights() -> None:
    s = step(with_norm().train())
    defense = AWP(gamma=0.1)
    defense.before_forward(with_objective(s))
    twin = copy.deepcopy(s.model)
    loss_of(s).backward()
    defense.after_backward(s)
    F.cross_entropy(twin(s.x), s.y).backward()
    for p, q in zip(s.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
        assert torch.equal(p, q) == (p.ndim == 1)


def test_the_loss_climbed_is_that_of_the_other_defenses() -> None:
    s = step(with_norm().train())
    trades = TRADES(beta=20.0, steps=2)
    trades.perturb(s)
    with_objective(s, trades)
    before = {name: w.detach().clone() for name, w in prunable(s.model).items()}
    twin = copy.deepcopy(s.model)
    clean = twin(s.x)
    kl = F.kl_div(
        twin(trades._now["x"]).log_softmax(1), clean.log_softmax(1), log_target=True, reduction="batchmean"
    )
    (F.cross_entropy(clean, s.y) + 20 * kl).backward()
    AWP(gamma=0.1).before_forward(s)
    for name, q in prunable(twin).items():
        v = prunable(s.model)[name].detach() - before[name]
        torch.testing.assert_close(v / v.norm(), q.grad / q.grad.norm(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.01, 0.1])
def test_the_loss_rises_by_the_perturbation(gamma: float) -> None:
    s = step(with_norm().train())
    before = loss_of(s).item()
    AWP(gamma=gamma).before_forward(with_objective(s))
    assert loss_of(s).item() > before


def test_zeros_that_are_held_stay_zero_in_every_pass() -> None:
    seen: list[int] = []
    loop = Loop([HoldZeros(threshold=0.1), AWP(gamma=0.5)])
    zeros = sum(int((w == 0).sum()) for w in prunable(loop.model).values())
    assert zeros > 100
    loop.model.register_forward_hook(
        lambda *_: seen.append(sum(int((w == 0).sum()) for w in prunable(loop.model).values()))
    )
    loop.run(4)
    assert seen
    assert set(seen) == {zeros}


def test_what_other_defenses_do_before_the_step_is_not_undone() -> None:
    # RGSM moves the weights in before_step: whichever of the two comes first, that must last.
    a, b = RGSM(lam=0.1, beta=0.5), AWP(gamma=0.05)
    one, other = Loop([fresh(a), fresh(b)]), Loop([fresh(b), fresh(a)])
    assert torch.equal(one.run(4).logits(), other.run(4).logits())


def test_warm_up_and_gamma_0_leave_the_weights() -> None:
    for defense, epoch in ((AWP(warm_up=2), 1), (AWP(gamma=0.0), 5)):
        s = with_objective(step(with_norm()))
        s.epoch = epoch
        before = [p.clone() for p in s.model.parameters()]
        defense.before_forward(s)
        assert all(torch.equal(p, q) for p, q in zip(s.model.parameters(), before, strict=True))
    s.epoch = 2
    AWP(warm_up=2).before_forward(s)
    assert not torch.equal(next(s.model.parameters()), before[0])


def test_frozen_weights_are_left_out() -> None:
    s = with_objective(step(with_norm()))
    s.model[0].weight.requires_grad_(False)
    before = s.model[0].weight.clone()
    AWP().before_forward(s)
    assert torch.equal(s.model[0].weight, before)


def test_what_it_cannot_work_with_is_said() -> None:
    with pytest.raises(ValueError, match=r"^awp: expected convolutions or linear layers, got none$"):
        AWP().check(nn.Flatten())
    with pytest.raises(ValueError, match=r"Step\.objective"):
        AWP().before_forward(step(with_norm()))

"""MART: its two losses against independent calculations, and what it gives the network to see."""

from __future__ import annotations

import copy

import torch

from defenses import MART
from defenses.robust.mart import boosted
from tests.helpers.robust_steps import loss_of, step, with_norm


def test_boosted_cross_entropy_is_the_papers() -> None:
    z = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    y = torch.arange(50) % 4
    for row, label, value in zip(z, y.tolist(), boosted(z, y), strict=True):
        p = (row.exp() / row.exp().sum()).tolist()
        wrong = max(v for k, v in enumerate(p) if k != label)
        expected = -torch.tensor([p[label], 1 - wrong], dtype=torch.double).log().sum()
        torch.testing.assert_close(value, expected)


def test_boosted_cross_entropy_where_a_wrong_class_is_certain() -> None:
    # In float32 the wrong class's probability is exactly 1, and the logarithm of the rest of it would be infinite.
    z = torch.tensor([[0.0, 200.0, 1.0]], requires_grad=True)
    value = boosted(z, torch.tensor([0]))
    torch.testing.assert_close(value, torch.tensor([200 + 200 - torch.tensor([0.0, 1.0]).logsumexp(0)]))
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert gradient.isfinite().all()
    assert gradient[0, 1] == 2


def test_loss_and_gradient_are_the_papers() -> None:
    s = step(with_norm().train())
    twin, clean = copy.deepcopy(s.model), s.x
    defense = MART(lam=5.0, steps=3)
    s.x = defense.perturb(s)
    assert not torch.equal(s.x, clean)
    loss = loss_of(s, defense)
    loss.backward()
    defense.after_backward(s)

    p_adv, p = twin(s.x).softmax(1), twin(clean).softmax(1)  # in the order in which the network sees them
    own = p_adv[torch.arange(16), s.y]
    others = p_adv.masked_fill(torch.nn.functional.one_hot(s.y, 3).bool(), 0).amax(1)
    kl = (p * (p / p_adv).log()).sum(1)
    expected = (-own.log() - (1 - others).log() + 5 * kl * (1 - p[torch.arange(16), s.y])).mean()
    torch.testing.assert_close(loss, expected)
    expected.backward()
    for a, b in zip(s.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    for name, buffer in s.model.named_buffers():
        torch.testing.assert_close(buffer, twin.get_buffer(name))


def test_images_stay_in_the_ball() -> None:
    s = step(with_norm().train())
    x = MART().perturb(s)
    assert s.threat.size(x - s.x).max() <= s.threat.eps * (1 + 1e-5)
    assert s.threat.size(x - s.x).median() > 0.9 * s.threat.eps
    assert x.min() >= 0
    assert x.max() <= 1


def test_radius_0_is_natural_training() -> None:
    s = step(with_norm())
    defense = MART(eps=0.0)
    assert defense.passes == 0
    assert defense.perturb(s) is s.x
    s.outputs = s.model(s.x)
    assert defense.criterion(s) is None

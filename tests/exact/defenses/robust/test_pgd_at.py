"""Adversarial training's inner step: where the images go, and what it leaves untouched."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import GeneratorNoise, Threat
from defenses import PGDAT, EnResNet, Step
from defenses.robust.attacking import batch_norm_of_the_batch
from defenses.robust.draws import BatchRandom


class Block(nn.Module):
    is_residual_block = True

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x)))


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), Block(), nn.Flatten(), nn.Linear(36, 3))


def step(model: nn.Module, threat: Threat | None = None) -> Step:
    s = Step(model, None, threat or Threat(), torch.Generator().manual_seed(0), lambda *_: torch.empty(0))
    s.x = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    s.y = torch.arange(16) % 3
    return s


@pytest.mark.parametrize("threat", [Threat(norm="linf", eps=0.05), Threat(norm="l2", eps=1.0)])
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_images_stay_in_the_ball_and_raise_the_loss(threat: Threat, batch_statistics: bool) -> None:
    torch.manual_seed(0)
    s = step(network().eval(), threat)
    x = PGDAT(batch_statistics=batch_statistics).perturb(s)
    assert threat.size(x - s.x).max() <= threat.eps * (1 + 1e-5)
    assert threat.size(x - s.x).median() > 0.9 * threat.eps  # the budget is used
    assert x.min() >= 0
    assert x.max() <= 1
    with torch.no_grad():
        clean, adv = (F.cross_entropy(s.model(v), s.y) for v in (s.x, x))
    assert adv > clean + 0.05


def test_own_ball_comes_before_the_benchmarks() -> None:
    benchmark = Threat(norm="linf", eps=0.1)
    assert PGDAT().threat(benchmark) == benchmark
    assert PGDAT(eps=0.2).threat(benchmark) == Threat(norm="linf", eps=0.2)
    assert PGDAT(norm="l2", eps=0.2).threat(benchmark) == Threat(norm="l2", eps=0.2)


def test_infinite_ball_with_random_start_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="random_start"):
        PGDAT(step_size=0.1).begin(step(network(), Threat(eps=float("inf"))))


def test_linear_network_in_closed_form() -> None:
    # For logits (0, a.x) and label 0 the loss grows along a: every pixel moves by eps in the sign of a.
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    a = torch.randn(12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack((torch.zeros(12), a)))
    s = step(model)
    s.x = torch.full((5, 3, 2, 2), 0.5)
    s.y = torch.zeros(5, dtype=torch.long)
    expected = s.x + 0.03 * a.sign().view(1, 3, 2, 2)
    for settings in ({"random_start": False}, {"random_start": True}):
        torch.testing.assert_close(PGDAT(eps=0.03, steps=8, **settings).perturb(s), expected)


def test_batch_statistics_are_used_and_not_kept() -> None:
    torch.manual_seed(0)
    model = network().train()
    s = step(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    eval_mode = model.eval()(s.x)
    with batch_norm_of_the_batch(model.train()):
        assert not model.training
        inside = model(s.x)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    torch.testing.assert_close(inside, model(s.x))  # now in training mode
    assert not torch.allclose(inside, eval_mode, atol=1e-2)


def test_batch_statistics_come_back_after_an_error() -> None:
    model = network().train()
    s = step(model)
    s.x = torch.cat([s.x, s.x], 1)  # not the images this network takes
    with pytest.raises(RuntimeError):
        PGDAT(batch_statistics=True).perturb(s)
    assert isinstance(model[1].norm.running_mean, Tensor)
    assert model.training


def test_noise_of_a_random_network_comes_from_the_attackers_stream() -> None:
    torch.manual_seed(0)
    model = EnResNet().wrap(network)()
    s = step(model, Threat(eps=0.1))
    training = torch.Generator().manual_seed(3)
    EnResNet().begin(Step(model, None, s.threat, training, s.images))
    sources = [m.noise_source for m in model.modules() if hasattr(m, "noise_source")]
    before, world = training.get_state(), torch.get_rng_state()
    first = PGDAT(steps=2, eot=2).perturb(s)
    assert torch.equal(training.get_state(), before)
    assert torch.equal(torch.get_rng_state(), world)
    assert [m.noise_source for m in model.modules() if hasattr(m, "noise_source")] == sources
    s.generator.manual_seed(0)
    assert torch.equal(PGDAT(steps=2, eot=2).perturb(s), first)
    assert not torch.equal(PGDAT(steps=2, eot=2).perturb(s), first)


def test_batch_random_draws_from_its_generator_alone() -> None:
    like = torch.zeros(1000, 3)
    random = BatchRandom(torch.Generator().manual_seed(0), 1000)
    twin = GeneratorNoise(torch.Generator().manual_seed(0))
    assert torch.equal(random.normal(like), twin.normal(like))
    second = random.normal(like.double())
    assert second.dtype == torch.double
    assert torch.equal(second, twin.normal(like).double())
    uniform = random.uniform(like)
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
    assert sorted(random.integers(3).unique().tolist()) == [0, 1, 2]
    assert len(random.subset(torch.arange(7))) == len(random.subset(torch.arange(1000) < 7)) == 7
    assert len(random.subset(torch.arange(7)).integers(5)) == 7


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batch_random_on_a_gpu_is_fixed_by_its_generator() -> None:
    like = torch.zeros(64, 3, 8, 8, device="cuda")
    random = BatchRandom(torch.Generator().manual_seed(0), 64)
    first, second = random.normal(like), random.normal(like)
    assert first.device == like.device
    assert not torch.equal(first, second)
    random.generator.manual_seed(0)
    assert torch.equal(random.normal(like), first)

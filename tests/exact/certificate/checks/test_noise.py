"""Checks R: random networks that hide something fail, honest ones pass, and every rule for noise can be broken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attacks.base import NoiseOff, RandomModule, Threat
from robustbench_sparse.certificate.budget import BUDGETS, Budget
from robustbench_sparse.certificate.checks import noise
from robustbench_sparse.certificate.finding import Finding
from robustbench_sparse.certificate.subject import Subject

THREAT = Threat(norm="linf", eps=0.1)
QUICK = dataclasses.replace(BUDGETS["quick"], steps=20)


class InputNoise(RandomModule):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.draw(x)


class BatchScaledNoise(RandomModule):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * x.detach().std() * self.draw(x)


class NoisyGradient(RandomModule):
    """The identity; its gradient is multiplied by random numbers."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, x: Tensor) -> Tensor:
        return x + self.strength * self.draw(x) * (x - x.detach())


class Undeclared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


class SharedDraw(nn.Module):
    """One draw for all images: half of the passes are wrong on every image."""

    stochastic = True

    def forward(self, z: Tensor) -> Tensor:
        return z * (1 if torch.rand(()) < 0.5 else -1)


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


def trained(seed: int, first: nn.Module | None = None) -> nn.Sequential:
    x, y = digits()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            first or nn.Identity(), nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )
        opt = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(8):
            for rows in torch.randperm(1400).split(64):
                opt.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows]).backward()
                opt.step()
    return net.eval()


def with_first(net: nn.Sequential, first: nn.Module) -> nn.Module:
    return nn.Sequential(first, *list(net)[1:]).eval()


def subject(
    net: nn.Module, *, seed: int = 0, budget: Budget = QUICK, n: int = 48, batch_size: int = 256
) -> Subject:
    x, y = digits()
    rows = slice(1400, 1400 + n)
    index = torch.arange(1400, 1400 + n)
    return Subject(
        net,
        x[rows],
        y[rows],
        index,
        THREAT,
        classes=10,
        seed=seed,
        budget=budget,
        batch_size=batch_size,
    )


@pytest.fixture(scope="module")
def plain() -> nn.Sequential:
    return trained(0)


@pytest.fixture(scope="module")
def noisy() -> Subject:
    return subject(trained(0, InputNoise()))


@pytest.mark.parametrize("seed", range(5))
def test_honest_noise_passes_every_check(seed: int) -> None:
    s = subject(trained(seed, InputNoise()), seed=seed)
    found = {check.id: check.run(s) for check in noise.CHECKS}
    assert {id_: f.status for id_, f in found.items()} == dict.fromkeys(found, "passed"), found


@pytest.mark.parametrize("seed", range(5))
def test_networks_without_noise_pass_and_skip_with_a_reason(seed: int) -> None:
    s = subject(trained(seed), seed=seed, n=128)
    found = {check.id: check.run(s) for check in noise.CHECKS}
    assert [found[i].status for i in ("R1", "R2")] == ["passed", "passed"]
    assert all(found[i].status == "skipped" and found[i].why for i in ("R3", "R4", "R5", "R6"))


def test_undeclared_noise_fails_r1(plain: nn.Sequential) -> None:
    found = noise.randomness_is_declared(subject(with_first(plain, Undeclared())))
    assert found.status == "failed"
    assert found.measured["random"] is True
    assert found.measured["declared"] is False
    assert noise.batch_does_not_matter(subject(with_first(plain, Undeclared()))).status == "skipped"


def test_r1_leaves_the_global_generator_as_it_was(plain: nn.Sequential) -> None:
    s = subject(with_first(plain, Undeclared()))
    before = torch.get_rng_state()
    first = noise.randomness_is_declared(s)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert noise.randomness_is_declared(s) == first  # and does not depend on where that stands


def test_declared_noise_passes_r1(noisy: Subject) -> None:
    found = noise.randomness_is_declared(noisy)
    assert found.status == "passed"
    assert found.measured["random"] is True


def test_noise_scaled_by_the_batch_fails_r2(plain: nn.Sequential) -> None:
    found = noise.batch_does_not_matter(subject(with_first(plain, BatchScaledNoise())))
    assert found.status == "failed"
    assert found.measured["alone_difference"] > 100 * found.measured["allowed"]  # type: ignore[operator]


def test_batch_statistics_at_test_time_fail_r2(plain: nn.Sequential) -> None:
    coupled = with_first(plain, nn.BatchNorm2d(1, track_running_stats=False))
    assert noise.batch_does_not_matter(subject(coupled)).status == "failed"


def test_too_few_draws_for_a_gradient_fail_r3(plain: nn.Sequential) -> None:
    few = dataclasses.replace(QUICK, eot=2, few=128)
    found = noise.gradient_draws_suffice(subject(with_first(plain, NoisyGradient(5)), budget=few, n=256))
    assert found.status == "failed", found
    assert found.measured["eot"] == [1, 2, 4]


def test_draws_shared_by_all_images_fail_r4(plain: nn.Sequential) -> None:
    found = noise.verdict_draws_suffice(subject(nn.Sequential(plain, SharedDraw()).eval()))
    assert found.status == "failed"
    assert found.measured["lowest_single_acc"] < 0.5 < found.measured["highest_single_acc"]  # type: ignore[operator]


def test_noise_that_hides_gradients_fails_r5_and_r6(plain: nn.Sequential) -> None:
    s = subject(with_first(plain, NoisyGradient(100)))
    frozen, quiet = noise.known_noise_hides_nothing(s), noise.noise_off_is_no_better_guide(s)
    assert frozen.status == "failed"
    assert frozen.measured["frozen_acc"] > frozen.measured["noise_off_acc"]  # type: ignore[operator]
    assert quiet.status == "failed"
    assert quiet.measured["transfer_acc"] < quiet.measured["white_acc"]  # type: ignore[operator]
    assert s.found.correct.min() < 0.5  # what the network without noise gave away is kept


def test_averaging_that_finds_less_than_one_frozen_draw_fails_r5(noisy: Subject) -> None:
    s = subject(noisy.model)
    s._white = noise.Attacked(s.x.clone(), s.clean.clone())  # a white box that finds nothing
    assert noise.known_noise_hides_nothing(s).status == "failed"


def test_noise_from_elsewhere_is_skipped_with_its_reason(plain: nn.Sequential) -> None:
    s = subject(nn.Sequential(plain, SharedDraw()).eval())
    for run in (
        noise.batch_does_not_matter,
        noise.known_noise_hides_nothing,
        noise.noise_off_is_no_better_guide,
    ):
        found: Finding = run(s)
        assert (found.status, found.why) == ("skipped", noise.ELSEWHERE)


def test_frozen_noise_is_the_same_in_every_pass_and_for_every_batch_size(noisy: Subject) -> None:
    frozen = noise.Frozen(noisy.model, 0, noisy.index.tolist())
    with torch.no_grad():
        first, again = frozen(noisy.x), frozen(noisy.x)
        half = noise.Frozen(noisy.model, 0, noisy.index[24:].tolist())(noisy.x[24:])
        other = noise.Frozen(noisy.model, 1, noisy.index.tolist())(noisy.x)
    assert torch.equal(first, again)
    torch.testing.assert_close(first[24:], half)
    assert not torch.allclose(first, other)


def test_quiet_network_is_the_network_without_noise(noisy: Subject) -> None:
    with torch.no_grad():
        expected = nn.Sequential(*list(noisy.model.children())[1:])(noisy.x)
        torch.testing.assert_close(NoiseOff(noisy.model)(noisy.x), expected)


@pytest.mark.parametrize(
    "run",
    [
        noise.randomness_is_declared,
        noise.batch_does_not_matter,
        noise.known_noise_hides_nothing,
        noise.noise_off_is_no_better_guide,
    ],
)
def test_checks_leave_the_network_as_it_was(noisy: Subject, run: Callable[[Subject], Finding]) -> None:
    names = [name for name, _ in noisy.model.named_modules()]
    run(noisy)
    assert [name for name, _ in noisy.model.named_modules()] == names
    assert all(m.noise_source is None for m in noisy.model.modules() if isinstance(m, RandomModule))


def test_small_batches_give_the_same_frozen_verdicts(noisy: Subject) -> None:
    whole, parts = (
        noise.known_noise_hides_nothing(noisy),
        noise.known_noise_hides_nothing(subject(noisy.model, batch_size=10)),
    )
    assert whole.measured["frozen_acc"] == parts.measured["frozen_acc"]

"""RGSM: one step by hand, the limit of a quadratic in closed form, and where the exact zeros come from."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.base import Threat
from defenses import REGULARISERS, RGSM, Step


def step(model: nn.Module, lr: float = 0.1) -> Step:
    return Step(model, None, Threat(), torch.Generator().manual_seed(0), lambda *_: torch.empty(0), lr=lr)


def conv(weight: Tensor) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def channels(*norms: float) -> Tensor:
    """A weight (2, len(norms), 1, 1) whose channels have these norms."""
    direction = torch.tensor([0.6, 0.8], dtype=torch.double)
    return torch.outer(direction, torch.tensor(norms, dtype=torch.double)).view(2, -1, 1, 1)


def norms(w: Tensor) -> list[float]:
    return w.detach().flatten(2).norm(dim=(0, 2)).tolist()


def one_step(rgsm: RGSM, s: Step, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    term = rgsm.penalty(s)
    optimizer.zero_grad()
    (loss if term is None else loss + term).backward()  # type: ignore[no-untyped-call]
    rgsm.before_step(s)
    optimizer.step()
    with torch.no_grad():
        rgsm.after_step(s)


def test_thresholds_of_both_penalties() -> None:
    model = nn.Sequential(conv(channels(0.5, 1.0, 3.0, 2.0)))
    s = step(model)
    lasso = RGSM(lam=2.0, beta=2.0)
    lasso.begin(s)
    assert norms(lasso.memory["u"]["0.weight"]) == pytest.approx([0, 0, 2, 1])
    l0 = RGSM(lam=4.0, beta=2.0, regulariser="group_l0")  # sqrt(2 * 4 / 2) = 2: kept only above
    l0.begin(s)
    assert norms(l0.memory["u"]["0.weight"]) == pytest.approx([0, 0, 3, 0])


def test_two_steps_by_hand_with_momentum() -> None:
    eta, beta, lam, mom = 0.1, 0.5, 0.5, 0.9
    model = nn.Sequential(conv(channels(0.5, 3.0)))
    w = model[0].weight
    rgsm, s = RGSM(lam=lam, beta=beta), step(model, eta)
    rgsm.begin(s)
    optimizer = torch.optim.SGD(model.parameters(), lr=eta, momentum=mom)
    slope = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.double).view(2, 2, 1, 1)
    hand, velocity = channels(0.5, 3.0), torch.zeros(2, 2, 1, 1, dtype=torch.double)
    u = channels(0.0, 2.0)  # lam / beta = 1
    torch.testing.assert_close(rgsm.memory["u"]["0.weight"], u)
    for _ in range(2):
        one_step(rgsm, s, optimizer, (w * slope).sum())
        velocity = mom * velocity + slope
        hand = hand - eta * velocity - eta * beta * (hand - u)
        size = hand.flatten(2).norm(dim=(0, 2)).view(1, 2, 1, 1)
        u = hand * (1 - lam / beta / size).clamp_min(0)
        torch.testing.assert_close(w.detach(), hand)
        torch.testing.assert_close(rgsm.memory["u"]["0.weight"], u)
        # The coupling stays out of the momentum.
        torch.testing.assert_close(optimizer.state[w]["momentum_buffer"], velocity)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_quadratic_reaches_its_limit_in_closed_form(momentum: float) -> None:
    # f(w) = ||w - w*||^2 / 2: least squares for whitened inputs. Stationarity of L_b gives, per channel,
    # ||u|| = ||w*|| - (b / beta) lam - lam / beta where that is positive and else u = 0, w = w* / (1 + b).
    # Momentum m multiplies the gradient by 1 / (1 - m) in the long run, not the coupling: b = (1 - m) beta.
    lam, beta = 0.3, 1.0
    b = (1 - momentum) * beta
    target = [0.05, 2.0, 0.1, 0.55, 1.5, 0.65]
    model = nn.Sequential(conv(channels(1, 1, 1, 1, 1, 1)))
    rgsm, s = RGSM(lam=lam, beta=beta), step(model)
    rgsm.begin(s)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    x = torch.eye(6, dtype=torch.double).view(6, 6, 1, 1)
    y = F.conv2d(x, channels(*target))
    for _ in range(600):
        one_step(rgsm, s, optimizer, (model(x) - y).square().sum() / 2)
    u = [max(t - b / beta * lam - lam / beta, 0) for t in target]
    assert norms(rgsm.memory["u"]["0.weight"]) == pytest.approx(u, abs=1e-6)
    w = [(t + b * v) / (1 + b) for t, v in zip(target, u, strict=True)]
    assert norms(model[0].weight) == pytest.approx(w, abs=1e-6)
    deployed = rgsm.deploy(model)
    assert [n == 0 for n in norms(deployed[0].weight)] == [v == 0 for v in u]
    assert [v == 0 for v in u] == [True, False, True, momentum == 0, False, False]


def test_lagrangian_falls_monotonically() -> None:
    # Theorem 4.1: for a step size below 2 / (beta + L), here L = 1, L_beta(w, u) never rises.
    lam, beta = 0.2, 0.5
    generator = torch.Generator().manual_seed(0)
    target, start = (torch.randn(5, 4, 3, 3, generator=generator, dtype=torch.double) for _ in range(2))
    for regulariser in ("group_lasso", "group_l0"):
        model = nn.Sequential(conv(start))
        rgsm, s = RGSM(lam=lam, beta=beta, regulariser=regulariser), step(model, 0.9)  # type: ignore[arg-type]
        rgsm.begin(s)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.9)
        values = []
        for _ in range(60):
            w, u = model[0].weight.detach(), rgsm.memory["u"]["0.weight"]
            group = u.flatten(2).norm(dim=(0, 2))
            p = group.sum() if regulariser == "group_lasso" else (group > 0).sum()
            f = (model[0].weight - target).square().sum() / 2
            values.append(float(f.detach() + lam * p + beta / 2 * (w - u).square().sum()))
            one_step(rgsm, s, optimizer, f)
        assert all(b <= a + 1e-12 for a, b in itertools.pairwise(values))
        assert values[-1] < values[0] - 1


def test_epoch_end_puts_exact_zeros_and_leaves_momentum() -> None:
    model = nn.Sequential(conv(channels(0.5, 3.0, 1.0)), nn.Flatten())
    rgsm, s = RGSM(lam=1.0, beta=1.0), step(model)
    rgsm.begin(s)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    one_step(rgsm, s, optimizer, 0.01 * model[0].weight.sum())
    assert model[0].weight.count_nonzero() == 6
    velocity = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    u = rgsm.memory["u"]["0.weight"].clone()
    log = rgsm.end_epoch(s)
    assert torch.equal(model[0].weight, u)
    assert [n == 0 for n in norms(model[0].weight)] == [True, False, True]
    assert log == {"channel_sparsity": pytest.approx(2 / 3)}
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], velocity)
    assert torch.equal(rgsm.memory["u"]["0.weight"], u)
    one_step(rgsm, s, optimizer, 0.01 * model[0].weight.sum())
    assert torch.equal(rgsm.memory["u"]["0.weight"] == 0, u == 0)


def test_channel_sparsity_counts_channels_over_all_layers() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5))  # LeNet's 7 channels
    with torch.no_grad():
        model[0].weight.mul_(10)
        model[1].weight[:, :5] = 0
    rgsm, s = RGSM(lam=0.01, beta=1.0), step(model)
    rgsm.begin(s)
    assert rgsm.end_epoch(s)["channel_sparsity"] == pytest.approx(5 / 7)


def test_lambda_two_is_a_differentiable_group_lasso() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    with torch.no_grad():
        model[0].weight[:, 1] = 0
    rgsm = RGSM(lam2=0.3)
    s = step(model)
    rgsm.begin(s)
    term = rgsm.penalty(s)
    assert term is not None
    weights = [model[0].weight, model[2].weight]
    grads = torch.autograd.grad(term, weights)
    by_hand = 0.0
    for w, grad in zip(weights, grads, strict=True):
        for g in range(w.shape[1]):
            size = w[:, g].detach().square().sum().sqrt()
            by_hand += 0.3 * size.item()
            expected = 0.3 * w[:, g].detach() / size if size > 0 else torch.zeros_like(w[:, g])
            torch.testing.assert_close(grad[:, g], expected)
    assert term.item() == pytest.approx(by_hand)


def test_deployed_copy_has_u_and_everything_else_of_the_network() -> None:
    model = nn.Sequential(conv(channels(0.5, 3.0)), nn.BatchNorm2d(2).double(), nn.Flatten())
    model[1].running_mean.fill_(0.3)
    rgsm, s = RGSM(lam=1.0, beta=1.0), step(model)
    assert rgsm.deploy(model) is model  # before begin() there is no u
    rgsm.begin(s)
    deployed = rgsm.deploy(model)
    torch.testing.assert_close(deployed[0].weight.detach(), channels(0.0, 2.0))
    torch.testing.assert_close(model[0].weight.detach(), channels(0.5, 3.0))
    assert torch.equal(deployed[1].running_mean, model[1].running_mean)
    assert RGSM(lam2=0.1).deploy(model) is model


def test_keep_one_saves_a_dying_layer_and_changes_no_other() -> None:
    model = nn.Sequential(conv(channels(0.2, 0.9, 0.5)), conv(channels(0.5, 3.0)))
    s = step(model)
    dying, kept = RGSM(lam=1.0, beta=1.0), RGSM(lam=1.0, beta=1.0, keep_one=True)
    dying.begin(s)
    kept.begin(s)
    assert norms(dying.memory["u"]["0.weight"]) == [0, 0, 0]
    assert norms(kept.memory["u"]["0.weight"]) == pytest.approx([0, 0.9, 0])
    assert torch.equal(kept.memory["u"]["1.weight"], dying.memory["u"]["1.weight"])


def test_first_layer_can_be_left_out() -> None:
    model = nn.Sequential(conv(channels(0.2, 0.9)), conv(channels(0.5, 3.0)))
    s = step(model)
    rgsm = RGSM(lam=1.0, beta=1.0, lam2=1.0, include_first=False)
    rgsm.begin(s)
    assert list(rgsm.memory["u"]) == ["1.weight"]
    term = rgsm.penalty(s)
    assert term is not None
    assert term.item() == pytest.approx(3.5)
    with pytest.raises(ValueError, match="rgsm: expected a network with 2-D convolutions"):
        rgsm.check(nn.Sequential(conv(channels(1.0)), nn.Flatten(), nn.Linear(2, 2)))


def test_limit_condition_of_the_thresholds() -> None:
    # Exactly at the threshold both maps give zero; math.nextafter above it the channel lives.
    at, above = channels(1.0), channels(math.nextafter(1.0, 2.0) * (1 + 1e-12))
    for regulariser, lam in (("group_lasso", 1.0), ("group_l0", 0.5)):
        rgsm = RGSM(lam=lam, beta=1.0, regulariser=regulariser)  # type: ignore[arg-type]
        assert rgsm.prox(at).count_nonzero() == 0
        assert rgsm.prox(above).count_nonzero() == 2


@pytest.mark.parametrize("keep_one", [False, True])
@pytest.mark.parametrize("regulariser", ["group_lasso", "group_l0"])
def test_all_layers_at_once_are_the_layers_one_by_one(regulariser: str, keep_one: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3), nn.Conv2d(5, 2, 1))
    model = model.to(memory_format=torch.channels_last)
    rgsm = RGSM(lam=0.6, beta=1.0, regulariser=regulariser, keep_one=keep_one)  # type: ignore[arg-type]
    s = step(model)
    rgsm.begin(s)
    with torch.no_grad():
        model[1].weight[:, 4].mul_(9)
        rgsm.after_step(s)
    for i in range(3):
        w, u = model[i].weight.detach(), rgsm.memory["u"][f"{i}.weight"]
        alone = REGULARISERS[regulariser]().prox(w, 0.6)
        if keep_one and not alone.any():
            largest = int(w.square().sum((0, 2, 3)).argmax())
            alone[:, largest] = w[:, largest]
        assert torch.equal(u, alone)
        assert u.any() or not keep_one
    assert not rgsm.memory["u"]["1.weight"][:, 0].any()


def test_another_network_is_not_taken_for_the_last_one() -> None:
    rgsm = RGSM(lam=1.0, beta=1.0, lam2=1.0)
    for size in (3.0, 5.0):
        s = step(nn.Sequential(conv(channels(size))))
        rgsm.begin(s)
        term = rgsm.penalty(s)
        assert term is not None
        assert term.item() == pytest.approx(size)

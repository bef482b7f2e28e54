"""The product of spectral norms: exact values, and power iteration against them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks.base import Threat
from defenses import SpectralPenalty, Step


def step(model: nn.Module) -> Step:
    return Step(model, None, Threat(), torch.Generator().manual_seed(0), lambda *_: torch.empty(0))


def value(penalty: SpectralPenalty, s: Step) -> Tensor:
    term = penalty.penalty(s)
    assert term is not None
    return term


def absolute_value() -> nn.Module:
    """|x| = ReLU(x) + ReLU(-x), Roith example 1.7."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
    return model


@pytest.mark.parametrize("iterations", [0, 1])
def test_product_of_absolute_value_is_two(iterations: int) -> None:
    penalty = SpectralPenalty(lam=0.5, power_iterations=iterations)
    s = step(absolute_value())
    penalty.begin(s)
    assert value(penalty, s).item() == pytest.approx(0.5 * 2)
    assert penalty.end_epoch(s) == {"lam": 0.5, "spectral_product": pytest.approx(2)}


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5)).double()


def test_gradient_is_that_of_the_product_rule() -> None:
    model = convolutional()
    penalty = SpectralPenalty(lam=1.0)
    s = step(model)
    penalty.begin(s)
    term = value(penalty, s)
    conv, linear = model[0].weight.flatten(1), model[3].weight
    norms = [torch.linalg.svdvals(m)[0].item() for m in (conv, linear)]
    assert term.item() == pytest.approx(norms[0] * norms[1])
    grad = torch.autograd.grad(term, model[3].weight)[0]
    u, _, vh = torch.linalg.svd(linear.detach())
    torch.testing.assert_close(grad, norms[0] * torch.outer(u[:, 0], vh[0]))


def test_power_iteration_converges_from_step_to_step() -> None:
    model = convolutional()
    exact, power = SpectralPenalty(lam=1.0), SpectralPenalty(lam=1.0, power_iterations=1)
    s = step(model)
    exact.begin(s)
    power.begin(s)
    errors = []
    for _ in range(200):
        errors.append(abs(1 - (value(power, s) / value(exact, s)).item()))
    assert errors[-1] < 1e-9 < errors[0]
    weights = [model[0].weight, model[3].weight]
    torch.testing.assert_close(
        torch.autograd.grad(value(power, s), weights), torch.autograd.grad(value(exact, s), weights)
    )


def test_power_iteration_survives_a_zero_matrix() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    start = model[0].weight.detach().clone()
    power = SpectralPenalty(lam=1.0, power_iterations=5)
    s = step(model)
    power.begin(s)
    with torch.no_grad():
        model[0].weight.zero_()
    assert value(power, s).item() == 0
    with torch.no_grad():
        model[0].weight.copy_(start)
    for _ in range(100):
        last = value(power, s).item()
    assert last == pytest.approx(torch.linalg.matrix_norm(start, ord=2).item(), rel=1e-5)


def test_network_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="spectral_penalty: expected convolutions or linear layers"):
        SpectralPenalty().check(nn.Flatten())

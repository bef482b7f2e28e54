"""PMA's loss against the softmax by hand, its closed derivatives, and where a softmax loses them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attacks import APGD, IFGSM, Threat
from attacks.losses import LOSSES, margin, probability_margin
from tests.helpers.attack_models import linear_net, streams

LOGITS = [[4.0, 1.0, 3.0, -2.0], [0.5, 0.25, -1.0, 0.5001]]


def by_hand(row: list[float], label: int) -> float:
    """max_{k != y} p_k - p_y, p_k = exp z_k / sum exp z."""
    p = [math.exp(z) / math.fsum(math.exp(other) for other in row) for z in row]
    return max(v for k, v in enumerate(p) if k != label) - p[label]


@pytest.mark.parametrize("label", range(4))
def test_it_is_the_margin_of_the_probabilities(label: int) -> None:
    z, y = torch.tensor(LOGITS, dtype=torch.float64), torch.tensor([label, label])
    expected = torch.tensor([by_hand(row, label) for row in LOGITS], dtype=torch.float64)
    assert torch.allclose(probability_margin(z, y), expected, rtol=0, atol=1e-15)
    assert torch.allclose(probability_margin(z - 700, y), expected, rtol=0, atol=1e-12)
    low = probability_margin(z.float(), y)
    assert low.dtype == torch.float32
    assert torch.allclose(low.double(), expected, atol=1e-6)


def test_it_has_the_margins_sign_and_lies_between_minus_one_and_one() -> None:
    z = 5 * torch.randn(500, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(500) % 6
    value = probability_margin(z, y)
    assert torch.equal(value > 0, margin(z, y) > 0)
    assert value.abs().max() <= 1


def test_of_two_classes_it_is_a_hyperbolic_tangent() -> None:
    z = torch.linspace(-30, 30, 61, dtype=torch.float64)
    pairs, y = torch.stack([torch.zeros_like(z), z], 1), torch.zeros(61, dtype=torch.int64)
    assert torch.allclose(probability_margin(pairs, y), torch.tanh(z / 2), rtol=0, atol=1e-14)


def slope(z: Tensor, y: Tensor) -> Tensor:
    """The derivative by the softmax's own: d p_i / d z_j = p_i (1[i = j] - p_j), in exact terms of the p_j."""
    p = torch.softmax(z, 1)
    k = z.scatter(1, y[:, None], -math.inf).argmax(1)
    at = torch.arange(len(z))
    p_k, p_y = p[at, k][:, None], p[at, y][:, None]
    grad = -p * (p_k - p_y)
    # Where j is k or y the factor 1 - p_j is the sum of the other probabilities: no cancellation.
    rest = [
        [math.fsum(v for i, v in enumerate(row) if i != j) for j in range(len(row))] for row in p.tolist()
    ]
    rest_of = torch.tensor(rest, dtype=torch.float64)
    grad[at, k] = (p_k * (rest_of[at, k][:, None] + p_y)).squeeze(1)
    grad[at, y] = (-p_y * (rest_of[at, y][:, None] + p_k)).squeeze(1)
    return grad


@pytest.mark.parametrize("gap", [0.0, 1.0, 20.0, 45.0, 300.0, 600.0])
def test_its_gradient_is_right_however_sure_the_network_is(gap: float) -> None:
    z = torch.tensor([[gap, 0.0, -1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0])
    (grad,) = torch.autograd.grad(probability_margin(z, y).sum(), z)
    expected = slope(z.detach(), y)
    assert (grad != 0).all()
    assert torch.allclose(grad, expected, rtol=1e-9, atol=0)
    p = torch.softmax(z, 1)
    (lost,) = torch.autograd.grad((p[:, 3] - p[:, 0]).sum(), z)
    assert (lost[0, 0] == 0) == (gap > 40)  # what the textbook's form comes to


def test_iterated_attacks_ascend_it() -> None:
    assert LOSSES["pma"] is probability_margin
    net = linear_net(4, 16).double()
    x = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y, threat = net(x).argmax(1), Threat(eps=0.05)
    before = probability_margin(net(x), y)
    for attack in (IFGSM(steps=5, loss="pma"), APGD(steps=10, loss="pma")):
        after = probability_margin(net(attack(net, x, y, threat, streams(8))), y)
        assert (after > before).all()

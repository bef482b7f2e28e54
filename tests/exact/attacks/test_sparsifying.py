"""Modules that sparsify are found by what they do; secant slopes in closed form; the values stay the network's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import SampleRandom
from attacks.base import RandomModule, SeesCopies, is_stochastic
from attacks.sparsifying import OtherBackward, innermost, new_ties, softened, sparsifiers
from defenses.robust.broken import KWinners, Staircase
from defenses.robust.mean_sparse import MeanSparsified

IMAGES = 6


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class InPlace(nn.Module):
    """Winners that overwrite what they got."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(x.abs() > 0.1)


class Outer(nn.Module):
    """Holds one that sparsifies."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hard, self.last = nn.Tanh(), nn.Hardshrink(0.1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.hard(self.first(x)))
        return out


class Noise(RandomModule):
    """A dropout of its own: random, and left alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.draw(x) > 0)


def mean_sparse() -> MeanSparsified:
    module = MeanSparsified(0.5)
    module.mean, module.std = torch.linspace(-0.3, 0.3, 4), torch.full((4,), 0.5)
    return module


JUMP: dict[str, Callable[[], nn.Module]] = {
    "mean_sparse": mean_sparse,
    "k_wta": lambda: KWinners(0.2),
    "staircase": lambda: Staircase(4.0),
    "hardshrink": lambda: nn.Hardshrink(0.1),
    "own": lambda: Of(lambda x: torch.where(x > 0.1, x, 0)),
    "in_place": InPlace,
}
HONEST: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu_in_place": lambda: nn.ReLU(inplace=True),
    "own_relu": lambda: Of(lambda x: x.clamp_min(0)),
    "relu6": lambda: Of(lambda x: x.clamp(0, 6)),
    "softshrink": lambda: Of(lambda x: F.softshrink(x, 0.1)),
    "gelu": lambda: Of(F.gelu),
    "hardtanh": lambda: Of(lambda x: x.clamp(-0.2, 0.2)),
    "normalised": lambda: Of(lambda x: (x - x.mean((1, 2, 3), keepdim=True)).clamp_min(0)),
    "pooled": lambda: nn.MaxPool2d(3, 1, 1),
    "constant": lambda: Of(lambda x: 0 * x + 1),
    "noise": Noise,
}


def around(module: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, last = nn.Conv2d(1, 4, 3), nn.Linear(144, 5)
    return nn.Sequential(first, module, nn.Flatten(), last).eval()


def images(count: int = IMAGES) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def streams(indices: list[int]) -> SampleRandom:
    return SampleRandom.for_images(0, "a", indices)


def found(model: nn.Module, x: Tensor) -> list[frozenset[str]]:
    return sparsifiers(model, x, streams(list(range(len(x)))))


@pytest.mark.parametrize("name", JUMP)
def test_modules_that_sparsify_are_found_in_every_image(name: str) -> None:
    assert found(around(JUMP[name]()), images()) == [frozenset({"1"})] * IMAGES


@pytest.mark.parametrize("name", HONEST)
def test_zeros_that_come_continuously_and_no_zeros_are_honest(name: str) -> None:
    assert found(around(HONEST[name]()), images()) == [frozenset()] * IMAGES


def test_a_known_name_with_a_forward_of_its_own_is_looked_at() -> None:
    relu = nn.ReLU()
    relu.forward = lambda x: torch.where(x > 0.1, x, 0)  # type: ignore[method-assign, assignment]
    assert found(around(relu), images()) == [frozenset({"1"})] * IMAGES


def test_the_innermost_module_counts() -> None:
    assert found(around(Outer()), images()) == [frozenset({"1.hard"})] * IMAGES
    assert innermost(["1", "1.hard", "10", "2"]) == {"1.hard", "10", "2"}


@pytest.mark.parametrize("name", ["mean_sparse", "k_wta"])
def test_what_is_said_of_an_image_does_not_depend_on_the_others(name: str) -> None:
    model, x = around(JUMP[name]()), images(4)
    x[2] = 0.5  # a constant image
    together = found(model, x)
    assert together == [found(model, x[i : i + 1])[0] for i in range(4)]


def test_nothing_is_left_behind_in_the_network() -> None:
    model, x = around(mean_sparse()), images()
    before = copy.deepcopy(model.state_dict())
    found(model, x)
    point = x.clone().requires_grad_(True)
    OtherBackward(model, frozenset({"1"}), "softened")(point).sum().backward()

    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    broken = nn.Sequential(model[:2], Breaks())
    for other in (lambda: found(broken, x), lambda: OtherBackward(broken, frozenset({"0.1"}), "identity")(x)):
        with pytest.raises(RuntimeError, match="no"):
            other()
    modules = [*model.modules(), *broken.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_new_ties_are_those_that_the_input_has_not() -> None:
    given = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 2.0], [0.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    out = torch.tensor([[1.0, 2.0, 0.0], [5.0, 5.0, 6.0], [0.0, 3.0, 4.0], [2.0, 2.0, 4.0]])
    assert new_ties(given, out).tolist() == [True, False, False, True]


# Slopes -------------------------------------------------------------------------------------------------


def spread(given: Tensor) -> Tensor:
    """The standard deviation of an image's units, by numpy's rule."""
    return given.new_tensor([float(row.flatten().numpy().std()) for row in given])


def test_the_secant_slope_of_a_relu_is_the_share_of_the_interval_above_zero() -> None:
    given = torch.randn(3, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    h = 0.3 * spread(given)[:, None]
    expected = ((given + h).clamp_min(0) - (given - h).clamp_min(0)) / (2 * h)
    got = softened(torch.relu, given, 0.3)
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    assert got.min() == 0
    assert abs(got.max().item() - 1) < 1e-12
    assert ((got > 0.01) & (got < 0.99)).any()


def test_a_jump_counts_with_its_height_and_a_band_inside_the_interval_vanishes() -> None:
    given = torch.tensor([[-1.0, -0.25, 0.05, 0.3, 1.0, 2.0]], dtype=torch.float64)
    h = 0.2 * spread(given)[0].item()
    part = nn.Hardshrink(0.1)
    got = softened(part, given, 0.2)
    step = [(v if abs(v) > 0.1 else 0.0) for a in given[0].tolist() for v in (a - h, a + h)]
    expected = [(step[2 * i + 1] - step[2 * i]) / (2 * h) for i in range(6)]
    assert torch.allclose(got[0], given.new_tensor(expected), rtol=1e-9)
    assert math.isclose(got[0, 2], 1.0)  # inside the band, whose own slope is 0
    point = given[0].clone().requires_grad_(True)
    (own,) = torch.autograd.grad(part(point).sum(), point)
    assert own[2] == 0


def test_units_that_compete_get_a_slope_that_depends_on_the_pattern() -> None:
    given = torch.randn(2, 50, generator=torch.Generator().manual_seed(3))
    part = KWinners(0.2)
    first, second = softened(part, given, 0.3), softened(part, given, 0.3, first=2)
    assert not torch.equal(first, second)
    assert torch.equal(first, softened(part, given, 0.3))
    far = given < given.topk(10).values[:, -1:] - 0.7 * spread(given)[:, None]
    assert (first[far] == 0).all()


@pytest.mark.parametrize("slope", ["identity", "softened"])
@pytest.mark.parametrize("name", JUMP)
def test_values_stay_and_gradients_come_another_way(name: str, slope: str) -> None:
    model, x = around(JUMP[name]()), images()
    other = OtherBackward(model, frozenset({"1"}), slope)  # type: ignore[arg-type]
    point = x.clone().requires_grad_(True)
    out = other(point)
    assert torch.equal(out, model(x))
    (grad,) = torch.autograd.grad(out[:, 0].sum(), point)
    # The chain rule written out: last layer's row, times the slope, back through the first convolution.
    before = model[0](x).detach()
    factor = softened(lambda t: model[1](t.clone()), before, 0.1, 2) if slope == "softened" else 1
    last, first = model[3].weight, model[0].weight
    assert isinstance(last, Tensor)
    assert isinstance(first, Tensor)
    row = last[0].view(1, 4, 6, 6) * factor
    expected = F.conv_transpose2d(row.expand(IMAGES, -1, -1, -1), first)
    assert torch.allclose(grad, expected, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


def test_a_random_network_stays_one_and_its_slopes_take_the_same_patterns() -> None:
    model = nn.Sequential(nn.Flatten(), KWinners(0.2), Noise())
    other = OtherBackward(model, frozenset({"1"}), "softened")
    assert is_stochastic(other)
    x = images().requires_grad_(True)
    grads = []
    for _ in range(2):
        torch.manual_seed(4)
        grads.append(torch.autograd.grad(other(x).sum(), x)[0])
    assert torch.equal(*grads)


@pytest.mark.slow
def test_a_compiled_network_is_asked_as_it_is_written() -> None:
    model, x = around(mean_sparse()), images()
    compiled = SeesCopies(torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    compiled(x)
    names = found(compiled, x)[0]
    assert {n.rpartition(".")[2] for n in names} == {"1"}
    grads: list[Tensor] = []
    for net, where in ((compiled, names), (SeesCopies(model), frozenset({"model.1"}))):
        point = x.clone().requires_grad_(True)
        grads += torch.autograd.grad(OtherBackward(net, where, "identity")(point)[:, 0].sum(), point)
    assert torch.equal(*grads)


def test_an_unknown_slope_is_refused() -> None:
    with pytest.raises(ValueError, match="slope: expected identity or softened, got 'steep'"):
        OtherBackward(around(nn.ReLU()), frozenset(), "steep")  # type: ignore[arg-type]

"""Sparse initialisation: how much is kept, at what variance, in which groups."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.base import Threat
from defenses import SparseInit, Step
from defenses.sparse.sparse_init import sparse_init

N_LINEAR, N_CONV = (400, 300), (64, 48, 5, 5)


def generator(seed: int = 11) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(48, 64, 5), nn.BatchNorm2d(64), nn.Linear(300, 400)


def network() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def near(count: int, n: int, share: float) -> bool:
    """Within five standard deviations of a binomial's mean."""
    return abs(count - n * share) < 5 * math.sqrt(n * share * (1 - share))


@pytest.mark.parametrize("density", [0.01, 0.2, 0.7])
def test_share_and_variance_of_what_is_kept(density: float) -> None:
    model, before = network(), network()
    assert sparse_init(model, density, generator=generator()) is model
    for w, old in ((model.conv.weight, before.conv.weight), (model.out.weight, before.out.weight)):
        on = w != 0
        assert near(int(on.sum()), w.numel(), density)
        assert torch.allclose(w[on], old[on] / density**0.5)
        n = w.numel()
        # Var(M W / sqrt r) = Var W; the estimate's own error for uniform W: E W^4 = 9/5 (E W^2)^2.
        error = math.sqrt((9 / 5 / density - 1) / n)
        assert abs(float(w.detach().square().mean() / old.detach().square().mean()) - 1) < 5 * error
    for name in ("conv.bias", "out.bias", "norm.weight", "norm.bias"):
        assert torch.equal(model.get_parameter(name), before.get_parameter(name))


@pytest.mark.parametrize(
    ("linear", "conv", "shapes"),
    [
        ("row", "kernel", ((400, 1), (64, 48, 1, 1))),
        ("channel", "channel", ((1, 300), (1, 48, 1, 1))),
        ("weight", "row", (N_LINEAR, (64, 1, 1, 1))),
    ],
)
def test_groups_are_kept_whole_or_not_at_all(linear: Any, conv: Any, shapes: Any) -> None:
    density = 0.3
    model, before = network(), network()
    sparse_init(model, density, generator=generator(), linear=linear, conv=conv)
    for layer, old, shape in zip((model.out, model.conv), (before.out, before.conv), shapes, strict=True):
        on = layer.weight != 0
        dims = [d for d, n in enumerate(shape) if n == 1]
        group = on.all(dim=dims, keepdim=True) if dims else on
        assert torch.equal(group.expand_as(on), on)
        assert tuple(group.shape) == shape
        assert near(int(group.sum()), group.numel(), density)
        assert torch.allclose(layer.weight[on], old.weight[on] / density**0.5)


def test_masks_of_two_layers_are_independent() -> None:
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300))
    sparse_init(model, 0.5, generator=generator())
    a, b = (layer.weight != 0 for layer in model)
    assert near(int((a == b).sum()), a.numel(), 0.5)


def test_draws_come_from_the_generator_and_from_nowhere_else() -> None:
    state = torch.get_rng_state()

    def made(seed: int) -> dict[str, Tensor]:
        settings: dict[str, Any] = {"bias": "positive", "variance": "he", "conv": "kernel"}
        return sparse_init(network(), 0.5, generator=generator(seed), **settings).state_dict()

    one, same, other = made(1), made(1), made(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert [k for k in one if not torch.equal(one[k], other[k])] == [
        "conv.weight",
        "conv.bias",
        "out.weight",
        "out.bias",
    ]


def test_positive_biases() -> None:
    model = network()
    sparse_init(model, 0.5, generator=generator(), bias="positive")
    for layer, inputs in ((model.conv, 48 * 25), (model.out, 300)):
        b = layer.bias * math.sqrt(inputs)
        assert 0 < b.min() < 0.2
        assert 0.8 < b.max() <= 1
        assert len(b.unique()) > 0.9 * len(b)
    assert (model.norm.bias == 0).all()


def test_positive_biases_are_scaled_and_nothing_else_is() -> None:
    """Ten times as large, as the authors' notebook has them for the convnet at 1 %: 1 / sqrt(r)."""
    plain, scaled = network(), network()
    sparse_init(plain, 0.5, generator=generator(), bias="positive")
    sparse_init(scaled, 0.5, generator=generator(), bias="positive", bias_scale=10.0)
    for name, p in plain.named_parameters():
        factor = 10 if name in ("conv.bias", "out.bias") else 1
        torch.testing.assert_close(scaled.get_parameter(name), factor * p)


def test_the_size_of_the_start_is_its_scale() -> None:
    """sqrt(r) undoes 1 / sqrt(r): the weights that are kept are as large as they were drawn; biases stay."""
    drawn, small = network(), network()
    sparse_init(small, 0.25, generator=generator(), scale=0.5)
    for name, p in small.named_parameters():
        kept = p != 0
        torch.testing.assert_close(p[kept], drawn.get_parameter(name)[kept])
    assert 0.2 < float((small.out.weight != 0).float().mean()) < 0.3


def test_neurons_without_weights_learn_only_with_positive_biases() -> None:
    """Zero biases before a ReLU let no gradient through to filters that start at zero (section 4.1)."""
    x = torch.rand(16, 3, 6, 6, generator=generator(1))

    def still_zero(bias: Any) -> list[bool]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
            nn.init.zeros_(model[0].bias)
        sparse_init(model, 0.3, generator=generator(3), conv="row", linear=None, bias=bias)
        before = model[0].weight.detach().flatten(1).count_nonzero(1) == 0
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().sum(1).mean().backward()
            optimizer.step()
        after = model[0].weight.detach().flatten(1).count_nonzero(1) == 0
        return after[before].tolist()

    assert all(still_zero("keep"))
    assert len(still_zero("keep")) >= 3
    assert not any(still_zero("positive"))


@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize(("variance", "conv_fan", "linear_fan"), [("he", 1200, 300), ("glorot", 2800, 700)])
def test_variance_of_he_and_glorot(density: float, variance: Any, conv_fan: int, linear_fan: int) -> None:
    """2 / n and 2 / (n + m): of the convolution n = 48 * 25 and m = 64 * 25."""
    model = network()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(7.0)
    sparse_init(model, density, generator=generator(), variance=variance)
    for w, fan in ((model.conv.weight, conv_fan), (model.out.weight, linear_fan)):
        error = math.sqrt((3 / density - 1) / w.numel())
        assert abs(float(w.detach().square().mean()) * fan / 2 - 1) < 5 * error
        assert abs(float(w.detach().mean())) < 5 * math.sqrt(2 / fan / w.numel())
    assert (model.out.bias == 7).all()


def test_variance_of_glorot_is_torchs() -> None:
    model, theirs = network(), network()
    sparse_init(model, 1.0, generator=generator(), variance="glorot")
    for ours, layer in ((model.conv, theirs.conv), (model.out, theirs.out)):
        nn.init.xavier_normal_(layer.weight, generator=generator(5))
        assert (ours.weight.std() / layer.weight.std()).item() == pytest.approx(1, abs=0.02)


def test_layers_left_alone_and_shared_weights() -> None:
    model, before = network(), network()
    sparse_init(model, 0.5, generator=generator(), conv=None, bias="positive")
    assert torch.equal(model.conv.weight, before.conv.weight)
    assert torch.equal(model.conv.bias, before.conv.bias)
    assert (model.out.weight == 0).any()
    tied = nn.Sequential(nn.Linear(200, 200), nn.Linear(200, 200))
    tied[1].weight = tied[0].weight
    sparse_init(tied, 0.5, generator=generator())
    assert near(int(tied[0].weight.count_nonzero()), 40000, 0.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"density": 0.0},
        {"density": 1.5},
        {"linear": "kernel"},
        {"conv": "layer"},
        {"bias": "none"},
        {"variance": "xavier"},
        {"bias_scale": 0.0},
        {"bias_scale": math.inf},
        {"scale": 0.0},
        {"scale": math.nan},
    ],
)
def test_bad_arguments_are_refused_by_name(settings: dict[str, Any]) -> None:
    model = network()
    with pytest.raises(ValueError, match=rf"^{next(iter(settings))}: expected .*, got "):
        sparse_init(model, **settings)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network().parameters(), strict=True))


def step(model: nn.Module, seed: int) -> Step:
    return Step(model, None, Threat(eps=0.1), generator(seed), lambda *_: torch.empty(0))


def test_defense_acts_once_and_with_its_settings() -> None:
    settings: dict[str, Any] = {
        "density": 0.3,
        "linear": "row",
        "conv": "kernel",
        "bias": "positive",
        "bias_scale": 3.0,
        "scale": 0.5,
    }
    defense, model = SparseInit(**settings), network()
    defense.begin(step(model, 4))
    expected = sparse_init(network(), generator=generator(4), **settings)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    trained = copy.deepcopy(model.state_dict())
    resumed = SparseInit(**settings)
    resumed.load_state_dict(defense.state_dict())
    for d in (defense, resumed):  # a second stage, in the same sitting and in a later one
        d.begin(step(model, 5))
        assert all(torch.equal(trained[k], v) for k, v in model.state_dict().items())

"""Rounding to few bits: the formulas, what is left alone, and a whole row with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.base import Threat
from defenses import EnResNet, Quantise, Step
from defenses.robust.quantise import RoundedLayer, Rounding, rounded_weight
from robustbench_sparse.benchmark import run_benchmark
from robustbench_sparse.engine.fast import FastNetwork
from robustbench_sparse.models import MODELS
from robustbench_sparse.runs.folder import RunFolder
from tests.helpers.small import small


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def deployed(defense: Quantise, make: Any, images: Tensor) -> tuple[nn.Module, nn.Module]:
    """The network in training, and what is made of it on these images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = defense.wrap(make)()
    defense.check(model)
    step = Step(model, None, Threat(), torch.Generator(), lambda split, count, generator: images)
    defense.begin(step)
    return model.eval(), defense.deploy(model).eval()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3, 3)])
def test_a_weight_has_a_grid_for_each_output_and_keeps_its_zeros(bits: int, shape: tuple[int, ...]) -> None:
    w = draws(*shape) * torch.tensor([1.0, 100, 0.01, 0, 3])[: shape[0]].view(-1, *[1] * (len(shape) - 1))
    w.view(-1)[::4] = 0
    most = 2 ** (bits - 1) - 1
    got = rounded_weight(w, bits)
    for row, out in zip(w, got, strict=True):
        if not row.any():
            assert not out.any()
            continue
        scale = row.abs().max() / most
        expected = torch.round(row / scale) * scale
        assert torch.allclose(out, expected, atol=1e-6 * float(row.abs().max()))
        assert float(out.abs().max()) == pytest.approx(float(row.abs().max()))
        assert len(out.unique()) <= 2 * most + 1
    assert not got[w == 0].any()
    assert torch.allclose(rounded_weight(got, bits), got, rtol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "bits"), [(0.0, 1.0, 8), (-1.0, 3.0, 8), (0.5, 2.0, 4), (-3.0, -1.0, 2), (0.0, 0.0, 8)]
)
def test_an_activation_is_one_of_evenly_spaced_values_with_zero_among_them(
    low: float, high: float, bits: int
) -> None:
    rounding = Rounding(bits)
    x = torch.linspace(-4, 4, 801).requires_grad_(True)
    assert rounding(x) is x
    rounding.calibrate(torch.tensor(low), torch.tensor(high))
    bottom, top = min(low, 0.0), max(high, 0.0)
    scale = (top - bottom) / (2**bits - 1) or 1.0
    zero = round(-bottom / scale)
    whole = torch.round(x.detach().double() / scale).add(zero).clamp(0, 2**bits - 1)
    out = rounding(x)
    # Halves may fall on either side of float32's rounding.
    off = (out.detach() - (whole - zero) * scale).abs()
    assert float((off > 1e-5).double().mean()) < 0.02
    assert float(rounding(torch.zeros(1))) == 0
    (slope,) = torch.autograd.grad(out.sum(), x)
    inside = (x > -(zero + 0.45) * scale) & (x < (2**bits - 1 - zero + 0.45) * scale)
    outside = (x < -(zero + 0.55) * scale) | (x > (2**bits - 1 - zero + 0.55) * scale)
    assert torch.equal(slope[inside], torch.ones_like(slope[inside]))
    assert not slope[outside].any()


def test_pixels_of_eight_bits_stay_as_they_are() -> None:
    rounding, pixels = Rounding(8), torch.arange(256) / 255
    rounding.calibrate(pixels.min(), pixels.max())
    assert torch.allclose(rounding(pixels), pixels, atol=1e-7)


def test_a_network_is_calibrated_before_any_rounding_and_the_trained_one_is_left_alone() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 3))

    images = torch.rand(50, 1, 3, 3, generator=torch.Generator().manual_seed(1)) * 0.8
    model, small_net = deployed(Quantise(bits=3, images=50), make, images)
    first, second = (m for m in model.modules() if isinstance(m, RoundedLayer))
    a, b = first.layer, second.layer
    assert isinstance(a, nn.Linear)
    assert isinstance(b, nn.Linear)
    hidden = a(images.flatten(1)).relu()
    s, t = float(images.max()) / 7, float(hidden.max().detach()) / 7
    x = torch.rand(20, 1, 3, 3, generator=torch.Generator().manual_seed(2)) * 0.8
    read = torch.round(x.flatten(1) / s).clamp(0, 7) * s
    between = nn.functional.linear(read, rounded_weight(a.weight, 3), a.bias).relu()
    read = torch.round(between / t).clamp(0, 7) * t
    expected = nn.functional.linear(read, rounded_weight(b.weight, 3), b.bias)
    with torch.no_grad():
        assert torch.allclose(small_net(x), expected, atol=1e-5)
        assert torch.equal(model(x), nn.Sequential(nn.Flatten(), a, nn.ReLU(), b)(x))
    assert torch.equal(model[1].layer.weight, a.weight)  # type: ignore[union-attr,index]


def test_batch_norm_may_be_folded_before_or_after_rounding_its_weights() -> None:
    """A grid for each output makes scaling outputs and rounding one and the same in either order."""
    w, scale = draws(6, 4, 3, 3), draws(6, seed=1).view(-1, 1, 1, 1)
    assert torch.allclose(rounded_weight(w * scale, 8), rounded_weight(w, 8) * scale, atol=1e-6)


def test_the_quick_copy_that_attacks_climb_on_is_rounded_alike() -> None:
    def make() -> nn.Module:
        return MODELS["preact_resnet"](depth=8, widths=(4, 4, 4)).build(1, 8, 10)

    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    model, small_net = deployed(Quantise(bits=8, images=32), make, images)
    fast = FastNetwork(small_net, precision="fp32")
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    out, exact = fast(x), small_net(x)
    # Where float32 sums fall between two whole numbers, the copy's may fall on the other side.
    assert float(((out - exact).norm() / exact.norm()).detach()) < 0.02
    assert float(((exact - model(x)).norm() / exact.norm()).detach()) > 1e-4
    (slope,) = torch.autograd.grad(exact.sum(), x)
    assert bool((slope != 0).flatten(1).any(1).all())


def test_a_network_without_such_layers_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^bits: expected a network of convolutions and linear layers, got Flatten"
    ):
        Quantise(bits=8).check(nn.Flatten())


@pytest.mark.parametrize("order", [1, -1])
def test_every_member_of_an_ensemble_is_rounded(order: int) -> None:
    def make() -> nn.Module:
        return MODELS["preact_resnet"](depth=8, widths=(4, 4, 4)).build(1, 8, 10)

    defenses = [EnResNet(members=2, noise=0.1), Quantise(bits=8)][::order]
    for defense in defenses:
        make = defense.wrap(make)
    layers = [m for m in make().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    rounded = [m for m in make().modules() if isinstance(m, RoundedLayer)]
    assert len(rounded) == len(layers) == 2 * (1 + 6 + 2 + 1)


def test_a_row_is_judged_as_the_network_in_its_file(tmp_path: Path) -> None:
    raw = small(model={"name": "mlp", "hidden": [16]}, threads=1, evaluation={"limit": 40})
    raw["train"] |= {"epochs": 3, "augment": {}}
    raw["attacks"] = {"pgd": {"name": "pgd", "steps": 3}}
    prune = {"name": "magnitude_prune", "sparsity": 50}
    raw["runs"] = {"small": {"defenses": [prune, {"name": "quantise", "bits": 4, "images": 64}]}}
    table = run_benchmark(raw, out=tmp_path, device="cpu").set_index("run")
    assert table.loc["small", "status"] == "ok"
    assert table.loc["small", "worst"] <= table.loc["small", "clean"]
    assert table.loc["small", "weight_sparsity"] >= 50
    (path,) = (tmp_path / "small" / "runs").iterdir()
    network = RunFolder.at(path).network(1, 8, 10)
    layers = [m for m in network.modules() if isinstance(m, RoundedLayer)]
    assert len(layers) == 2
    for each in layers:
        assert each.rounding.scale.shape == (1,)
        weight = each.layer.weight
        assert isinstance(weight, Tensor)
        assert all(len(row.unique()) <= 15 for row in weight)
        assert torch.allclose(rounded_weight(weight, 4), weight, rtol=1e-6)

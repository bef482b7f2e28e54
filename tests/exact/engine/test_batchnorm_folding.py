"""Folding batch-norm changes rounding and nothing else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses import EnResNet
from robustbench_sparse.engine.batchnorm_folding import Affine, Stem, fold, pairs_of, stems_of
from robustbench_sparse.engine.fast import FastNetwork
from robustbench_sparse.models import MODELS


def used(network: nn.Module, seed: int = 0) -> nn.Module:
    """Batch-norm layers get statistics and scales far from 0 and 1, some of them negative."""
    draws = torch.Generator().manual_seed(seed)
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d):
            assert m.running_mean is not None
            assert m.running_var is not None
            m.running_mean.normal_(generator=draws)
            m.running_var.uniform_(0.2, 3, generator=draws)
            nn.init.normal_(m.weight, generator=draws)
            nn.init.normal_(m.bias, generator=draws)
    return network.eval()


def gradient(network: nn.Module, x: Tensor) -> Tensor:
    point = x.clone().requires_grad_(True)
    out = network(point)
    return torch.autograd.grad(F.cross_entropy(out, torch.zeros(len(x), dtype=torch.long)), point)[0]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("key", [key for key, spec in MODELS.items() if "classify" in spec.tasks])
def test_logits_and_gradients_stay_what_they_are(key: str, affine: bool) -> None:
    torch.manual_seed(0)
    model, x = used(MODELS[key]().build(3, 32, 10)).double(), torch.rand(4, 3, 32, 32).double()
    twin = used(MODELS[key]().build(3, 32, 10), seed=1).double().requires_grad_(False)
    fold(twin, pairs_of(model), affine)(model)
    norms = [m for m in twin.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert not (affine and norms), "with affine, no batch-norm is left"
    expected = model(x)
    assert expected.std() > 1e-3
    assert (twin(x) - expected).abs().max() < 1e-6 * expected.abs().max()
    want = gradient(model, x)
    assert (gradient(twin, x) - want).abs().max() < 1e-6 * want.abs().max()


@pytest.mark.parametrize(
    ("key", "pairs"), [("preact_resnet", 9), ("resnet18", 20), ("vgg16", 13), ("mlp", 0)]
)
def test_every_norm_that_follows_a_convolution_is_found(key: str, pairs: int) -> None:
    assert len(pairs_of(MODELS[key]().build(3, 32, 10).eval())) == pairs


class _Shared(nn.Module):
    """conv's output goes to bn and elsewhere; twice runs two times; plain could be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.twice, self.bn2 = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.plain, self.bn3 = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv(x)
        b = self.bn(a) + a
        b = self.bn2(self.twice(self.twice(b)))
        out: Tensor = self.bn3(self.plain(b)).mean((2, 3))
        return out


def test_only_what_is_safe_is_folded() -> None:
    torch.manual_seed(0)
    net = used(_Shared())
    assert pairs_of(net) == {"plain": "bn3"}
    hooked = used(_Shared())
    hooked.plain.register_forward_hook(lambda *_: None)
    assert pairs_of(hooked) == {}
    without = used(_Shared())
    without.bn3 = nn.BatchNorm2d(2, track_running_stats=False).eval()
    assert pairs_of(without) == {}, "the batch's own statistics are no affine map"
    x = torch.rand(3, 1, 5, 5).double()
    for source in (net.double(), hooked.double(), without.double()):
        assert torch.allclose(FastNetwork(source, precision="fp32")(x), source(x), atol=1e-9)


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(x)).mean((2, 3))
        return out if out.sum() > 0 else -out


def test_a_forward_pass_that_cannot_be_traced_is_left_alone() -> None:
    torch.manual_seed(0)
    net, x = used(_Branches()), torch.rand(3, 1, 5, 5)
    assert pairs_of(net) == {}
    assert torch.allclose(FastNetwork(net, precision="fp32")(x), net(x), atol=1e-6)


def test_refresh_takes_over_what_training_changed() -> None:
    torch.manual_seed(0)
    wrapped = EnResNet(members=2, noise=0.0).wrap(lambda: MODELS["preact_resnet"](depth=8).build(3, 8, 5))
    net, x = used(wrapped()), torch.rand(6, 3, 8, 8)
    for affine in (False, True):
        twin = used(wrapped(), seed=3).requires_grad_(False)
        refresh = fold(twin, pairs_of(net), affine)
        for seed in range(2):
            with torch.no_grad():
                for p in net.parameters():
                    p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
            used(net, seed=10 + seed)
            assert not torch.allclose(twin(x), net(x), atol=1e-2)
            refresh(net)
            assert torch.allclose(twin(x), net(x), rtol=1e-3, atol=1e-4)


def test_affine_keeps_the_type_and_any_number_of_dimensions() -> None:
    layer = Affine(3, torch.empty(0))
    layer.scale.copy_(torch.tensor([1.0, 2.0, 3.0]))
    layer.shift.copy_(torch.tensor([0.0, 0.0, 1.0]))
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 4)):
        out = layer(torch.ones(shape, dtype=torch.bfloat16))
        assert out.dtype == torch.bfloat16
        assert out.transpose(0, 1).flatten(1).unique(dim=1)[:, 0].tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("key", "stems"),
    [("preact_resnet", ["conv"]), ("vgg16", 1), ("mlp", 1), ("lenet", 1), ("resnet18", 1), ("convnet", 1)],
)
def test_the_layers_that_see_the_image_are_found(key: str, stems: list[str] | int) -> None:
    found = stems_of(MODELS[key](mean=(0.5,), std=(0.2,)).build(3, 32, 10))
    assert len(found) == 1
    if isinstance(stems, list):
        assert found == [f"network.{name}" for name in stems]
    three = (
        EnResNet(members=3).wrap(lambda: MODELS[key]().build(3, 32, 10)) if key == "preact_resnet" else None
    )
    assert three is None or stems_of(three()) == [f"members.{i}.conv" for i in range(3)]


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("compile", [False, True])
def test_a_stem_sees_more_of_the_image_than_bfloat16_does(kind: str, compile: bool) -> None:
    torch.manual_seed(0)
    layer: nn.Module = nn.Conv2d(3, 8, 3, padding=1) if kind == "conv" else nn.Linear(48, 8)
    layer.weight.data = layer.weight.data.bfloat16().float()  # so that only the image is rounded
    x = torch.rand(16, 3, 8, 8) if kind == "conv" else torch.rand(16, 48)
    stem = torch.compile(Stem(layer)) if compile else Stem(layer)
    exact = layer(x)

    def run(module: nn.Module) -> tuple[Tensor, Tensor]:
        point = x.clone().requires_grad_(True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = module(point)
        return out.float(), torch.autograd.grad(out.float().square().sum(), point)[0]

    (plain, plain_grad), (split, split_grad) = run(layer), run(stem)
    # What is left is the rounding of the output, to 8 bits.
    assert (split - exact).abs().max() < 1.01 * 2**-9 * exact.abs().max().clamp_min(1) + 2**-9
    assert (split - exact).square().mean() < 0.8 * (plain - exact).square().mean()
    assert torch.nn.functional.cosine_similarity(plain_grad.flatten(), split_grad.flatten(), dim=0) > 0.999
    with torch.autocast("cpu", enabled=False):
        assert torch.equal(Stem(layer)(x), exact), "without autocast nothing is rounded"
        double = Stem(layer.double())(x.double())
    assert double.dtype == torch.float64

"""Networks against closed forms: parameter counts by hand, blocks against their formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from defenses.base import conv_weights, prunable
from robustbench_sparse.models.convnet import ConvNet
from robustbench_sparse.models.lenet import LeNet
from robustbench_sparse.models.mlp import MLP
from robustbench_sparse.models.preact_resnet import PreActBlock, PreActResNet
from robustbench_sparse.models.resnet18 import BasicBlock, ResNet18
from robustbench_sparse.models.vgg16 import VGG16


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def preact_resnet_parameters(n: int, channels: int, classes: int, widths: tuple[int, ...]) -> int:
    total, before = 9 * channels * widths[0], widths[0]
    for width in widths:
        total += 9 * before * width + 9 * width * width + 2 * before + 2 * width
        total += 0 if width == before else before * width  # the projection
        total += (n - 1) * (2 * 9 * width * width + 4 * width)
        before = width
    return total + 2 * before + before * classes + classes


def test_mlp_has_the_layers_of_the_papers() -> None:
    model = MLP().build(1, 28, 10)
    assert parameters(model) == 784 * 200 + 200 + 200 * 80 + 80 + 80 * 10 + 10 == 173_890
    assert [type(layer) for layer in model.children()] == [
        *(nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear)
    ]
    assert sum(w.numel() for w in prunable(model).values()) == 784 * 200 + 200 * 80 + 80 * 10


def test_mlp_equals_its_formula() -> None:
    model = MLP(hidden=(5,), activation="tanh", last_activation="sigmoid").build(2, 8, 3)
    first, second = (m for m in model.modules() if isinstance(m, nn.Linear))
    x = torch.rand(4, 2, 8, 8)
    expected = torch.sigmoid(
        torch.tanh(x.flatten(1) @ first.weight.T + first.bias) @ second.weight.T + second.bias
    )
    torch.testing.assert_close(model(x), expected)


def test_mlp_with_batch_norm_equals_its_formula() -> None:
    model = MLP(hidden=(5,), batch_norm=True).build(2, 8, 3)
    assert [type(layer) for layer in model.children()] == [
        *(nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear)
    ]
    first, second = (m for m in model.modules() if isinstance(m, nn.Linear))
    x = torch.rand(4, 2, 8, 8)
    hidden = x.flatten(1) @ first.weight.T + first.bias
    normed = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(model(x), normed.relu() @ second.weight.T + second.bias)
    assert parameters(model) == parameters(MLP(hidden=(5,)).build(2, 8, 3)) + 2 * 5


def test_mlp_without_hidden_layers_is_linear() -> None:
    model = MLP(hidden=()).build(1, 8, 10)
    x = torch.rand(3, 1, 8, 8)
    mixed = model((x[:1] + x[1:2]) / 2)
    torch.testing.assert_close(mixed, (model(x[:1]) + model(x[1:2])) / 2)
    assert parameters(model) == 650


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"hidden": (10, 0)}, "hidden"),
        ({"activation": "none"}, "activation"),
        ({"last_activation": "softmax"}, "last_activation"),
    ],
)
def test_mlp_rejects_settings(settings: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        MLP(**settings)


def test_lenet_is_the_classical_one_on_28_and_on_32() -> None:
    small, large = LeNet().build(1, 28, 10), LeNet().build(1, 32, 10)
    expected = (25 + 1) * 6 + (25 * 6 + 1) * 16 + (400 + 1) * 120 + (120 + 1) * 84 + (84 + 1) * 10
    assert parameters(small) == parameters(large) == expected == 61_706
    assert sum(w.shape[1] for w in conv_weights(small).values()) == 7  # the channels of Dinh's table 4.1
    large.load_state_dict(small.state_dict())
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(small(x), large(F.pad(x, (2, 2, 2, 2))))


def test_convnet_has_1024_features_on_28() -> None:
    model = ConvNet().build(1, 28, 10)
    expected = (25 + 1) * 64 + (25 * 64 + 1) * 64 + (1024 + 1) * 128 + (128 + 1) * 10
    assert parameters(model) == expected == 236_618
    assert [tuple(w.shape) for w in prunable(model).values()] == [
        (64, 1, 5, 5),
        (64, 64, 5, 5),
        (128, 1024),
        (10, 128),
    ]


@pytest.mark.parametrize("model", [LeNet, ConvNet])
@pytest.mark.parametrize("size", range(8, 41))
def test_plain_convolutional_networks_fit_every_size(model: type[LeNet | ConvNet], size: int) -> None:
    with torch.device("meta"):
        assert model().build(1, size, 4)(torch.empty(1, 1, size, size)).shape == (1, 4)


@pytest.mark.parametrize("depth", [8, 14, 20, 38, 44])
def test_preact_resnet_has_as_many_parameters_as_its_formula(depth: int) -> None:
    with torch.device("meta"):
        model = PreActResNet(depth=depth).build(3, 32, 10)
    assert parameters(model) == preact_resnet_parameters((depth - 2) // 6, 3, 10, (16, 32, 64))
    long_path = [w for w in prunable(model).values() if w.ndim == 2 or w.shape[2] == 3]
    assert len(long_path) == depth


def test_preact_resnet_20_and_38_have_the_size_the_thesis_names() -> None:
    with torch.device("meta"):
        counts = [parameters(PreActResNet(depth=d).build(3, 32, 10)) for d in (20, 38)]
    # Dinh 4.2.2: an ensemble of two ResNet20 has ~0.54M parameters, a ResNet38 ~0.56M.
    assert counts[0] == 272_282
    assert round(2 * counts[0] / 1e6, 2) == 0.54
    assert round(counts[1] / 1e6, 2) == 0.56


def test_preact_resnet_takes_other_widths() -> None:
    with torch.device("meta"):
        model = PreActResNet(depth=10, widths=(8, 8, 12, 20)).build(2, 16, 5)
    strided = preact_resnet_parameters(1, 2, 5, (8, 8, 12, 20)) + 8 * 8  # same width, but half the size
    assert parameters(model) == strided


@pytest.mark.parametrize("depth", [2, 18, 19, 21, -4, 0])
def test_preact_resnet_rejects_depths_that_are_not_6n_plus_2(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"^depth: expected 6n \+ 2 with n >= 1 for 3 stages, got {depth}$"):
        PreActResNet(depth=depth)


def test_preact_resnet_rejects_no_width() -> None:
    with pytest.raises(ValueError, match=r"^widths: expected"):
        PreActResNet(widths=())


@pytest.mark.parametrize(("after", "stride"), [(4, 1), (6, 1), (4, 2), (6, 2)])
def test_preact_block_equals_its_formula(after: int, stride: int) -> None:
    block = PreActBlock(4, after, stride)
    x = torch.randn(3, 4, 9, 9)
    out = F.relu(F.batch_norm(x, None, None, training=True))
    skip = (
        x if (after, stride) == (4, 1) else F.conv2d(out, prunable(block)["shortcut.weight"], stride=stride)
    )
    inner = F.conv2d(out, block.conv1.weight, stride=stride, padding=1)
    inner = F.relu(F.batch_norm(inner, None, None, training=True))
    expected = F.conv2d(inner, block.conv2.weight, padding=1) + skip
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(("after", "stride"), [(4, 1), (6, 1), (4, 2), (6, 2)])
def test_basic_block_equals_its_formula(after: int, stride: int) -> None:
    def norm(x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, None, None, training=True)

    block = BasicBlock(4, after, stride)
    x = torch.randn(3, 4, 9, 9)
    inner = F.relu(norm(F.conv2d(x, block.conv1.weight, stride=stride, padding=1)))
    inner = norm(F.conv2d(inner, block.conv2.weight, padding=1))
    skip = (
        x
        if block.shortcut is None
        else norm(F.conv2d(x, prunable(block)["shortcut.0.weight"], stride=stride))
    )
    torch.testing.assert_close(block(x), F.relu(inner + skip))
    assert (block.shortcut is None) == ((after, stride) == (4, 1))


def residual_blocks(model: nn.Module) -> int:
    return sum(getattr(m, "is_residual_block", False) is True for m in model.modules())


def test_residual_blocks_are_marked() -> None:
    with torch.device("meta"):
        assert residual_blocks(PreActResNet(depth=20).build(3, 32, 10)) == 9
        assert residual_blocks(ResNet18().build(3, 32, 10)) == 8
        for spec in (MLP(), LeNet(), ConvNet(), VGG16()):
            assert residual_blocks(spec.build(3, 32, 10)) == 0


def test_resnet18_has_as_many_parameters_as_counted_by_hand() -> None:
    with torch.device("meta"):
        model = ResNet18().build(3, 32, 10)
    total, before = 9 * 3 * 64 + 2 * 64, 64
    for width in (64, 128, 256, 512):
        total += 9 * before * width + 3 * 9 * width * width + 4 * 2 * width
        total += 0 if before == width else before * width + 2 * width
        before = width
    assert parameters(model) == total + 512 * 10 + 10 == 11_173_962


def test_resnet18_halves_the_image_three_times() -> None:
    model = ResNet18(width=2).build(1, 32, 10)
    shapes = []
    for block in model.modules():
        if isinstance(block, BasicBlock):
            block.register_forward_hook(lambda m, i, out: shapes.append(tuple(out.shape[1:])))
    model(torch.rand(2, 1, 32, 32))
    assert shapes[1::2] == [(2, 32, 32), (4, 16, 16), (8, 8, 8), (16, 4, 4)]


def test_vgg16_has_as_many_parameters_as_counted_by_hand() -> None:
    with torch.device("meta"):
        model = VGG16().build(3, 32, 10)
    widths = [64, 64, 128, 128, *[256] * 3, *[512] * 6]
    weights = sum(9 * a * b for a, b in zip([3, *widths], widths, strict=False))
    assert len(conv_weights(model)) == 13
    assert parameters(model) == weights + 2 * sum(widths) + 512 * 10 + 10 == 14_724_042


@pytest.mark.parametrize(("size", "pools"), [(8, 3), (15, 3), (16, 4), (28, 4), (32, 5), (64, 5)])
def test_vgg16_leaves_out_pools_of_a_single_pixel(size: int, pools: int) -> None:
    with torch.device("meta"):
        model = VGG16(width=1).build(1, size, 10)
        assert sum(isinstance(m, nn.MaxPool2d) for m in model.modules()) == pools
        assert model(torch.empty(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize("spec", [ResNet18, VGG16])
def test_width_has_to_be_positive(spec: type[ResNet18 | VGG16]) -> None:
    with pytest.raises(ValueError, match=r"^width: expected an integer >= 1, got 0$"):
        spec(width=0)


@pytest.mark.parametrize(("spec", "side"), [(ConvNet(), 1), (LeNet(), 1), (PreActResNet(), 0), (VGG16(), 0)])
def test_convolutions_start_with_he_variance(spec: ConvNet | LeNet | PreActResNet | VGG16, side: int) -> None:
    for name, weight in conv_weights(spec.build(3, 32, 10)).items():
        fan = weight.shape[side] * weight.shape[2] * weight.shape[3]  # fan_in counts dimension 1, fan_out 0
        # The sample variance of n normal numbers deviates by sqrt(2 / n), relatively; 5 of these are allowed.
        share = weight.square().mean().item() * fan / 2
        assert abs(share - 1) < 5 * math.sqrt(2 / weight.numel()), name


@pytest.mark.parametrize("spec", [ConvNet(), LeNet()])
def test_convolution_biases_start_at_zero(spec: ConvNet | LeNet) -> None:
    model = spec.build(1, 28, 10)
    biases = [m.bias for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(biases) == 2
    assert all(b is not None and not b.any() for b in biases)

"""The dense block against the paper's formula, and the strengths of its skips by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustbench_sparse.models.densenet import DenseNet, skip_strengths
from robustbench_sparse.models.mlp import MLP
from robustbench_sparse.reporting.figures.networks import Layer
from robustbench_sparse.reporting.figures.skips import dense_blocks, summed_norms
from robustbench_sparse.sparsity.counting import count_macs


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}


def test_it_has_the_papers_layers_and_as_many_parameters_as_counted_by_hand() -> None:
    with torch.device("meta"):
        network = DenseNet().build(1, 28, 10)
    shapes = {name: tuple(conv.weight.shape) for name, conv in convolutions(network).items()}
    assert shapes == {
        "stem": (12, 1, 3, 3),
        **{f"block.{n}.conv": (12, 12 * (n + 1), 3, 3) for n in range(5)},
        "transition": (1, 72, 3, 3),
    }
    block = 9 * 12 * 12 * (1 + 2 + 3 + 4 + 5) + 5 * 12
    by_hand = 9 * 12 + block + (9 * 72 + 1) + (784 * 10 + 10)
    assert sum(p.numel() for p in network.parameters()) == by_hand == 28_107


def test_every_layer_reads_what_all_before_it_made() -> None:
    """x^{l+1} = (x^l, sigma(sum_i K^{l,i,j} * x_i^l + b_j)), kernel by kernel."""
    network = DenseNet(layers=2, growth=2, transition=2, activation="tanh").build(1, 8, 3)
    stem, first, second, transition = convolutions(network).values()
    for conv in (first, second, transition):
        assert conv.bias is not None
        nn.init.normal_(conv.bias)
    image = torch.rand(4, 1, 8, 8)
    assert stem.bias is None
    maps = [F.conv2d(image, stem.weight[j : j + 1], padding=1) for j in range(2)]
    for conv in (first, second):
        assert conv.bias is not None
        new = []
        for j in range(2):
            out = conv.bias[j] + sum(
                F.conv2d(m, conv.weight[j, i][None, None], padding=1) for i, m in enumerate(maps)
            )
            new.append(out.tanh())
        maps += new
    last = F.conv2d(torch.cat(maps, 1), transition.weight, transition.bias, padding=1).tanh()
    linear = network.get_submodule("linear")
    torch.testing.assert_close(network(image), linear(last.flatten(1)))


def test_batch_norm_stands_between_convolution_and_activation() -> None:
    network = DenseNet(layers=1, growth=2, batch_norm=True).build(1, 8, 3)
    x = torch.rand(5, 2, 8, 8)
    layer, conv = network.get_submodule("block.0"), network.get_submodule("block.0.conv")
    normed = F.batch_norm(conv(x), None, None, training=True)
    torch.testing.assert_close(layer(x), torch.cat((x, normed.relu()), 1))


@pytest.mark.parametrize(("pool", "features"), [(1, 3 * 81), (2, 3 * 16), (4, 3 * 4), (9, 3)])
def test_pooling_averages_squares_of_the_transitions_maps(pool: int, features: int) -> None:
    network = DenseNet(layers=1, growth=2, transition=3, pool=pool).build(1, 9, 4)
    linear = network.get_submodule("linear")
    assert isinstance(linear, nn.Linear)
    assert linear.in_features == features
    x = torch.rand(2, 1, 9, 9)
    maps = network.get_submodule("transition")(
        network.get_submodule("block")(network.get_submodule("stem")(x))
    ).relu()
    torch.testing.assert_close(network(x), linear(F.avg_pool2d(maps, pool).flatten(1)))


def test_multiplications_by_hand() -> None:
    network = DenseNet(layers=2, growth=3, transition=2, pool=2).build(1, 8, 5)
    by_hand = 64 * 9 * (1 * 3 + 3 * 3 + 6 * 3 + 9 * 2) + 2 * 16 * 5
    assert count_macs(network, 1, 8) == by_hand == 27_808


def test_the_authors_rectified_logits() -> None:
    plain, theirs = (DenseNet(layers=1, last_activation=last).build(1, 8, 3) for last in ("none", "relu"))
    theirs.load_state_dict(plain.state_dict())
    x = torch.randn(20, 1, 8, 8)
    logits = plain(x)
    assert (logits < 0).any()
    assert torch.equal(theirs(x), logits.relu())


def test_skip_strengths_are_sums_of_the_kernels_frobenius_norms() -> None:
    network = DenseNet(layers=2, growth=2, transition=1, mean=(0.5,)).build(1, 8, 3)
    _, first, second, transition = convolutions(network).values()
    with torch.no_grad():
        for conv in (first, second, transition):
            conv.weight.zero_()
        first.weight[0, 0, 0, 0], first.weight[0, 0, 2, 1] = 3, -4  # one kernel of norm 5
        first.weight[1, 1, 1, 1] = -2
        second.weight[:, :2] = 1  # four kernels of norm 3 on the stem's maps
        second.weight[1, 3, 0] = 2  # one of norm sqrt(12) on the first layer's second map
        transition.weight[0, 5] = 1 / 3  # of norm 1, on the second layer's second map
    expected = [[7, 0, 0], [12, math.sqrt(12), 0], [0, 0, 1]]
    torch.testing.assert_close(skip_strengths(network), torch.tensor(expected, dtype=torch.float64))


def test_skip_strengths_are_the_figures() -> None:
    network = DenseNet(layers=4, growth=3).build(1, 8, 3)
    layers = [
        Layer(name=name, weight=conv.weight.detach().double().numpy())
        for name, conv in convolutions(network).items()
    ]
    (block,) = dense_blocks(layers)
    strengths = skip_strengths(network)
    torch.testing.assert_close(strengths, torch.from_numpy(summed_norms(block)).nan_to_num(0))
    assert torch.equal(strengths > 0, torch.ones(5, 5).tril().bool())


def test_a_network_without_a_dense_block_has_no_such_strengths() -> None:
    with pytest.raises(ValueError, match=r"^network: expected one with a dense block"):
        skip_strengths(MLP().build(1, 8, 3))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        *(({name: 0}, name) for name in ("layers", "growth", "transition", "pool")),
        ({"activation": "none"}, "activation"),
        ({"last_activation": "softmax"}, "last_activation"),
    ],
)
def test_a_bad_setting_is_refused(settings: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        DenseNet(**settings)  # type: ignore[arg-type]


def test_pooling_more_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^pool: expected at most the images' 8 pixels, got 9$"):
        DenseNet(pool=9).build(1, 8, 3)

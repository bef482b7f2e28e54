"""Zeros, parameters and multiplications of networks small enough to count by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attacks.base import RandomModule
from robustbench_sparse.foundation.files import fill, load_weights, save_weights
from robustbench_sparse.models import MODELS
from robustbench_sparse.sparsity.counting import count_layers, count_macs, count_sparsity
from tests.helpers.zeros import zero_shares


def ones(model: nn.Module) -> nn.Module:
    """The network with every parameter 1."""
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    return model


def small() -> nn.Sequential:
    """2 -> 3 channels on 4 x 4 images, batch-norm, then 48 -> 5."""
    model = ones(
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 5, bias=False)
        )
    )
    assert isinstance(model, nn.Sequential)
    return model


def weight(model: nn.Sequential, i: int) -> Tensor:
    w = model[i].weight
    assert isinstance(w, Tensor)
    return w.detach()


def test_a_dense_network() -> None:
    counts = count_sparsity(small(), 2, 4)
    assert {k: v for k, v in counts.items() if k != "layers"} == {
        "weight_sparsity": 0.0,
        "linear_sparsity": 0.0,
        "channel_sparsity": 0.0,
        "kernel_sparsity": 0.0,
        "row_sparsity": 0.0,
        "parameters": 54 + 3 + 6 + 240,  # convolution, its bias, batch-norm, linear
        "nonzero_parameters": 54 + 3 + 6 + 240,
        "macs": 16 * 3 * 18 + 240,  # 16 pixels x 3 filters x 2 * 3 * 3 weights, and 5 x 48
        "sparse_macs": 16 * 3 * 18 + 240,
    }
    assert json.loads(json.dumps(counts)) == counts


def test_every_kind_of_zero() -> None:
    model = small()
    weight(model, 0)[:, 1] = 0  # an input channel: 3 kernels, 27 weights
    weight(model, 0)[2, 0] = 0  # a further kernel, which makes filter 2 a zero row: 9 weights
    weight(model, 0)[0, 0, 0, 0] = 0  # one weight that makes no kernel zero
    weight(model, 3)[4] = 0  # a zero row of the linear layer: 48 weights
    weight(model, 3)[0, :10] = 0  # 10 weights that make no row zero
    counts = count_sparsity(model, 2, 4)
    assert counts["weight_sparsity"] == pytest.approx(100 * (27 + 9 + 1 + 48 + 10) / (54 + 240))
    assert counts["channel_sparsity"] == pytest.approx(100 * 1 / 2)
    assert counts["kernel_sparsity"] == pytest.approx(100 * 4 / 6)
    assert counts["row_sparsity"] == pytest.approx(100 * (1 + 1) / (3 + 5))
    assert counts["nonzero_parameters"] == counts["parameters"] - (27 + 9 + 1 + 48 + 10)
    assert counts["macs"] == 16 * 3 * 18 + 240  # multiplications by zero are still counted
    assert counts["sparse_macs"] == 16 * (54 - 37) + 240 - 58
    convolution, linear = counts["layers"]
    assert (convolution["macs"], convolution["sparse_macs"]) == (16 * 54, 16 * (54 - 37))
    assert (linear["macs"], linear["sparse_macs"]) == (240, 240 - 58)
    assert (convolution["l1_norm"], linear["l1_norm"]) == (54 - 37, 240 - 58)
    assert (convolution["name"], convolution["kind"], convolution["shape"]) == ("0", "Conv2d", [3, 2, 3, 3])
    assert (convolution["zero_weights"], convolution["zero_channels"], convolution["zero_kernels"]) == (
        37,
        1,
        4,
    )
    assert (linear["name"], linear["kind"], linear["rows"], linear["zero_rows"]) == ("3", "Linear", 5, 1)
    assert (linear["channels"], linear["kernels"]) == (0, 0)
    assert zero_shares(model) == {k: v for k, v in counts.items() if k.endswith("_sparsity")}


def test_zeros_of_biases_and_batch_norm_are_parameters_but_no_sparsity() -> None:
    model = small()
    with torch.no_grad():
        model[0].bias.zero_()  # type: ignore[union-attr]
        weight(model, 1).zero_()
    counts = count_sparsity(model, 2, 4)
    assert counts["weight_sparsity"] == 0.0
    assert counts["parameters"] - counts["nonzero_parameters"] == 3 + 3


def test_a_channel_is_zero_below_1e_15_and_weights_only_at_0() -> None:
    model = small()
    weight(model, 0)[:, 0] = 1.9e-16  # l2 norm sqrt(27) * 1.9e-16 = 9.9e-16
    assert zero_shares(model)["channel_sparsity"] == 50.0
    assert zero_shares(model)["weight_sparsity"] == 0.0
    weight(model, 0)[:, 0] = 2.0e-16  # 1.04e-15
    assert zero_shares(model)["channel_sparsity"] == 0.0


def test_signs_do_not_matter() -> None:
    model = small()
    with torch.no_grad():
        weight(model, 0).neg_()
        weight(model, 3)[0, 0] = -0.0
    assert zero_shares(model)["channel_sparsity"] == 0.0
    assert count_layers(model)[1]["zero_weights"] == 1


def test_input_channels_of_grouped_convolutions_belong_to_one_group() -> None:
    model = ones(nn.Sequential(nn.Conv2d(4, 6, 1, groups=2, bias=False)))
    w = model[0].weight.detach()  # type: ignore[index]
    w[:3, 1] = 0  # filters 0-2 read channels 0 and 1: channel 1 is dead, channel 3 is not
    layer = count_layers(model)[0]
    assert (layer["channels"], layer["zero_channels"]) == (4, 1)
    assert (layer["kernels"], layer["zero_kernels"]) == (12, 3)
    assert count_macs(model, 4, 5) == 25 * 6 * 2


def test_nothing_of_the_kind_is_none() -> None:
    model = ones(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)))
    assert zero_shares(model) == {
        "weight_sparsity": 0.0,
        "linear_sparsity": 0.0,
        "channel_sparsity": None,
        "kernel_sparsity": None,
        "row_sparsity": 0.0,
    }
    assert set(zero_shares(nn.Flatten()).values()) == {None}
    assert count_sparsity(nn.Flatten(), 1, 3)["macs"] == 0


class Twice(nn.Module):
    """One layer called twice, and random layers that must not move the global stream."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.noise = RandomModule()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.layer(self.layer(x)))
        return out + self.noise.draw(x) + torch.rand_like(x)


def test_a_layer_called_twice_multiplies_twice_but_has_its_weights_once() -> None:
    counts = count_sparsity(Twice(), 1, 4)
    assert counts["macs"] == 2 * 16 * 9
    assert counts["layers"][0]["weights"] == 9
    assert counts["parameters"] == 9 + 2


def test_counting_leaves_everything_as_it_was() -> None:
    model = Twice().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    count_sparsity(model, 1, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.layer._forward_hooks


def test_memory_layout_does_not_matter() -> None:
    model = small()
    weight(model, 0)[:, 1] = 0
    weight(model, 0)[2] = 0
    dense = count_sparsity(model, 2, 4)
    assert count_sparsity(model.to(memory_format=torch.channels_last), 2, 4) == dense  # type: ignore[call-overload]


def test_lenet_has_seven_input_channels_and_the_textbook_numbers() -> None:
    """Dinh, table 4.1: five of the seven channels gone are 71.43 %, the table's maximum."""
    model = MODELS["lenet"]().build(1, 28, 10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    convolutions[1].weight.detach()[:, 1:] = 0
    counts = count_sparsity(model, 1, 28)
    assert counts["channel_sparsity"] == pytest.approx(71.43, abs=0.005)
    assert counts["parameters"] == 61706
    assert counts["macs"] == 28 * 28 * 6 * 25 + 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10


def test_resnet18_multiplies_as_often_as_its_layers_say() -> None:
    model = MODELS["resnet18"]().build(3, 32, 10)
    assert count_sparsity(model, 3, 32)["macs"] == pytest.approx(
        556e6, rel=0.005
    )  # 0.56 G for the CIFAR form


def test_what_is_counted_is_the_file(tmp_path: Path) -> None:
    model = small()
    weight(model, 0)[:, 1] = 0
    path = tmp_path / "model.safetensors"
    save_weights(path, model.state_dict())
    read = small()
    fill(read, load_weights(path), path)
    assert count_sparsity(read, 2, 4) == count_sparsity(model, 2, 4)
    assert zero_shares(read)["channel_sparsity"] == 50.0


def test_a_layer_called_twice_multiplies_twice_and_a_stride_leaves_pixels_out() -> None:
    shared = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Conv2d(2, 4, 1, stride=2))
    with torch.no_grad():
        shared.weight.fill_(1)[0] = 0
        model[3].weight.fill_(1)  # type: ignore[operator, union-attr]
    counts = count_sparsity(model, 2, 4)
    by_name = {layer["name"]: layer for layer in counts["layers"]}
    assert (by_name["0"]["macs"], by_name["0"]["sparse_macs"]) == (2 * 16 * 36, 2 * 16 * 18)
    assert (by_name["3"]["macs"], by_name["3"]["sparse_macs"]) == (4 * 8, 4 * 8)
    assert counts["macs"] == count_macs(model, 2, 4) == 2 * 16 * 36 + 4 * 8


def test_macs_of_groups_count_what_a_filter_reads() -> None:
    counts = count_sparsity(ones(nn.Conv2d(4, 6, 3, padding=1, groups=2)), 4, 8)
    assert counts["macs"] == 64 * 6 * 2 * 9

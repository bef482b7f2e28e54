"""Who reads a channel: by hand for every network of the zoo, and what is not understood is never prunable."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from attacks.base import RandomModule
from defenses import EnResNet
from defenses.sparse.consumers import kept_without, outputs_of
from robustbench_sparse.models.base import ModelSpec
from robustbench_sparse.models.convnet import ConvNet
from robustbench_sparse.models.lenet import LeNet
from robustbench_sparse.models.mlp import MLP
from robustbench_sparse.models.preact_resnet import PreActResNet
from robustbench_sparse.models.resnet18 import ResNet18
from robustbench_sparse.models.vgg16 import VGG16


def closed(model: nn.Module) -> dict[str, tuple[tuple[str, ...], dict[str, int]]]:
    return {k: (tuple(o.norms), o.readers) for k, o in outputs_of(model).items() if o.closed}


def sequence(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


class Call(nn.Module):
    """A function between a convolution of 4 filters and the layers behind it."""

    def __init__(self, function: Callable[[Tensor], Tensor], *behind: nn.Module) -> None:
        super().__init__()
        self.function, self.first, self.behind = function, nn.Conv2d(3, 4, 3, padding=1), sequence(*behind)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.behind(self.function(self.first(x)))
        return out


# The zoo ----------------------------------------------------------------------------------------------------


def test_mlp() -> None:
    assert closed(MLP(hidden=(5, 4)).build(1, 8, 3)) == {"1": ((), {"3": 1}), "3": ((), {"5": 1})}
    normed = MLP(hidden=(5, 4), batch_norm=True, activation="sigmoid", mean=(0.5,)).build(1, 8, 3)
    assert closed(normed) == {
        "network.1": (("network.2",), {"network.4": 1}),
        "network.2": ((), {"network.4": 1}),
        "network.4": (("network.5",), {"network.7": 1}),
        "network.5": ((), {"network.7": 1}),
    }


@pytest.mark.parametrize("spec", [LeNet(), ConvNet()])
def test_lenet_and_convnet_with_runs_of_columns_behind_the_flattened_map(spec: ModelSpec) -> None:
    model = spec.build(3, 16, 10)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    second, linear = layers["3"], layers["7"]
    assert isinstance(second, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    run = linear.in_features // second.out_channels
    assert math.isqrt(run) ** 2 == run > 1
    expected = {"0": {"3": 1}, "3": {"7": run}, "7": {"9": 1}} | ({"9": {"11": 1}} if "11" in layers else {})
    assert closed(model) == {k: ((), v) for k, v in expected.items()}


def test_vgg16_is_a_chain() -> None:
    model = VGG16(width=2).build(3, 16, 10)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    got = closed(model)
    assert len(norms) == 13
    for layer, norm, reader in zip(layers, norms, layers[1:], strict=False):
        assert got.pop(layer) == ((norm,), {reader: 1})
        assert got.pop(norm) == ((), {reader: 1})
    assert got == {}


def preact(prefix: str = "", block: str = "") -> dict[str, tuple[tuple[str, ...], dict[str, int]]]:
    """Of depth 8, widths 4, 4, 6: the second block has no new width but a stride, so a shortcut of its own."""
    out = {}
    for i in range(3):
        b = f"{prefix}blocks.{i}.{block}"
        out[f"{b}bn1"] = ((), {f"{b}conv1": 1} | ({f"{b}shortcut": 1} if i > 0 else {}))
        out[f"{b}conv1"] = ((f"{b}bn2",), {f"{b}conv2": 1})
        out[f"{b}bn2"] = ((), {f"{b}conv2": 1})
    return out | {f"{prefix}bn": ((), {f"{prefix}linear": 1})}


def test_preact_resnet_shields_what_is_added_to_a_skip() -> None:
    model = PreActResNet(depth=8, widths=(4, 4, 6)).build(3, 16, 10)
    assert closed(model) == preact()
    branches = {k for k, o in outputs_of(model).items() if o.branch}
    assert branches == {*(f"blocks.{i}.conv2" for i in range(3)), "blocks.1.shortcut", "blocks.2.shortcut"}
    stem = outputs_of(model)["conv"]
    assert stem.added
    assert stem.norms == ["blocks.0.bn1"]


def test_resnet18_shields_what_is_added_to_a_skip() -> None:
    model = ResNet18(width=4).build(3, 16, 10)
    expected = {}
    for i in range(8):
        expected[f"blocks.{i}.conv1"] = ((f"blocks.{i}.bn1",), {f"blocks.{i}.conv2": 1})
        expected[f"blocks.{i}.bn1"] = ((), {f"blocks.{i}.conv2": 1})
    assert closed(model) == expected
    outputs = outputs_of(model)
    branches = {k for k, o in outputs.items() if o.branch}
    shortcuts = {f"blocks.{i}.shortcut.{j}" for i in (2, 4, 6) for j in (0, 1)}
    assert branches == {f"blocks.{i}.{n}" for i in range(8) for n in ("conv2", "bn2")} | shortcuts
    assert outputs["bn"].added
    assert outputs["bn"].readers == {"blocks.0.conv1": 1}
    assert outputs["linear"].unknown


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_members_of_an_ensemble_keep_to_themselves(noise: float) -> None:
    model = EnResNet(noise=noise).wrap(lambda: PreActResNet(depth=8, widths=(4, 4, 6)).build(3, 16, 10))()
    block = "block." if noise else ""
    assert closed(model) == preact("members.0.", block) | preact("members.1.", block)


def test_weights_may_be_on_meta() -> None:
    with torch.device("meta"):
        assert closed(PreActResNet(depth=8, widths=(4, 4, 6)).build(3, 16, 10)) == preact()


# What is understood -----------------------------------------------------------------------------------------

HEAD = (nn.Flatten(), nn.Linear(4 * 64, 3))


@pytest.mark.parametrize(
    "function",
    [
        *(F.relu, torch.relu, torch.tanh, F.gelu, lambda x: x.relu(), lambda x: x.contiguous().sigmoid()),
        *(lambda x: F.relu(x, inplace=True), lambda x: F.dropout(x, 0.5, training=False)),
        *(lambda x: F.dropout2d(x, 0.5, training=False), nn.Mish(), nn.Dropout(), nn.Identity()),
    ],
)
def test_functions_that_keep_channels_apart(function: Callable[[Tensor], Tensor]) -> None:
    assert closed(Call(function, *HEAD)) == {"first": ((), {"behind.1": 64})}


@pytest.mark.parametrize(
    "function",
    [lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2), lambda x: F.adaptive_avg_pool2d(x, 4)],
)
def test_pools(function: Callable[[Tensor], Tensor]) -> None:
    model = Call(function, nn.Flatten(), nn.Linear(4 * 16, 3))
    assert closed(model) == {"first": ((), {"behind.1": 16})}


@pytest.mark.parametrize(
    "function",
    [
        *(
            lambda x: x.mean((2, 3)),
            lambda x: torch.mean(x, (-2, -1)),
            lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
        ),
        lambda x: torch.flatten(F.max_pool2d(x, 8), 1),
    ],
)
def test_maps_made_columns(function: Callable[[Tensor], Tensor]) -> None:
    assert closed(Call(function, nn.Linear(4, 3))) == {"first": ((), {"behind.0": 1})}


# What is not ------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """One layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.twice, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.twice(self.twice(self.a(x))))
        return out


class Leaf(RandomModule):
    """A random layer of one's own, which may mix channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.draw(x[:, :1])


def tied() -> nn.Module:
    model = sequence(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    model[2].weight = model[1].weight
    return model


def hooked() -> nn.Module:
    model = sequence(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model[1].register_forward_hook(lambda m, args, out: out.roll(1, 1))
    return model


def branching(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


UNKNOWN: dict[str, nn.Module] = {
    "runs twice": Twice(),
    "tied weights": tied(),
    "hook": hooked(),
    "parametrised": sequence(nn.Conv2d(3, 4, 1), parametrizations.spectral_norm(nn.Conv2d(4, 2, 1))),
    "weight norm": sequence(parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.Conv2d(4, 2, 1)),
    "groups read": sequence(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2)),
    "groups": sequence(nn.Conv2d(3, 6, 1, groups=3), nn.Conv2d(6, 4, 1)),
    "softmax over channels": Call(lambda x: x.softmax(1), *HEAD),
    "reshape": Call(lambda x: x.reshape(len(x), -1), nn.Linear(256, 3)),
    "view": Call(lambda x: x.view(x.size(0), -1), nn.Linear(256, 3)),
    "flatten all": Call(lambda x: x.flatten(), nn.Linear(256, 3)),
    "transpose": Call(lambda x: x.transpose(2, 3), *HEAD),
    "channels swapped": Call(lambda x: x.roll(1, 1), *HEAD),
    "mean over channels": Call(lambda x: x.mean((1, 2)), nn.Linear(8, 3)),
    "mean that keeps dimensions": Call(lambda x: x.mean((2, 3), keepdim=True), *HEAD),
    "added to itself": Call(lambda x: x + x, *HEAD),
    "a constant added": Call(lambda x: x + 1, *HEAD),
    "multiplied": Call(lambda x: x * x.mean((2, 3), keepdim=True), *HEAD),
    "concatenated": Call(lambda x: torch.cat([x, x], 1), nn.Conv2d(8, 2, 1)),
    "sliced": Call(lambda x: x[:, :2], nn.Conv2d(2, 2, 1)),
    "branching": Call(branching, *HEAD),
    "layer norm": Call(nn.LayerNorm([4, 8, 8]), *HEAD),
    "group norm": Call(nn.GroupNorm(2, 4), *HEAD),
    "prelu": Call(nn.PReLU(4), *HEAD),
    "random": Call(Leaf(), *HEAD),
    "shuffled": Call(nn.PixelShuffle(2), nn.Conv2d(1, 2, 1)),
    "flatten from 2": Call(nn.Flatten(2), nn.Linear(64, 3)),
    "linear on a map as wide as it has channels": Call(nn.ReLU(), nn.Linear(4, 3)),
    "batch-norm twice": Call(nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)),
    "columns normalised one by one": Call(nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(256), nn.Linear(256, 3)),
    "unused": Call(lambda x: (x.relu(), x)[1], nn.PixelShuffle(2)),
    "sequences": nn.LSTM(3, 4),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_understood_is_not_prunable(name: str) -> None:
    model = UNKNOWN[name]
    first = {
        n for n, o in outputs_of(model).items() if o.closed and isinstance(model.get_submodule(n), nn.Conv2d)
    }
    assert first == set()


def test_layers_whose_readers_are_known_stay_prunable_beside_others() -> None:
    model = sequence(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 1), nn.PixelShuffle(1), nn.Conv2d(6, 2, 1)
    )
    assert closed(model) == {"0": ((), {"1": 1}), "1": ((), {"2": 1})}


def test_the_filter_behind_a_norm_alone_is_told_from_one_that_is_used_raw() -> None:
    model = PreActResNet(depth=8, widths=(4, 4, 6)).build(3, 16, 10)
    outputs = outputs_of(model)
    assert {k for k, o in outputs.items() if o.norms and not o.bare} == {
        f"blocks.{i}.conv1" for i in range(3)
    }
    assert outputs["conv"].bare


# What goes with a channel -----------------------------------------------------------------------------------


def test_a_pruned_channel_takes_filter_norm_and_readers_with_it() -> None:
    model = sequence(
        nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2 * 4, 3)
    )
    kept = kept_without(model, outputs_of(model), {"0": torch.tensor([False, True])})
    assert {k: v.flatten().tolist() for k, v in kept.items()} == {
        "0.weight": [True, True, False, False],
        "0.bias": [True, False],
        "1.weight": [True, False],
        "1.bias": [True, False],
        "5.weight": 3 * [*[True] * 4, *[False] * 4],
    }
    assert kept["0.weight"].shape == (2, 2, 1, 1)


def test_pruned_layers_in_a_row_add_up() -> None:
    model = sequence(nn.Flatten(), nn.Linear(1, 2, bias=False), nn.Linear(2, 2), nn.Linear(2, 1))
    dead = {"1": torch.tensor([True, False]), "2": torch.tensor([False, True])}
    kept = kept_without(model, outputs_of(model), dead)
    assert kept["2.weight"].tolist() == [[False, True], [False, False]]
    assert kept["2.bias"].tolist() == [True, False]
    assert kept["3.weight"].tolist() == [[True, False]]
    assert "1.bias" not in kept

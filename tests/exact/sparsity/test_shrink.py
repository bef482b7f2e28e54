"""Removing dead channels: the function stays, whatever made them dead, and only dead ones go."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.base import NoiseOff, SampleRandom, Threat, noise_from
from defenses import RGSM, Step
from defenses.robust.enresnet import EnResNet, Noise
from robustbench_sparse.certificate.checks.sparsity_records import dead_channels_change_nothing
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.models import MODELS
from robustbench_sparse.models.skips import SkipLayer
from robustbench_sparse.runs.shrunk_file import widths_of
from robustbench_sparse.shrinking import proven
from robustbench_sparse.sparsity.shrink.surgery import Shrunk, shrink_network
from tests.helpers.certificate_subjects import subject

pytest.importorskip("torch_pruning")

PREACT: dict[str, Any] = {"depth": 8, "widths": (6, 8, 10)}
# Name, settings, channels and size of the images; a size below 20 makes LeNet and ConvNet pad their convolutions.
NETWORKS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "mlp": ("mlp", {"hidden": (24, 12)}, 1, 8),
    "mlp_residual": ("mlp", {"hidden": (24, 24, 12, 12), "residual": 1.0}, 1, 8),
    "dense_residual": ("dense_residual", {"layers": 4, "width": 24}, 1, 8),
    "densenet": ("densenet", {"layers": 3, "growth": 5, "transition": 4}, 1, 8),
    "densenet_batch_norm": (
        "densenet",
        {"layers": 3, "growth": 5, "transition": 4, "batch_norm": True, "pool": 2},
        *(3, 8),
    ),
    "mlp_sigmoid": ("mlp", {"hidden": (24, 12), "activation": "sigmoid"}, 1, 8),
    "lenet": ("lenet", {}, 1, 28),
    "lenet_padded": ("lenet", {}, 1, 8),
    "convnet": ("convnet", {}, 1, 20),
    "vgg16": ("vgg16", {"width": 8}, 3, 16),
    "vgg16_normalised": ("vgg16", {"width": 8, "mean": (0.5,), "std": (0.2,)}, 3, 16),
    "preact_resnet": ("preact_resnet", PREACT, 3, 8),
    "resnet18": ("resnet18", {"width": 8}, 3, 8),
    "enresnet": ("preact_resnet", PREACT, 3, 8),
    "enresnet18": ("resnet18", {"width": 8}, 3, 8),
    "enresnet_without_noise": ("preact_resnet", PREACT, 3, 8),
}
RANDOM = ("enresnet", "enresnet18")


def network(name: str, seed: int = 0) -> nn.Module:
    """A network in float64 with batch-norm statistics, shifts and biases like a trained one's."""
    key, settings, channels, size = NETWORKS[name]

    def make() -> nn.Module:
        return MODELS[key](**settings).build(channels, size, 10)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        noise = 0.1 if name in RANDOM else 0.0
        model = EnResNet(members=2, noise=noise).wrap(make)() if name.startswith("enresnet") else make()
        return settled(model)


def settled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for m in model.double().modules():
            if isinstance(m, nn.BatchNorm2d):
                assert m.running_mean is not None
                assert m.running_var is not None
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.5, 2)
                m.weight.uniform_(0.5, 1.5)
                m.bias.normal_(0.2, 0.3)
            elif isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None:
                m.bias.normal_(0, 0.2)
            elif isinstance(m, SkipLayer) and m.skip is not None:
                m.skip.normal_()
    return model.eval()


def images(name: str, count: int = 12) -> Tensor:
    _, _, channels, size = NETWORKS[name]
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, channels, size, size, generator=generator, dtype=torch.float64)


def layers_of(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def logits(model: nn.Module, x: Tensor, noisy: bool = False) -> Tensor:
    with torch.no_grad():
        if not noisy:
            out: Tensor = NoiseOff(model)(x)
            return out
        with noise_from(model, SampleRandom.for_images(0, "noise", range(len(x)))):
            drawn: Tensor = model(x)
        return drawn


def check_same(before: nn.Module, after: nn.Module, x: Tensor, tolerance: float = 1e-10) -> None:
    for noisy in (False, True):
        a, b = logits(before, x, noisy), logits(after, x, noisy)
        assert a.std(0).max() > 1e-6, "the images have to matter, or equality says nothing"
        assert (a - b).abs().max() <= tolerance * max(1.0, float(a.abs().max()))


# Every way to be dead ------------------------------------------------------------------------------------

SHARE = 0.4


def part(count: int) -> slice:
    """The same channels in all layers, so that those that add up die together; never all of them."""
    return slice(0, int(SHARE * count))


@torch.no_grad()
def zero_outputs(model: nn.Module) -> None:
    last = layers_of(model)[-1]
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.Linear) and m is not last and len(m.weight) != 10:
            m.weight[part(len(m.weight))] = 0
            if m.bias is not None:
                m.bias[part(len(m.weight))] = 0
        if isinstance(m, nn.BatchNorm2d):
            m.weight[part(len(m.weight))] = 0
            m.bias[part(len(m.weight))] = 0


@torch.no_grad()
def zero_batch_norm(model: nn.Module) -> None:
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight[part(len(m.weight))] = 0
            m.bias[part(len(m.weight))] = 0


@torch.no_grad()
def constant_outputs(model: nn.Module) -> None:
    """Zero filters whose bias or batch-norm shift stays."""
    for m in layers_of(model)[:-1]:
        if len(m.weight) != 10:
            m.weight[part(len(m.weight))] = 0


@torch.no_grad()
def unread(model: nn.Module) -> None:
    for m in layers_of(model):
        if m.weight.shape[1] > 3:
            m.weight[:, part(m.weight.shape[1])] = 0


@torch.no_grad()
def unread_at_random(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    for m in layers_of(model):
        if m.weight.shape[1] > 3:
            m.weight[:, torch.rand(m.weight.shape[1], generator=generator) < SHARE] = 0


@torch.no_grad()
def rows_of_linear_layers(model: nn.Module) -> None:
    for m in layers_of(model)[:-1]:
        if isinstance(m, nn.Linear) and len(m.weight) != 10:
            m.weight[::2] = 0
            m.bias[::2] = 0


@torch.no_grad()
def everything(model: nn.Module) -> None:
    """All at once and all over, each with its own channels."""
    generator = torch.Generator().manual_seed(2)

    def some(count: int, share: float = 0.15) -> Tensor:
        return torch.rand(count, generator=generator) < share

    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.Linear) and len(m.weight) != 10:
            m.weight[some(len(m.weight))] = 0
            if m.weight.shape[1] > 3:
                m.weight[:, some(m.weight.shape[1])] = 0
            if m.bias is not None:
                m.bias[some(len(m.weight))] = 0
        if isinstance(m, nn.BatchNorm2d):
            m.weight[some(len(m.weight))] = 0
            m.bias[some(len(m.weight))] = 0


WAYS: dict[str, Callable[[nn.Module], None]] = {
    f.__name__: f
    for f in (
        *(zero_outputs, zero_batch_norm, constant_outputs, unread, unread_at_random),
        *(rows_of_linear_layers, everything),
    )
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays(name: str, way: str) -> None:
    model, x = network(name), images(name)
    WAYS[way](model)
    kept = copy.deepcopy(model.state_dict())
    small = shrink_network(model, x)
    check_same(model, small.model, x)
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert shrink_network(small.model, x).removed == {}  # nothing dead is left behind
    if way in ("zero_outputs", "unread"):
        assert parameters(small.model) < 0.85 * parameters(model)
    single = copy.deepcopy(model).float()
    check_same(single, shrink_network(single, x).model, x.float(), 1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_dead_channels_stays_as_it_is(name: str) -> None:
    model = network(name)
    small = shrink_network(model, images(name))
    assert small.removed == {}
    own = small.model.state_dict()
    assert own.keys() == model.state_dict().keys()
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["lenet", "preact_resnet", "enresnet"])
def test_what_rgsm_deploys(name: str) -> None:
    model, x = network(name).float(), images(name).float()
    with torch.no_grad():
        for m in layers_of(model):
            if isinstance(m, nn.Conv2d) and m.weight.shape[1] > 3:
                m.weight[:, ::2] *= 1e-3
    rgsm = RGSM(regulariser="group_l0", beta=1.0, lam=0.02)
    s = Step(model, None, Threat(), torch.Generator().manual_seed(0), lambda *_: torch.empty(0), lr=0.1)
    rgsm.begin(s)
    deployed = rgsm.deploy(model).eval()
    small = shrink_network(deployed, x)
    assert small.removed
    check_same(deployed, small.model, x, 1e-4)


# Counted by hand -----------------------------------------------------------------------------------------


def test_lenet_by_hand() -> None:
    model = network("lenet")
    conv1, conv2, fc1, fc2, fc3 = layers_of(model)
    with torch.no_grad():
        conv1.weight[:2] = 0  # filters 0 and 1 are zero
        conv1.bias[:2] = 0  # type: ignore[index]
        conv2.weight[:, 2] = 0  # no one reads filter 2
        conv2.weight[5] = 0  # and a zero filter of the second
        conv2.bias[5] = 0  # type: ignore[index]
        fc1.weight[10] = 0  # a zero neuron
        fc1.bias[10] = 0  # type: ignore[index]
        fc2.weight[:, 3] = 0  # one that no one reads
        fc3.weight[:, 7] = 0
    small = shrink_network(model, images("lenet"))
    assert small.removed == {"0": (6, 3), "3": (16, 15), "7": (120, 118), "9": (84, 83)}
    by_hand = (3 * 25 + 3) + (15 * 3 * 25 + 15) + (118 * 15 * 25 + 118) + (83 * 118 + 83) + (10 * 83 + 10)
    assert parameters(small.model) == by_hand
    check_same(model, small.model, images("lenet"))


def test_the_dead_take_their_feeders_along() -> None:
    """fc3 reads half of fc2, whose other half alone reads neuron 0 of fc1, which alone reads filter 1 of conv2."""
    model = network("lenet")
    _, conv2, fc1, fc2, fc3 = layers_of(model)
    with torch.no_grad():
        fc3.weight[:, 42:] = 0
        fc2.weight[:42, 0] = 0
        fc1.weight[1:, 25:50] = 0
    small = shrink_network(model, images("lenet"))
    assert small.removed == {"3": (16, 15), "7": (120, 119), "9": (84, 42)}
    assert len(conv2.weight) == 16
    check_same(model, small.model, images("lenet"))


def test_vgg_by_hand() -> None:
    model = network("vgg16")
    convs = [m for m in layers_of(model) if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        norms[0].weight[:3] = 0
        norms[0].bias[:3] = 0
        convs[3].weight[:, :5] = 0  # five of the third convolution's 16 go unread
        layers_of(model)[-1].weight[:, 60:] = 0  # and four of the last one's 64
    small = shrink_network(model, images("vgg16"))
    widths = [3, 5, 8, 11, 16, 32, 32, 32, 64, 64, 64, 64, 64, 60]
    by_hand = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(widths)) + 60 * 10 + 10
    assert parameters(small.model) == by_hand
    assert widths_of(small.model)["features.0"] == [3, 5]


# What must not go ----------------------------------------------------------------------------------------


def stack(padding: int, shift: float, bias: bool = True, after: type[nn.Module] = nn.ReLU) -> nn.Module:
    """A zero filter 0 whose batch-norm still writes a shift, read by a convolution."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = settled(
            nn.Sequential(
                *(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), after()),
                *(nn.Conv2d(4, 3, 3, padding=padding, bias=bias), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
                *(nn.Flatten(), nn.Linear(3, 10)),
            )
        )
    with torch.no_grad():
        model[0].weight[0] = 0  # type: ignore[index, operator]
        model[1].weight[0] = 1  # type: ignore[index, operator]
        model[1].bias[0] = shift + model[1].running_mean[0] / (model[1].running_var[0] + 1e-5).sqrt()  # type: ignore[index, operator]
    return model


@pytest.mark.parametrize(
    ("padding", "shift", "bias", "goes"),
    [
        (1, 0.7, True, False),  # at the border the reader sees zeros, not 0.7: no bias can stand for that
        (1, -0.7, True, True),  # ReLU makes it zero
        (0, 0.7, True, True),  # 0.7 everywhere: the reader's bias takes it
        (0, 0.7, False, False),  # no bias to take it
        (0, -0.7, False, True),
    ],
)
def test_a_shift_behind_a_zero_filter(padding: int, shift: float, bias: bool, goes: bool) -> None:
    model, x = stack(padding, shift, bias), images("mlp")
    small = shrink_network(model, x)
    assert small.removed == ({"0": (4, 3)} if goes else {})
    check_same(model, small.model, x)


def test_what_a_border_makes_of_a_constant_varies() -> None:
    model, x = stack(1, 0.7), images("mlp")
    with torch.no_grad():
        model[3].weight[1, 1:] = 0  # type: ignore[index, operator]  # this filter sees the constant and nothing else
    small = shrink_network(model, x)
    assert small.removed == {}
    check_same(model, small.model, x)


def test_a_sigmoid_makes_half_of_zero() -> None:
    model, x = network("mlp_sigmoid"), images("mlp")
    first, second, _ = layers_of(model)
    with torch.no_grad():
        first.weight[4] = 0
        first.bias[4] = 0  # type: ignore[index]
        expected = second.bias.detach() + 0.5 * second.weight[:, 4]  # type: ignore[union-attr]
    small = shrink_network(model, x)
    assert small.removed == {"1": (24, 23)}
    bias = layers_of(small.model)[1].bias
    assert bias is not None
    torch.testing.assert_close(bias.detach(), expected.detach())
    check_same(model, small.model, x)


def test_a_batch_norm_of_weight_0_needs_its_channel_but_not_what_feeds_it() -> None:
    model, x = stack(1, 0.7), images("mlp")
    with torch.no_grad():
        model[1].weight[1] = 0  # type: ignore[index, operator]
        model[1].bias[1] = 0.9  # type: ignore[index, operator]
    assert shrink_network(model, x).removed == {}
    check_same(model, shrink_network(model, x).model, x)


def test_a_shift_that_goes_on_through_something_else_stays() -> None:
    class Flip(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(1)

    stacked, x = stack(1, 0.7), images("mlp")
    assert isinstance(stacked, nn.Sequential)
    model = nn.Sequential(*stacked[:2], Flip(), *stacked[2:])
    with torch.no_grad():
        model[1].weight[0] = 0  # type: ignore[index, operator]
        model[4].weight[:, 0] = 0  # type: ignore[index, operator]  # the same number, another channel
    assert shrink_network(model, x).removed == {}
    check_same(model, shrink_network(model, x).model, x)


class PlusImage(nn.Module):
    """What a convolution makes is added to the image, whose channels no one can remove."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.linear = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.linear(torch.relu(self.first(x) + x).mean((2, 3)))
        return out


def test_channels_that_are_added_to_the_image_stay() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = settled(PlusImage()), torch.rand(6, 4, 8, 8, dtype=torch.float64)
    assert isinstance(model, PlusImage)
    with torch.no_grad():
        model.linear.weight[:, 0] = 0
    small = shrink_network(model, x)
    assert small.removed == {}
    check_same(model, small.model, x)


class Tangle(nn.Module):
    """Channels between two convolutions go through something on their way."""

    def __init__(self, way: Callable[[Tensor, Tensor], Tensor], inputs: int = 4, groups: int = 1) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(inputs, 4, 1, groups=groups)
        self.linear, self.way = nn.Linear(4, 10), way

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.linear(
            torch.relu(self.second(self.way(torch.relu(self.first(x)), x))).mean((2, 3))
        )
        return out


@pytest.mark.parametrize(
    ("way", "inputs", "groups"),
    [
        (lambda h, x: h.flip(1), 4, 1),
        (lambda h, x: torch.cat((h, h.flip(1)), 1), 8, 1),
        (lambda h, x: h + x, 4, 1),
        (lambda h, x: h * h.sum(1, keepdim=True), 4, 1),
        (lambda h, x: h, 2, 2),
        (lambda h, x: h.softmax(1), 4, 1),
    ],
    ids=["flip", "cat", "plus the image", "times the sum", "groups", "softmax"],
)
@pytest.mark.parametrize("dead", ["read", "made"])
def test_what_is_not_understood_is_left_alone(way: Any, inputs: int, groups: int, dead: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = settled(Tangle(way, inputs * groups, groups))
    assert isinstance(model, Tangle)
    with torch.no_grad():
        if dead == "read":
            model.second.weight[:, 0] = 0
        else:
            model.first.weight[0] = 0
            assert model.first.bias is not None
            model.first.bias[0] = 0
    x = images("mlp")
    small = shrink_network(model, x)
    check_same(model, small.model, x)
    assert "first" not in small.removed


class Twice(nn.Module):
    """One layer called twice: what its second call reads, its first one writes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.linear = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = torch.relu(self.shared(torch.relu(self.shared(torch.relu(self.stem(x)))))).flip(1)
        out: Tensor = self.linear(h.mean((2, 3)))
        return out


def test_a_layer_called_twice_is_left_alone() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = settled(Twice())
    assert isinstance(model, Twice)
    with torch.no_grad():
        model.shared.weight[:, 0] = 0
        model.linear.weight[:, 0] = 0
    small = shrink_network(model, images("mlp"))
    check_same(model, small.model, images("mlp"))


def test_a_channel_with_one_reader_left_stays() -> None:
    """A residual stream: the block leaves channel 0 alone, the shortcut of the next one does not."""
    model, x = network("preact_resnet"), images("preact_resnet")
    with torch.no_grad():
        model.blocks[1].conv1.weight[:, 0] = 0  # type: ignore[index, union-attr]
    assert shrink_network(model, x).removed == {}
    with torch.no_grad():
        model.blocks[1].shortcut.weight[:, 0] = 0  # type: ignore[index, union-attr]
        model.blocks[0].conv1.weight[:, 0] = 0  # type: ignore[index, union-attr]
    small = shrink_network(model, x)
    assert small.removed == {"conv": (6, 5), "blocks.0.conv2": (6, 5)}
    check_same(model, small.model, x)


def test_one_channel_stays_of_a_layer_that_is_dead_throughout() -> None:
    model, x = network("preact_resnet"), images("preact_resnet")
    with torch.no_grad():
        model.blocks[0].conv2.weight.zero_()  # type: ignore[index, union-attr]
    small = shrink_network(model, x)
    assert small.removed == {"blocks.0.conv1": (6, 1)}
    check_same(model, small.model, x)


def test_a_network_that_cannot_be_traced_is_an_error_of_one_line() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(x.flatten(1))
            return out if bool(out.sum() > 0) else -out

    with pytest.raises(UserError, match=r"forward pass cannot be traced"):
        shrink_network(Odd().double(), images("mlp"))


# Noise ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANDOM)
def test_noise_meets_the_same_tensors(name: str) -> None:
    """Its strength is the std over all channels, so each place gets what it got, channel by channel."""
    model, x = network(name), images(name)
    everything(model)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.Conv2d) and m.weight.shape[1] > 3:
                m.weight[:, 0] = 0  # dead in every reader, and the stream's channel 0 still sets the strength
    small = shrink_network(model, x)
    assert small.removed
    assert "noise" in small.notes[0]
    seen: list[list[Tensor]] = []
    for net in (model, small.model):
        mine: list[Tensor] = []
        handles = [
            m.register_forward_hook(lambda _m, given, out, to=mine: to.append(torch.stack((given[0], out))))
            for m in net.modules()
            if isinstance(m, Noise)
        ]
        logits(net, x, noisy=True)
        for handle in handles:
            handle.remove()
        seen.append(mine)
    assert len(seen[0]) == len(seen[1]) > 0
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert all(float((a[0] - a[1]).abs().max()) > 0 for a in seen[0])  # there was noise


# Proof and certificate -----------------------------------------------------------------------------------


def cut_alive(model: nn.Module) -> nn.Module:
    """A shrinker's mistake: neuron 0 of an MLP's first layer goes although it is alive."""
    wrong = copy.deepcopy(model)
    first, second = layers_of(wrong)[:2]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert first.bias is not None
    first.weight, first.bias = nn.Parameter(first.weight[1:]), nn.Parameter(first.bias[1:])
    second.weight = nn.Parameter(second.weight[:, 1:])
    return wrong


def test_a_shrinker_that_drops_a_live_channel_is_refused() -> None:
    model, x = network("mlp"), images("mlp")
    with pytest.raises(UserError, match=r"refused: .* nothing was written"):
        proven(model, Shrunk(cut_alive(model), {"1": (24, 23)}), x)
    assert proven(model, Shrunk(copy.deepcopy(model)), x)["difference"] == 0.0


def test_noise_that_changed_is_refused_although_silence_would_pass() -> None:
    model, x = network("enresnet"), images("enresnet")
    louder = copy.deepcopy(model)
    for m in louder.modules():
        if isinstance(m, Noise):
            m.a *= 1.5
    with pytest.raises(UserError, match="refused"):
        proven(model, Shrunk(louder), x)


def dead_perceptron() -> nn.Module:
    model = network("mlp").float()
    with torch.no_grad():
        layers_of(model)[1].weight[:, :7] = 0
    return model


def test_the_certificate_shrinks_by_itself() -> None:
    finding = dead_channels_change_nothing(subject(dead_perceptron()))
    assert finding.status == "passed"
    assert finding.measured["parameters"] == 65 * 24 + 25 * 12 + 13 * 10
    assert finding.measured["parameters left"] == 65 * 17 + 18 * 12 + 13 * 10
    assert dead_channels_change_nothing(subject(network("mlp").float())).status == "skipped"


def test_the_certificate_catches_a_shrinker_that_drops_a_live_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "robustbench_sparse.sparsity.shrink.surgery.shrink_network",
        lambda model, example, most=None: Shrunk(cut_alive(model), {"1": (24, 23)}),
    )
    assert (
        dead_channels_change_nothing(subject(dead_perceptron())).status == "passed"
    )  # neuron 0 is dead there
    assert dead_channels_change_nothing(subject(network("mlp").float())).status == "failed"


def test_without_torch_pruning_the_check_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    finding = dead_channels_change_nothing(subject(dead_perceptron()))
    assert finding.status == "skipped"
    assert "pip install 'robustbench_sparse[shrink]'" in finding.done + finding.why

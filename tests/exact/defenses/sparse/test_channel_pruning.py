"""Filters and channels pruned: which ones, by brute force; that nothing flows through them; that they stay gone."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.base import noise_from
from defenses import CLIP, PGDAT, Defense, EnResNet, L1FilterPrune, NetworkSlimming
from defenses.robust.enresnet import Noise
from robustbench_sparse.models.base import ModelSpec
from robustbench_sparse.models.convnet import ConvNet
from robustbench_sparse.models.lenet import LeNet
from robustbench_sparse.models.mlp import MLP
from robustbench_sparse.models.preact_resnet import PreActResNet, PreActResNetModule
from robustbench_sparse.models.resnet18 import ResNet18
from robustbench_sparse.models.vgg16 import VGG16
from robustbench_sparse.sparsity.counting import count_layers, count_sparsity
from tests.helpers.pruning_steps import IMAGES, LABELS, OPTIMIZERS, age, begin, lived, train, zeros

RESNET = PreActResNet(depth=8, widths=(4, 4, 6))
NORMED = MLP(hidden=(9, 7), batch_norm=True)
ZOO: list[ModelSpec] = [LeNet(), ConvNet(), VGG16(width=4), RESNET, ResNet18(width=4)]


def names(model: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, kinds)]


def logits(model: nn.Module, x: Tensor = IMAGES) -> Tensor:
    model.eval()
    with torch.no_grad():
        out: Tensor = model(x)
    return out


def with_zeroed_outputs(model: nn.Module, dead: dict[str, Tensor]) -> Tensor:
    """The logits when hooks zero the given output channels of some layers."""

    def hook(gone: Tensor) -> Any:
        return lambda m, args, out: out * (~gone).view(1, -1, *[1] * (out.ndim - 2))

    handles = [model.get_submodule(n).register_forward_hook(hook(gone)) for n, gone in dead.items()]
    out = logits(model)
    for handle in handles:
        handle.remove()
    return out


def dead_rows(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: (m.weight.detach().flatten(1) == 0).all(1)
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    }


def following_norm(model: nn.Module, layer: str) -> str:
    """The batch-norm layer behind a convolution in the zoo's residual networks and chains, by their names."""
    if isinstance(model, PreActResNetModule):
        return layer.replace("conv1", "bn2")
    head, _, last = layer.rpartition(".")
    guess = f"{head}.{int(last) + 1}" if last.isdigit() else f"{head}.{last.replace('conv', 'bn')}"
    return guess if isinstance(dict(model.named_modules()).get(guess), nn.BatchNorm2d) else layer


# Filters ----------------------------------------------------------------------------------------------------

PRUNED = {
    "LeNet": ["0", "3"],
    "ConvNet": ["0", "3"],
    "PreActResNet": [f"blocks.{i}.conv1" for i in range(3)],
    "ResNet18": [f"blocks.{i}.conv1" for i in range(8)],
}


@pytest.mark.parametrize("spec", ZOO, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("percent", [30.0, 60.0])
def test_smallest_filters_of_every_layer_go(spec: ModelSpec, percent: float) -> None:
    model, dense = lived(spec), lived(spec)
    prune = L1FilterPrune(sparsity=percent)
    begin(prune, model)
    layers = PRUNED.get(type(spec).__name__, names(model, nn.Conv2d))
    assert [n for n, w in prune.layers(model).items()] == layers
    expected: dict[str, Tensor] = {}
    for name in layers:
        sums = [float(f.detach().double().abs().sum()) for f in dense.get_parameter(f"{name}.weight")]
        order = sorted(range(len(sums)), key=sums.__getitem__)
        gone = torch.zeros(len(sums), dtype=torch.bool)
        gone[order[: round(percent / 100 * len(sums))]] = True
        expected[name] = gone
    rows = dead_rows(model)
    assert all(torch.equal(rows[name], gone) for name, gone in expected.items())
    counts = {layer["name"]: layer for layer in count_layers(prune.deploy(model))}
    assert all(counts[n]["zero_rows"] == 0 for n in set(counts) - set(layers))
    asked = prune.asked(model)
    assert asked is not None
    assert (asked.kind, asked.binding, list(asked.names)) == ("row", True, [f"{n}.weight" for n in layers])
    zero, whole = (sum(counts[n][k] for n in layers) for k in ("zero_rows", "rows"))
    assert asked.percent == pytest.approx(100 * zero / whole)
    # Nothing flows through a pruned filter, and through all others as before.
    hooked = with_zeroed_outputs(dense, {following_norm(dense, n): gone for n, gone in expected.items()})
    torch.testing.assert_close(logits(model), hooked, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(hooked, logits(dense), atol=1e-2)


def test_channels_count_where_the_next_convolution_reads_them() -> None:
    model = lived(VGG16(width=4))
    begin(L1FilterPrune(sparsity=50.0), model)
    layers = count_layers(model)
    for before, after in itertools.pairwise(layers[:-1]):
        assert after["zero_channels"] == before["zero_rows"] == before["rows"] // 2
    linear = model.get_submodule("linear")
    assert isinstance(linear, nn.Linear)
    assert int((linear.weight == 0).all(0).sum()) == layers[-2]["zero_rows"]


def test_runs_of_columns_behind_a_flattened_map() -> None:
    model, dense = lived(LeNet()), lived(LeNet())
    begin(L1FilterPrune(sparsity=50.0), model)
    gone = dead_rows(model)["3"]
    linear, was = model.get_parameter("7.weight"), dense.get_parameter("7.weight")
    assert torch.equal(linear == 0, gone.repeat_interleave(linear.shape[1] // 16).expand_as(linear))
    assert torch.equal(linear, was * (linear != 0))


def test_biases_and_norms_go_too() -> None:
    model = lived(LeNet())
    begin(L1FilterPrune(sparsity=50.0), model)
    for name in ("0", "3"):
        assert torch.equal(model.get_parameter(f"{name}.bias") == 0, dead_rows(model)[name])
    model = lived(RESNET)
    begin(L1FilterPrune(sparsity=50.0), model)
    for i in range(3):
        gone = dead_rows(model)[f"blocks.{i}.conv1"]
        assert torch.equal(model.get_parameter(f"blocks.{i}.bn2.weight") == 0, gone)
        assert torch.equal(model.get_parameter(f"blocks.{i}.bn2.bias") == 0, gone)
        assert not (model.get_parameter(f"blocks.{i}.bn1.weight") == 0).any()


def test_global_scope_ranks_by_the_mean_weight() -> None:
    model = nn.Sequential(*(nn.Conv2d(a, b, 1, bias=False) for a, b in ((1, 2), (2, 2), (2, 1))))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, -4.0]).view(2, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([[2.0, -2.5], [5.0, 6.0]]).view(2, 2, 1, 1))
    begin(L1FilterPrune(sparsity=50.0, scope="global", keep_one=False), model)
    assert model[0].weight.flatten().tolist() == [0, -4]  # means 3, 4, 2.25, 5.5; sums 3, 4, 4.5, 11
    assert model[1].weight.flatten(1).tolist() == [[0, 0], [0, 6]]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_last_filter_of_a_layer_is_kept_unless_told_otherwise(scope: Any) -> None:
    model = lived(LeNet())
    prune = L1FilterPrune(sparsity=99.0, scope=scope)
    begin(prune, model)
    assert [int((~dead_rows(model)[n]).sum()) for n in ("0", "3")] == [1, 1]
    asked = prune.asked(model)
    assert asked is not None
    assert asked.percent == pytest.approx(100 * 20 / 22)
    begin(L1FilterPrune(sparsity=99.0, scope=scope, keep_one=False), model)
    assert [int((~dead_rows(model)[n]).sum()) for n in ("0", "3")] == [0, 0]
    assert torch.equal(logits(model), logits(model)[:1].expand(len(IMAGES), -1))


def test_neurons_of_hidden_linear_layers() -> None:
    model, dense = (
        lived(MLP(hidden=(9, 7), activation="sigmoid")),
        lived(MLP(hidden=(9, 7), activation="sigmoid")),
    )
    with pytest.raises(ValueError, match=r"^l1_filter_prune: expected"):
        L1FilterPrune(sparsity=30.0).check(model)
    begin(L1FilterPrune(sparsity=30.0, linear=True), model)
    rows = dead_rows(model)
    assert [int(r.sum()) for r in rows.values()] == [3, 2, 0]
    # sigmoid(0) is 1/2, yet what is pruned is 0 to whatever reads it: as if the neuron were not there.
    hidden = IMAGES.flatten(1)
    for i, name in enumerate(("1", "3", "5")):
        w, b = dense.get_parameter(f"{name}.weight"), dense.get_parameter(f"{name}.bias")
        if i > 0:
            left = ~rows[("1", "3")[i - 1]]
            hidden, w = hidden.sigmoid()[:, left], w[:, left]
        hidden = hidden @ w.T + b
    torch.testing.assert_close(logits(model), hidden)


def test_branches_are_pruned_on_request_and_the_skip_lives_on() -> None:
    model, dense = lived(RESNET), lived(RESNET)
    prune = L1FilterPrune(sparsity=50.0, branches=True)
    begin(prune, model)
    ends = [*(f"blocks.{i}.conv2" for i in range(3)), "blocks.1.shortcut", "blocks.2.shortcut"]
    assert set(prune.layers(model)) == {*(f"blocks.{i}.conv1" for i in range(3)), *ends}
    rows = dead_rows(model)
    assert all(int(rows[n].sum()) == len(rows[n]) // 2 for n in prune.layers(model))
    outputs = {following_norm(dense, n): rows[n] for n in prune.layers(model)}
    torch.testing.assert_close(logits(model), with_zeroed_outputs(dense, outputs), rtol=1e-4, atol=1e-4)


def test_ties_are_pruned_to_the_exact_share() -> None:
    model = LeNet().build(3, 16, 10)
    with torch.no_grad():
        for name in ("0", "3"):
            model.get_parameter(f"{name}.weight").fill_(1.0)
    begin(L1FilterPrune(sparsity=50.0), model)
    assert [int(dead_rows(model)[n].sum()) for n in ("0", "3")] == [3, 8]


# Slimming ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", [VGG16(width=4), RESNET, ResNet18(width=4), NORMED], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("percent", [20.0, 55.0])
def test_smallest_scales_of_all_layers_go(spec: ModelSpec, percent: float) -> None:
    model, dense = lived(spec), lived(spec)
    slim = NetworkSlimming(sparsity=percent, keep_one=False)
    begin(slim, model)
    norms = names(dense, nn.BatchNorm1d, nn.BatchNorm2d)
    assert set(slim.layers(model)) == set(norms)
    sizes = sorted(
        (abs(g), name, c)
        for name in norms
        for c, g in enumerate(dense.get_parameter(f"{name}.weight").tolist())
    )
    gone = {(name, c) for _, name, c in sizes[: round(percent / 100 * len(sizes))]}
    dead = {
        n: torch.tensor([(n, c) in gone for c in range(len(dense.get_parameter(f"{n}.weight")))])
        for n in norms
    }
    for name, channels in dead.items():
        for kind in ("weight", "bias"):
            assert torch.equal(model.get_parameter(f"{name}.{kind}") == 0, channels)
    deployed = slim.deploy(model)
    torch.testing.assert_close(logits(deployed), with_zeroed_outputs(dense, dead), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(deployed), logits(dense), atol=1e-2)


@pytest.mark.parametrize("spec", [VGG16(width=4), ResNet18(width=4), NORMED], ids=lambda s: type(s).__name__)
def test_a_filter_of_every_scale_counts_what_was_asked(spec: ModelSpec) -> None:
    model = lived(spec)
    slim = NetworkSlimming(sparsity=40.0)
    begin(slim, model)
    asked = slim.asked(model)
    assert asked is not None
    assert (asked.kind, asked.binding) == ("row", True)
    counts = [layer for layer in count_layers(slim.deploy(model)) if f"{layer['name']}.weight" in asked.names]
    assert len(counts) == len(names(model, nn.BatchNorm1d, nn.BatchNorm2d))
    zero, whole = (sum(layer[k] for layer in counts) for k in ("zero_rows", "rows"))
    assert zero == round(0.4 * whole)
    assert asked.percent == pytest.approx(100 * zero / whole)
    if isinstance(spec, VGG16):
        channels = count_sparsity(slim.deploy(model), 3, 16)["layers"]
        for before, after in itertools.pairwise(channels[:-1]):
            assert after["zero_channels"] == before["zero_rows"]


def test_in_a_preactivation_resnet_the_skip_keeps_its_channels() -> None:
    model = lived(RESNET)
    slim = NetworkSlimming(sparsity=50.0)
    begin(slim, model)
    assert slim.asked(model) is None
    rows = dead_rows(model)
    for i in range(3):
        block = model.get_submodule(f"blocks.{i}")
        first, second = block.bn1.weight == 0, block.bn2.weight == 0
        assert torch.equal((block.conv1.weight == 0).all((0, 2, 3)), first)
        assert torch.equal(rows[f"blocks.{i}.conv1"], second)
        assert torch.equal((block.conv2.weight == 0).all((0, 2, 3)), second)
        assert not rows[f"blocks.{i}.conv2"].any()
        if block.shortcut is not None:
            assert torch.equal((block.shortcut.weight == 0).all((0, 2, 3)), first)
    assert not rows["conv"].any()
    assert torch.equal((model.linear.weight == 0).all(0), model.bn.weight == 0)


def test_one_channel_of_every_layer_is_kept() -> None:
    model = lived(VGG16(width=4))
    begin(NetworkSlimming(sparsity=99.0), model)
    left = [int(m.weight.count_nonzero()) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert left.count(1) >= 10
    assert sum(left) == max(
        13, sum(len(m.weight) for m in model.modules() if isinstance(m, nn.BatchNorm2d)) // 100
    )


def test_equal_scales_are_pruned_to_the_exact_share() -> None:
    model = VGG16(width=4).build(3, 16, 10)  # fresh: all scales are 1
    begin(NetworkSlimming(sparsity=37.0), model)
    scales = torch.cat([m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    assert int((scales == 0).sum()) == round(0.37 * len(scales))


def test_penalty_is_the_l1_norm_of_all_scales() -> None:
    model = lived(RESNET)
    with torch.no_grad():
        model.get_parameter("bn.weight")[0] = 0.0
    slim = NetworkSlimming(lam=0.3)
    s = begin(slim, model)
    term = slim.penalty(s)
    assert term is not None
    gammas = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert term.item() == pytest.approx(0.3 * sum(g.detach().abs().sum().item() for g in gammas), rel=1e-5)
    term.backward()  # type: ignore[no-untyped-call]
    for g in gammas:
        assert torch.equal(g.grad, 0.3 * g.sign())
    assert all(p.grad is None for p in model.parameters() if not any(p is g for g in gammas))


def test_slimming_needs_batch_norm() -> None:
    for slim in (NetworkSlimming(lam=0.1), NetworkSlimming(sparsity=10.0)):
        with pytest.raises(ValueError, match=r"^network_slimming: expected a network with batch-norm"):
            slim.check(lived(LeNet()))
        slim.check(lived(NORMED))
    NetworkSlimming().check(lived(LeNet()))


def test_normalised_logits_are_no_channels() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2), nn.BatchNorm1d(2)
    )
    assert list(NetworkSlimming(sparsity=10.0).layers(model)) == ["2"]


# Both -------------------------------------------------------------------------------------------------------

BOTH = [L1FilterPrune(sparsity=40.0), NetworkSlimming(sparsity=40.0, lam=1e-3)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("defense", BOTH, ids=lambda d: type(d).__name__)
def test_all_of_it_stays_gone_while_the_rest_trains(defense: Defense, optimizer: str) -> None:
    model = lived(RESNET)
    defense = dataclasses.replace(defense)
    s = begin(defense, model)
    before, pattern = {k: p.detach().clone() for k, p in model.named_parameters()}, zeros(model)
    assert any(k.endswith("bn2.bias") and z.any() for k, z in pattern.items())
    losses = train(defense, s, OPTIMIZERS[optimizer](model.parameters()), 15)
    assert losses[-1] < losses[0]
    for name, p in model.named_parameters():
        assert p[pattern[name]].count_nonzero() == 0
        assert (p != before[name]).any()
    changed = sum(int((p != before[name]).sum()) for name, p in model.named_parameters())
    assert changed > 0.7 * sum(int((~z).sum()) for z in pattern.values())  # some have no gradient
    gone = {f"blocks.{i}.bn2": pattern[f"blocks.{i}.bn2.bias"] for i in range(3)}
    assert torch.equal(logits(defense.deploy(model)), with_zeroed_outputs(model, gone))


@pytest.mark.parametrize("defense", BOTH, ids=lambda d: type(d).__name__)
def test_composes_with_adversarial_training_penalty_and_ensemble(defense: Defense) -> None:
    ensemble, adversarial, clip = EnResNet(), PGDAT(eps=0.1, steps=2), CLIP(lam=0.1, pairs=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ensemble.wrap(lambda: RESNET.build(3, 16, 10))()
        age(model)
    defense = dataclasses.replace(defense)
    e, a, c, s = (begin(d, model) for d in (ensemble, adversarial, clip, defense))
    pattern = zeros(model)
    for member in range(2):
        assert any(z.any() for k, z in pattern.items() if k.startswith(f"members.{member}."))
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    model.train()
    for _ in range(3):
        for step in (e, a, c, s):
            step.x, step.y = IMAGES[:8], LABELS[:8]
        x = adversarial.perturb(a)
        loss = nn.functional.cross_entropy(model(x), LABELS[:8])
        for d, step in ((clip, c), (defense, s)):
            term = d.penalty(step)
            loss = loss if term is None else loss + term
        optimizer.zero_grad()
        loss.backward()
        defense.before_step(s)
        optimizer.step()
        defense.after_step(s)
    deployed = defense.deploy(clip.deploy(ensemble.deploy(model)))
    own = dict(deployed.named_parameters())
    assert all(own[k][z].count_nonzero() == 0 for k, z in pattern.items())
    assert all(m.noise_source is None for m in deployed.modules() if isinstance(m, Noise))
    gone = {k.removesuffix(".bias"): z for k, z in pattern.items() if k.endswith("bn2.bias")}

    class Same:
        def normal(self, like: Tensor) -> Tensor:
            return torch.linspace(-1, 1, like.numel()).view_as(like)

    with noise_from(deployed, Same()):
        assert torch.equal(logits(deployed), with_zeroed_outputs(deployed, gone))
        assert not torch.equal(logits(deployed), logits(deployed.members[0]))


@pytest.mark.parametrize("defense", BOTH, ids=lambda d: type(d).__name__)
def test_nothing_asked_changes_nothing(defense: Defense) -> None:
    off = type(defense)()
    model = lived(RESNET)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    begin(off, model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert off.deploy(model) is model
    assert off.asked(model) is None
    assert off.memory == {}

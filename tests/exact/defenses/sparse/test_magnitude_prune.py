"""Magnitude pruning and held zeros: exact counts, ties, rounds, rewinding, any optimizer, resuming."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses import CLIP, PGDAT, Defense, EnResNet, HoldZeros, MagnitudePrune
from defenses.base import chosen_weights
from defenses.regularisers import KEPT
from defenses.sparse.masks import largest_last, share_of, smallest
from robustbench_sparse.models.lenet import LeNet
from robustbench_sparse.models.mlp import MLP
from robustbench_sparse.models.preact_resnet import PreActResNet
from robustbench_sparse.models.vgg16 import VGG16
from robustbench_sparse.sparsity.counting import count_layers, count_sparsity
from tests.helpers.pruning_steps import IMAGES, OPTIMIZERS, begin, end_epoch, lived, train, zeros

SMALL = MLP(hidden=(12, 7), activation="elu")  # no neuron is dead
RESNET = PreActResNet(depth=8, widths=(4, 4, 6))


def layers_of(*weights: Any) -> nn.Module:
    """Linear layers with these weights and no bias."""
    model = nn.Sequential()
    for w in weights:
        w = torch.tensor(w)
        layer = nn.Linear(w.shape[1], w.shape[0], bias=False)
        layer.weight.data.copy_(w)
        model.append(layer)
    return model


def flat(model: nn.Module) -> Tensor:
    return torch.cat([w.detach().flatten() for w in chosen_weights(model, "all").values()])


# Masks ------------------------------------------------------------------------------------------------------


def test_smallest_marks_exactly_as_many_as_asked_under_ties() -> None:
    scores = [torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 0.0, 1.0])]
    for count in range(8):
        chosen = smallest(scores, count)
        assert [c.shape for c in chosen] == [s.shape for s in scores]
        taken = torch.cat([c.flatten() for c in chosen])
        assert taken.sum() == count
        values = torch.cat([s.flatten() for s in scores])
        assert sorted(values.tolist())[:count] == sorted(values[taken].tolist())
    first_of_equals = smallest(scores, 2)
    assert first_of_equals[0].tolist() == [[False, True], [False, False]]
    assert first_of_equals[1].tolist() == [False, True, False]


def test_share_is_rounded() -> None:
    assert [share_of(p, 10) for p in (0, 4, 6, 29, 99, 100)] == [0, 0, 1, 3, 10, 10]
    assert share_of(29, 100) == 29  # 0.29 * 100 is a little less


def test_largest_last_shields_one_of_each_layer() -> None:
    layers = [torch.tensor([1.0, 5.0, 5.0]), torch.tensor([9.0])]
    shielded = largest_last(layers)
    assert [s.isinf().tolist() for s in shielded] == [[False, True, False], [True]]
    assert layers[0].tolist() == [1, 5, 5]


# Counts -----------------------------------------------------------------------------------------------------


def test_global_scope_ranks_all_layers_and_layer_scope_each() -> None:
    weights = ([[1.0, -2.0], [3.0, -4.0]], [[-10.0, 20.0], [30.0, 40.0]])
    model = layers_of(*weights)
    begin(MagnitudePrune(sparsity=50.0), model)
    assert flat(model).tolist() == [0, 0, 0, 0, -10, 20, 30, 40]
    model = layers_of(*weights)
    begin(MagnitudePrune(sparsity=50.0, scope="layer"), model)
    assert flat(model).tolist() == [0, 0, 3, -4, 0, 0, 30, 40]


@pytest.mark.parametrize("layers", ["conv", "linear", "all"])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("percent", [0.3, 37.0, 90.0, 99.9])
def test_the_judged_network_has_exactly_what_was_asked(layers: Any, scope: Any, percent: float) -> None:
    model = lived(LeNet())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    prune = MagnitudePrune(sparsity=percent, scope=scope, layers=layers)
    begin(prune, model)
    deployed = prune.deploy(model)
    chosen = chosen_weights(deployed, layers)
    counts = {layer["name"]: layer for layer in count_layers(deployed)}
    whole, zero = 0, 0
    for name, layer in counts.items():
        n, z = layer["weights"], layer["zero_weights"]
        if f"{name}.weight" not in chosen:
            assert z == 0
            continue
        whole, zero = whole + n, zero + z
        if scope == "layer":
            assert z == round(percent / 100 * n)
    if scope == "global":
        assert zero == round(percent / 100 * whole)
    asked = prune.asked(model)
    assert asked is not None
    assert (asked.kind, asked.binding, asked.names) == ("weight", True, tuple(chosen))
    assert asked.percent == pytest.approx(100 * zero / whole)
    assert asked.percent == pytest.approx(percent, abs=100 * len(chosen) / whole)
    for name, now in deployed.state_dict().items():  # what is left is as it was, and all else untouched
        was = before[name]
        assert torch.equal(now, was if name not in chosen else was * (now != 0))
    if scope == "global":
        kept = torch.cat([before[n][deployed.state_dict()[n] != 0].abs() for n in chosen])
        gone = torch.cat([before[n][deployed.state_dict()[n] == 0].abs() for n in chosen])
        assert gone.max() <= kept.min()


@pytest.mark.parametrize(("group", "layers"), [("kernel", "conv"), ("channel", "conv"), ("row", "all")])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_groups_are_pruned_whole_and_by_their_root_mean_square(group: Any, layers: Any, scope: Any) -> None:
    model = lived(VGG16(width=4))
    prune = MagnitudePrune(sparsity=60.0, group=group, layers=layers, scope=scope, rounds=2, every=1)
    s = begin(prune, model)
    before = {name: w.detach().clone() for name, w in chosen_weights(model, layers).items()}
    prune.end_epoch(s)
    deployed = prune.deploy(model)
    asked = prune.asked(model)
    assert asked is not None
    assert asked.kind == group
    counts = [layer for layer in count_layers(deployed) if f"{layer['name']}.weight" in before]
    whole, zero = (sum(layer[f"{z}{group}s"] for layer in counts) for z in ("", "zero_"))
    assert asked.percent == pytest.approx(100 * zero / whole)
    assert asked.percent == pytest.approx(60, abs=100 * len(before) / whole)
    after = chosen_weights(deployed, layers)
    means = {n: (w**2).mean([d for d in range(w.ndim) if d not in KEPT[group]]) for n, w in before.items()}
    gone = {
        n: (after[n] == 0).all([d for d in range(w.ndim) if d not in KEPT[group]]) for n, w in before.items()
    }
    for n, w in after.items():  # whole groups or nothing
        assert int((w == 0).sum()) == int(gone[n].sum()) * w.numel() // gone[n].numel()
    pairs = [*means] if scope == "layer" else [None]
    for n in pairs:
        m = means[n].flatten() if n else torch.cat([v.flatten() for v in means.values()])
        g = gone[n].flatten() if n else torch.cat([v.flatten() for v in gone.values()])
        assert m[g].max() <= m[~g].min()


def test_equal_weights_are_pruned_to_the_exact_share() -> None:
    model = layers_of(torch.ones(10, 10).tolist())
    begin(MagnitudePrune(sparsity=37.0), model)
    assert int((flat(model) == 0).sum()) == 37


def test_sparsity_zero_changes_and_asks_nothing() -> None:
    model = lived(SMALL)
    prune = MagnitudePrune()
    s = begin(prune, model)
    assert prune.memory == {}
    assert prune.deploy(model) is model
    assert prune.asked(model) is None
    assert end_epoch(prune, s, 0) == {}


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^layers: expected a network with such weights"):
        MagnitudePrune(sparsity=1.0, layers="conv").check(lived(SMALL))


# Holding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("defense", [HoldZeros(), MagnitudePrune(sparsity=60.0)], ids=["hold", "prune"])
def test_zeros_stay_and_the_others_train(defense: Defense, optimizer: str) -> None:
    model = lived(SMALL)
    defense = dataclasses.replace(defense)
    if isinstance(defense, HoldZeros):
        begin(MagnitudePrune(sparsity=60.0), model)
    s = begin(defense, model)
    before, pattern = {k: p.detach().clone() for k, p in model.named_parameters()}, zeros(model)
    losses = train(defense, s, OPTIMIZERS[optimizer](model.parameters()), 30)
    assert losses[-1] < losses[0] - 0.1
    for name, p in model.named_parameters():
        assert p[pattern[name]].count_nonzero() == 0
        assert (p != before[name])[~pattern[name]].double().mean() > 0.9
    assert int(sum(z.sum() for z in pattern.values())) == round(0.6 * flat(model).numel())
    kept = [p[~pattern[name]].count_nonzero() for name, p in model.named_parameters()]
    if optimizer in ("momentum", "adam"):
        assert sum(kept) == sum((~z).sum() for z in pattern.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_held_weights_leave_nothing_in_the_optimizer(optimizer: str) -> None:
    model = lived(SMALL)
    hold = HoldZeros(threshold=0.2)
    s = begin(hold, model)
    pattern = zeros(model)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    train(hold, s, optimizer, 5)
    for name, p in model.named_parameters():
        for value in optimizer.state[p].values():
            if isinstance(value, Tensor) and value.shape == p.shape:
                assert value[pattern[name]].count_nonzero() == 0


def test_hold_zeros_looks_at_the_chosen_layers_and_rounds_down_to_zero() -> None:
    model = layers_of([[0.0, 0.1], [-0.2, 0.3]])
    hold = HoldZeros(threshold=0.2)
    begin(hold, model)
    assert torch.equal(flat(model), torch.tensor([0, 0, 0, 0.3]))
    assert hold.memory["kept"]["0.weight"].tolist() == [[False, False], [False, True]]
    model = lived(LeNet())
    hold = HoldZeros(threshold=0.01, layers="conv")
    begin(hold, model)
    assert set(hold.memory["kept"]) == set(chosen_weights(model, "conv"))
    assert hold.asked(model) is None


def test_a_dense_network_has_nothing_to_hold() -> None:
    model = lived(SMALL)
    hold = HoldZeros()
    begin(hold, model)
    assert hold.memory == {}
    assert hold.deploy(model) is model


def test_deploy_masks_what_another_method_has_filled_up() -> None:
    model = layers_of([[1.0, 2.0], [3.0, 4.0]])
    prune = MagnitudePrune(sparsity=50.0)
    begin(prune, model)
    with torch.no_grad():
        chosen_weights(model, "all")["0.weight"].fill_(7.0)
    assert flat(prune.deploy(model)).tolist() == [0, 0, 7, 7]
    assert flat(model).tolist() == [7, 7, 7, 7]


# Rounds -----------------------------------------------------------------------------------------------------


def rounds_of(prune: MagnitudePrune, model: nn.Module, epochs: int) -> list[int]:
    """Zeros of the deployed network in every epoch, as the loop looks at it: before the epoch's last hook."""
    s = begin(prune, model, epochs)
    optimizer, counts = OPTIMIZERS["momentum"](model.parameters()), []
    for epoch in range(epochs):
        train(prune, s, optimizer, 2)
        counts.append(int((flat(prune.deploy(model)) == 0).sum()))
        end_epoch(prune, s, epoch)
    return counts


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_rounds_prune_the_same_share_of_what_is_left(scope: Any) -> None:
    model = lived(SMALL)
    n = flat(model).numel()
    prune = MagnitudePrune(sparsity=87.5, rounds=3, every=2, start=1, scope=scope)
    expected = [0.0, 0.5, 0.5, 0.75, 0.75, 0.875, 0.875]
    slack = 0 if scope == "global" else 3  # every layer is rounded by itself
    for got, share in zip(rounds_of(prune, model, 7), expected, strict=True):
        assert abs(got - round(share * n)) <= slack
    assert n == 768 * 12 + 12 * 7 + 7 * 10


def test_first_round_at_the_beginning_and_log() -> None:
    model = lived(SMALL)
    n = flat(model).numel()
    prune = MagnitudePrune(sparsity=75.0, rounds=2)
    s = begin(prune, model, epochs=2)
    assert int((flat(model) == 0).sum()) == n // 2
    assert end_epoch(prune, s, 0) == {"pruned": pytest.approx(50.0, abs=0.01)}
    assert int((flat(model) == 0).sum()) == round(0.75 * n)
    assert end_epoch(prune, s, 1) == {"pruned": pytest.approx(75.0, abs=0.01)}


def test_a_pruned_weight_stays_pruned_even_where_kept_ones_are_zero() -> None:
    model = layers_of([[5.0, 6.0, 7.0, 8.0, 1.0, 2.0, 3.0, 4.0]])
    prune = MagnitudePrune(sparsity=75.0, rounds=2)
    s = begin(prune, model, epochs=3)
    assert flat(model).tolist() == [5, 6, 7, 8, 0, 0, 0, 0]
    with torch.no_grad():
        chosen_weights(model, "all")["0.weight"][0, :3] = 0.0  # by chance: more zeros than the six asked for
    end_epoch(prune, s, 0)
    assert prune.memory["kept"]["0.weight"].tolist() == [[False, False, True, True, *4 * [False]]]


@pytest.mark.parametrize(("start", "rounds", "every", "epochs"), [(3, 1, 1, 3), (0, 3, 2, 4), (1, 2, 2, 3)])
def test_rounds_that_come_too_late_are_refused(start: int, rounds: int, every: int, epochs: int) -> None:
    prune = MagnitudePrune(sparsity=50.0, start=start, rounds=rounds, every=every)
    with pytest.raises(ValueError, match=r"^rounds: expected the last round .*, got"):
        begin(prune, lived(SMALL), epochs)
    begin(prune, lived(SMALL), epochs + 1)


def test_rewind_restores_the_exact_values() -> None:
    model = lived(RESNET)
    first = {k: v.clone() for k, v in model.state_dict().items()}
    prune = MagnitudePrune(sparsity=64.0, rounds=2, every=1, start=1, rewind="start")
    s = begin(prune, model, epochs=3)
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    for epoch in range(3):
        train(prune, s, optimizer, 3)
        trained = {k: v.clone() for k, v in model.state_dict().items()}
        end_epoch(prune, s, epoch)
        if epoch == 2:  # no round is due
            assert all(torch.equal(trained[k], v) for k, v in model.state_dict().items())
            assert optimizer.state
            break
        assert not optimizer.state  # momentum belongs to the weights that are gone
        ranked = torch.cat([trained[k].abs().flatten() for k in prune.memory["kept"]])
        kept = torch.cat([m.flatten() for m in prune.memory["kept"].values()])
        assert ranked[kept].min() >= ranked[~kept].max()  # by the trained size, not the first one
        for name, value in model.state_dict().items():
            mask = prune.memory["kept"].get(name, torch.ones_like(value, dtype=torch.bool))
            assert torch.equal(value, first[name] * mask)
        assert int((flat(model) == 0).sum()) == round((0.4 if epoch == 0 else 0.64) * flat(model).numel())
    assert "start" not in prune.memory


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rewind_holds_with_optimizers_that_compute_weights_afresh(optimizer: str) -> None:
    model = lived(SMALL)
    first = {k: v.detach().clone() for k, v in model.named_parameters()}
    prune = MagnitudePrune(sparsity=50.0, start=1, rewind="start")
    s = begin(prune, model)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    train(prune, s, optimizer, 10)
    end_epoch(prune, s, 0)
    for group in optimizer.param_groups:
        group["lr"] = 1e-6
    train(prune, s, optimizer, 1)  # a step of no length: where do the weights come from?
    for name, p in model.named_parameters():
        mask = prune.memory["kept"].get(name, torch.ones_like(p, dtype=torch.bool))
        torch.testing.assert_close(p.detach(), first[name] * mask, atol=2e-3, rtol=0)


# Going on after a kill --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rewind", ["none", "start"])
@pytest.mark.parametrize("killed_after", [1, 2, 3, 4])
def test_a_resumed_run_prunes_no_second_time(rewind: Any, killed_after: int) -> None:
    settings = MagnitudePrune(sparsity=75.0, rounds=2, start=1, every=2, rewind=rewind)

    def epochs(prune: MagnitudePrune, model: nn.Module, s: Any, optimizer: Any, which: range) -> None:
        for epoch in which:
            train(prune, s, optimizer, 2)
            end_epoch(prune, s, epoch)

    model, prune = lived(SMALL), dataclasses.replace(settings)
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    epochs(prune, model, begin(prune, model, 5), optimizer, range(killed_after))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), prune.state_dict()], file)
    epochs(prune, model, begin_without_pruning(prune, model), optimizer, range(killed_after, 5))

    file.seek(0)
    weights, state, memory = torch.load(file, weights_only=True)
    other, resumed = lived(SMALL, seed=9), dataclasses.replace(settings)  # the network of a fresh process
    s = begin(resumed, other, 5)
    another = OPTIMIZERS["momentum"](other.parameters())
    other.load_state_dict(weights)
    another.load_state_dict(state)
    resumed.load_state_dict(memory)
    epochs(resumed, other, s, another, range(killed_after, 5))
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert int((flat(other) == 0).sum()) == round(0.75 * flat(other).numel())


def begin_without_pruning(prune: MagnitudePrune, model: nn.Module) -> Any:
    """The step of a run that goes on: its ``begin`` is behind it."""
    return begin(Defense(), model, 5)


def test_one_shot_pruning_resumes_with_its_first_masks() -> None:
    model, prune = lived(SMALL), MagnitudePrune(sparsity=50.0)
    s = begin(prune, model)
    train(prune, s, OPTIMIZERS["adam"](model.parameters()), 3)
    saved, weights = prune.state_dict(), model.state_dict()
    other, resumed = lived(SMALL, seed=9), MagnitudePrune(sparsity=50.0)
    t = begin(resumed, other)
    train(resumed, t, OPTIMIZERS["adam"](other.parameters()), 1)  # its factors are in use already
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    train(resumed, t, OPTIMIZERS["adam"](other.parameters()), 3)
    assert all(torch.equal(zeros(model)[k], zeros(other)[k]) for k in saved["kept"])


# Beside others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defense", [MagnitudePrune(sparsity=70.0), HoldZeros(threshold=0.05)])
def test_composes_with_adversarial_training_penalty_and_ensemble(defense: Defense) -> None:
    others = [EnResNet(), PGDAT(eps=0.1, steps=2), CLIP(lam=0.1, pairs=4)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = others[0].wrap(lambda: RESNET.build(3, 16, 10))()
    steps = [begin(d, model) for d in (*others, defense)]
    pattern = {k: z for k, z in zeros(model).items() if k in defense.memory["kept"]}
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    for _ in range(3):
        x, y = IMAGES[:8], torch.arange(8)
        for s in steps:
            s.x, s.y = x, y
        steps[1].x = others[1].perturb(steps[1])
        loss = nn.functional.cross_entropy(model(steps[1].x), y)
        steps[2].x = steps[1].x
        penalty = others[2].penalty(steps[2])
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        defense.before_step(steps[3])
        optimizer.step()
        defense.after_step(steps[3])
    deployed = model
    for d in (*others, defense):
        deployed = d.deploy(deployed)
    assert all(deployed.get_parameter(k)[z].count_nonzero() == 0 for k, z in pattern.items())
    assert len({k.split(".")[1] for k in pattern}) == 2  # both members
    if isinstance(defense, MagnitudePrune):
        assert count_sparsity(deployed, 3, 16)["weight_sparsity"] == pytest.approx(70.0, abs=0.05)

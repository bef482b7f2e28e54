"""SET, RigL and Flying Bird: layers' shares, trades by hand, momentum, held zeros, the law of the density."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses import AWP, EMA, PGDAT, SET, TRADES, EnResNet, FlyingBird, RigL
from defenses.base import chosen_weights
from defenses.sparse.densities import counts_of, densities_of
from defenses.sparse.dynamic import Dynamic
from robustbench_sparse.config.optimizers import AdamSpec, OptimizerSpec, SGDSpec
from robustbench_sparse.models.mlp import MLP
from tests.helpers.defense_loop import Loop, equal, fresh, same_run
from tests.helpers.pruning_steps import IMAGES, LABELS, begin, lived, step_of, train
from tests.helpers.zeros import zero_shares

SMALL = MLP(hidden=(12, 7), batch_norm=True)
KINDS: dict[str, type[Dynamic]] = {"set": SET, "rigl": RigL, "flying_bird": FlyingBird}
OPTIMIZERS: dict[str, OptimizerSpec] = {
    "momentum": SGDSpec(lr=0.1, momentum=0.9, weight_decay=5e-3),
    "adam": AdamSpec(lr=0.02, weight_decay=1e-3),
}


def kept_of(d: Dynamic) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in d.memory["kept"].items()}


# Densities ---------------------------------------------------------------------------------------------------

LAYERS = {"a": (200, 784), "b": (80, 200), "c": (10, 80)}
CONVS = {"first": (16, 3, 3, 3), "second": (32, 16, 3, 3), "last": (10, 32)}


@pytest.mark.parametrize("shapes", [LAYERS, CONVS])
@pytest.mark.parametrize("density", [0.01, 0.1])
def test_erk_is_the_closed_formula_where_no_layer_is_full(shapes: dict[str, Any], density: float) -> None:
    """Density of a layer = eps * sum of its dimensions / their product, so it is left eps * that sum of weights."""
    sums, sizes = {k: sum(v) for k, v in shapes.items()}, {k: math.prod(v) for k, v in shapes.items()}
    eps = density * sum(sizes.values()) / sum(sums.values())
    expected = {k: eps * sums[k] / sizes[k] for k in shapes}
    if max(expected.values()) <= 1:
        assert densities_of(shapes, density, "erk") == pytest.approx(expected)
    else:  # of these it is the smallest layer alone, which is then dense; the others share what it leaves
        full = max(expected, key=lambda k: expected[k])
        rest = [k for k in shapes if k != full]
        eps = (density * sum(sizes.values()) - sizes[full]) / sum(sums[k] for k in rest)
        expected = {k: 1.0 if k == full else eps * sums[k] / sizes[k] for k in shapes}
        assert max(expected.values()) <= 1
        assert densities_of(shapes, density, "erk") == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["erk", "uniform"])
@pytest.mark.parametrize("shapes", [LAYERS, CONVS, {"only": (3, 4)}])
@pytest.mark.parametrize("sparsity", [0.0, 0.4, 20.0, 50.0, 90.0, 99.0, 99.9, 100.0])
def test_the_layers_add_up_to_what_is_asked(rule: Any, shapes: dict[str, Any], sparsity: float) -> None:
    sizes = {k: math.prod(v) for k, v in shapes.items()}
    whole = sum(sizes.values())
    counts = counts_of(shapes, sparsity, rule)
    assert sum(counts.values()) == whole - round(sparsity / 100 * whole)
    densities = densities_of(shapes, sum(counts.values()) / whole, rule)
    for name, n in counts.items():
        assert 0 <= n <= sizes[name]
        assert n == pytest.approx(densities[name] * sizes[name], abs=1)
    if rule == "uniform":
        assert set(densities.values()) == {sum(counts.values()) / whole}


# One trade by hand -------------------------------------------------------------------------------------------


def traded(
    w: np.ndarray[Any, Any],
    kept: np.ndarray[Any, Any],
    growth: np.ndarray[Any, Any],
    drop: int,
    grow: int,
) -> np.ndarray[Any, Any]:
    """The smallest |w| of those kept go; of those not left then, the ones of largest growth come; by sorting."""
    size = np.where(kept, np.abs(w), np.inf).ravel()
    stays = kept.ravel().copy()
    stays[np.argsort(size, kind="stable")[:drop]] = False
    may = np.where(stays, -np.inf, growth.ravel())
    new = stays.copy()
    new[np.argsort(-may, kind="stable")[:grow]] = True
    shaped: np.ndarray[Any, Any] = new.reshape(w.shape)
    return shaped


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rigl_trades_as_its_algorithm_says(optimizer: str) -> None:
    """Four steps, a trade at the second: masks against numpy, held gradients, erased momentum, weights."""
    model = lived(SMALL)
    rigl = RigL(
        sparsity=60.0, drop=0.4, every=2, end=1.0, densities="uniform"
    )  # a full layer would trade nothing
    s = begin(rigl, model, epochs=3)
    s.steps_per_epoch = 4
    before = kept_of(rigl)
    s.optimizer = optimizer_ = OPTIMIZERS[optimizer].build(model)
    own = dict(model.named_parameters())
    for step in range(2):
        s.step = step
        model.train()
        optimizer_.zero_grad()
        F.cross_entropy(model(IMAGES), LABELS).backward()  # type: ignore[no-untyped-call]
        dense = {k: g.clone() for k in before if (g := own[k].grad) is not None}
        at = {k: own[k].detach().clone() for k in before}
        rigl.before_step(s)
        now = kept_of(rigl)
        share = 0.4 / 2 * (1 + math.cos(math.pi * 2 / 12))  # t = 2 of T_end = 3 epochs of 4 steps
        for k, mask in before.items():
            count = int(share * int(mask.sum())) if step == 1 else 0
            expected = traded(at[k].numpy(), mask.numpy(), dense[k].abs().numpy(), count, count)
            np.testing.assert_array_equal(now[k].numpy(), expected)
            held = own[k].grad
            assert held is not None
            assert torch.equal(held, dense[k] * now[k])
            if step == 1:
                assert count > 0
                came, went = now[k] & ~mask, mask & ~now[k]
                assert came.any()
                state = optimizer_.state[own[k]]
                for value in (v for v in state.values() if v.shape == mask.shape):
                    assert not value[came | went].any()
                    assert value[mask & now[k]].any()
                assert not own[k].detach()[came].any(), "new weights start at zero"
                assert torch.equal(own[k].detach()[mask & now[k]], at[k][mask & now[k]])
        optimizer_.step()
        with torch.no_grad():
            rigl.after_step(s)
        before = now
        for k, mask in now.items():
            assert not own[k].detach()[~mask].any()
            assert own[k].detach()[mask & (dense[k] != 0)].all()


def test_set_grows_at_random_among_all_that_are_free() -> None:
    grown: dict[str, Tensor] = {}
    for seed in range(60):
        model = lived(MLP(hidden=(6,)))
        layer = SET(sparsity=50.0, drop=0.5, every=1)
        s = begin(layer, model)
        before, at = kept_of(layer), {k: w.detach().clone() for k, w in chosen_weights(model, "all").items()}
        s.generator = torch.Generator().manual_seed(seed)
        train(layer, s, torch.optim.SGD(model.parameters(), lr=0.1))
        for k, mask in kept_of(layer).items():
            drop = int(0.5 * int(before[k].sum()))
            stays = traded(at[k].numpy(), before[k].numpy(), np.zeros(mask.shape), drop, 0)
            assert (mask.numpy() & stays).sum() == stays.sum()
            assert int(mask.sum()) == int(before[k].sum())
            grown[k] = grown.get(k, torch.zeros(mask.shape)) + (mask & ~torch.from_numpy(stays))
            free = int((~stays).sum())
            expected = 60 * drop / free
            if seed == 59:
                among = grown[k][torch.from_numpy(~stays)]
                assert among.mean().item() == pytest.approx(expected)
                assert among.std().item() < 2 * math.sqrt(expected)  # as of independent draws
    assert grown


# The schedule ------------------------------------------------------------------------------------------------


def shares(d: Dynamic, epochs: int, steps: int, first: int = 0) -> dict[int, float]:
    s = step_of(lived(SMALL), epochs)
    s.steps_per_epoch, s.step = steps, first
    d.begin(s)
    found = {}
    for step in range(first, first + epochs * steps):
        s.step = step
        if d.share(s) > 0:
            found[step - first + 1] = d.share(s)
    return found


def test_the_share_traded_is_a_cosine_that_ends() -> None:
    for first in (0, 17):  # the stage's own clock
        found = shares(RigL(sparsity=50.0, drop=0.3, every=10, end=0.75), 4, 20, first)
        expected = {t: 0.15 * (1 + math.cos(math.pi * t / 60)) for t in (10, 20, 30, 40, 50)}
        assert found == pytest.approx(expected)
    assert shares(SET(sparsity=50.0, drop=0.2), 3, 5) == {5: 0.2, 10: 0.2}
    assert shares(FlyingBird(sparsity=50.0), 2, 4) == pytest.approx({4: 0.25})


def test_later_stages_hold_the_mask() -> None:
    loop = Loop([RigL(sparsity=70.0, every=1)]).run(4)
    d, s = loop.defenses[0], loop.steps[0]
    assert isinstance(d, Dynamic)
    found, state = kept_of(d), s.generator.get_state()
    s.stage = 1
    d.begin(s)
    loop.run(6)
    assert equal(kept_of(d).values(), found.values())
    assert torch.equal(s.generator.get_state(), state)


# What is held ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_share_is_exact_after_every_step(kind: str, optimizer: str) -> None:
    d = KINDS[kind](sparsity=77.0, every=2, end=1.0)
    loop = Loop([d], OPTIMIZERS[optimizer])
    first = kept_of(d)
    asked = d.asked(loop.model)
    assert asked is not None
    whole = sum(k.numel() for k in first.values())
    assert asked.percent == pytest.approx(100 * round(0.77 * whole) / whole)
    for _ in range(8):
        loop.one_step()
        now, own = kept_of(d), dict(loop.model.named_parameters())
        assert {k: int(v.sum()) for k, v in now.items()} == {k: int(v.sum()) for k, v in first.items()}
        assert d.memory["left"] == {k: int(v.sum()) for k, v in now.items()}
        for k, mask in now.items():
            assert not own[k].detach()[~mask].any()
            for value in (v for v in loop.optimizer.state[own[k]].values() if v.shape == mask.shape):
                assert not value[~mask].any()
            assert torch.equal(loop.deployed().get_parameter(k), own[k])
    assert any(bool((now[k] != first[k]).any()) for k in now)
    assert (zero_shares(loop.deployed())["weight_sparsity"] or 0) >= asked.percent - 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_costs_nothing_in_the_stage_after(kind: str) -> None:
    def make() -> Loop:
        return Loop([KINDS[kind](sparsity=70.0, every=2)])

    def second(loop: Loop) -> Loop:
        loop.steps[0].stage, loop.steps[0].step = 1, loop.count
        loop.defenses[0].begin(loop.steps[0])
        return loop

    unbroken, broken = second(make().run(4)).run(4), second(make().run(4)).run(2)
    resumed = second(make())
    assert resumed.load(broken.saved(), 6).count == 6
    same_run(resumed.run(2), unbroken, 6)
    assert resumed.defenses[0].memory["stage"] == 0


PARTNERS: dict[str, list[Any]] = {
    "trades": [TRADES(steps=2)],
    "awp": [PGDAT(steps=1), AWP(gamma=0.05)],
    "ensemble": [EnResNet(), PGDAT(steps=1)],
    "ema": [PGDAT(steps=1), EMA(decay=0.9)],
}


@pytest.mark.parametrize("partner", PARTNERS)
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_beside_what_defends_in_either_order(kind: str, partner: str) -> None:
    for before in (True, False):
        d, others = KINDS[kind](sparsity=80.0, every=2), [fresh(p) for p in PARTNERS[partner]]
        loop = Loop([d, *others] if before else [*others, d]).run(7)
        own = dict(loop.model.named_parameters())
        for k, mask in kept_of(d).items():
            assert not own[k].detach()[~mask].any()
        assert (zero_shares(loop.deployed())["weight_sparsity"] or 0) >= 80 - 0.2
        assert all(math.isfinite(loss) for loss in loop.losses)


# Flying Bird+ ------------------------------------------------------------------------------------------------


def told(gaps: list[float], robust: list[float], **settings: Any) -> FlyingBird:
    """A bird with these epochs behind it."""
    d = FlyingBird(sparsity=50.0, adapt=True, **settings)
    s = begin(d, lived(SMALL))
    for gap, accuracy in zip(gaps, robust, strict=True):
        s.val_adversarial_accuracy, s.train_accuracy = accuracy, accuracy + gap
        d.end_epoch(s)
    return d


RISING, FALLING = [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]


def test_it_drops_more_where_the_gap_rises_and_grows_more_where_the_robust_accuracy_does_not() -> None:
    calm = told(FALLING, RISING, window=3)
    assert calm.numbers(100, 200, 0.5) == (50, 50)
    over = told(RISING, RISING, window=3, drop_more=0.4)
    assert over.numbers(100, 200, 0.5) == (70, 50)
    under = told(FALLING, FALLING, window=3, grow_more=0.1)
    assert under.numbers(100, 200, 0.5) == (50, 55)
    both = told(RISING, FALLING, window=3, drop_more=0.4, grow_more=0.1)
    assert both.numbers(100, 200, 0.5) == (70, 55)
    assert told(RISING[:3], RISING[:3], window=3).numbers(100, 200, 0.5) == (50, 50), "too soon to tell"
    plain = FlyingBird(sparsity=50.0)
    assert plain.numbers(100, 200, 0.5) == (50, 50)


def test_half_of_the_window_is_enough_and_less_is_not() -> None:
    up_down = [0.1, 0.2, 0.1, 0.2, 0.1]
    assert told(up_down, [*RISING, 0.5], window=4).overfits
    assert not told([0.3, 0.2, 0.1, 0.2, 0.1], [*RISING, 0.5], window=4).overfits
    assert told([*FALLING, 0.0], [0.1, 0.1, 0.1, 0.2, 0.3], window=4).stagnates, "no rise counts as one"
    assert len(told(RISING * 5, RISING * 5, window=3).memory["gaps"]) == 4


def test_the_density_moves_and_stays_within_its_bounds() -> None:
    """A loop whose gap always rises loses weights, down to the bound and not far beyond."""
    d = FlyingBird(sparsity=50.0, adapt=True, window=1, every=1, drop_more=0.5, drift=5.0, end=1.0)
    loop = Loop([d])
    gap = 0.0
    for _ in range(18):
        loop.one_step()
        if loop.count % 3 == 0:
            gap += 0.01
            d.memory["gaps"], d.memory["robust"] = [gap - 0.01, gap], [0.1, 0.2]
    own = dict(loop.model.named_parameters())
    left, whole = sum(d.memory["left"].values()), sum(k.numel() for k in d.memory["kept"].values())
    assert {k: int(v.sum()) for k, v in d.memory["kept"].items()} == d.memory["left"]
    assert 55 <= 100 * (1 - left / whole) < 60
    assert all(not own[k].detach()[~mask].any() for k, mask in d.memory["kept"].items())
    asked = d.asked(loop.model)
    assert asked is not None
    assert (asked.percent, asked.binding) == (50.0, False)


# Refused -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_meant_is_refused() -> None:
    s = step_of(lived(SMALL), epochs=2)
    s.steps_per_epoch = 10
    with pytest.raises(
        ValueError, match=r"^every: expected a trade before its end, of 0.75 times 20 steps, got 100$"
    ):
        RigL(sparsity=50.0).check_stage(s)
    rigl = RigL(sparsity=50.0, every=5)
    for s.stage, s.epochs in ((0, 2), (1, 1)):  # the second one only holds
        rigl.check_stage(s)
    RigL().check_stage(s)
    s.epochs = 2
    with pytest.raises(ValueError, match=r"^adapt: expected a validation part"):
        FlyingBird(sparsity=50.0, adapt=True).check_stage(s)
    s.val_accuracy = 0.0
    FlyingBird(sparsity=50.0, adapt=True).check_stage(s)
    with pytest.raises(ValueError, match=r"^layers: expected a network with such weights"):
        SET(sparsity=50.0, layers="conv").check(s.model)
    with pytest.raises(ValueError, match=r"^sparsity: expected a share that leaves a weight"):
        SET(sparsity=99.99).check(nn.Linear(3, 4))

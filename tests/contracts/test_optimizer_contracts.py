"""What every optimizer of the table must do, and that what holds zeros holds them under any of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses import (
    ADMM,
    DEFENSES,
    S2AP,
    SET,
    Defense,
    EnResNet,
    FlyingBird,
    HoldZeros,
    Hydra,
    L1FilterPrune,
    MagnitudePrune,
    NetworkSlimming,
    RigL,
    prunable,
)
from defenses.sparse.masks import Masked
from robustbench_sparse.config.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    AdaBregSpec,
    AdamSpec,
    AdamWSpec,
    Constant,
    Cosine,
    Cyclic,
    LinBregSpec,
    MultiStep,
    OneCycle,
    OptimizerSpec,
    Plateau,
    ProxSGDSpec,
    ScheduleSpec,
    SGDSpec,
)
from tests.helpers.defense_loop import BATCH, EPOCH, Loop, chain, equal, fresh, made, natural, tiny
from tests.helpers.zeros import zero_shares

SPECS: dict[str, list[OptimizerSpec]] = {
    "sgd": [SGDSpec(lr=0.1, momentum=0.9, weight_decay=5e-4), SGDSpec(lr=0.1, momentum=0.5, nesterov=True)],
    "adam": [AdamSpec(lr=0.01, weight_decay=1e-3)],
    "adamw": [AdamWSpec(lr=0.01, weight_decay=1e-2)],
    "linbreg": [
        LinBregSpec(lr=0.1, lam=0.05, weight_decay=1e-3),
        LinBregSpec(
            lr=0.1, lam=0.5, momentum=0.9, delta=0.5, linear="group_lasso", conv={"name": "group_l0"}
        ),
    ],
    "adabreg": [
        AdaBregSpec(lr=0.01, lam=0.05, weight_decay=1e-3),
        AdaBregSpec(
            lr=0.01, lam=0.1, delta=2.0, conv={"name": "sparse_group_lasso", "group": "row"}, linear=None
        ),
    ],
    "proxsgd": [
        ProxSGDSpec(lr=0.1, lam=0.05, weight_decay=1e-3),
        ProxSGDSpec(lr=0.1, lam=0.05, momentum=0.9, conv="transformed_l1", linear="l0"),
    ],
}
# A sparse optimizer without lambda, and the dense one that it then is.
WITHOUT_LAMBDA: list[tuple[OptimizerSpec, OptimizerSpec]] = [
    (LinBregSpec(lr=0.1, weight_decay=1e-3), SGDSpec(lr=0.1, weight_decay=1e-3)),
    (LinBregSpec(lr=0.2, delta=0.5), SGDSpec(lr=0.1)),
    (LinBregSpec(lr=0.1, momentum=0.75), SGDSpec(lr=0.025, momentum=0.75)),
    (LinBregSpec(lr=0.1, lam=0.3, linear=None, conv=None), SGDSpec(lr=0.1)),
    (AdaBregSpec(lr=0.01, weight_decay=1e-3), AdamSpec(lr=0.01, weight_decay=1e-3)),
    (AdaBregSpec(lr=0.005, delta=2.0, beta1=0.8, beta2=0.9), AdamSpec(lr=0.01, beta1=0.8, beta2=0.9)),
    (ProxSGDSpec(lr=0.1, weight_decay=1e-3), SGDSpec(lr=0.1, weight_decay=1e-3)),
    (ProxSGDSpec(lr=0.1, momentum=0.9, conv="group_lasso"), SGDSpec(lr=0.1, momentum=0.9)),
]
INVALID: list[tuple[type[OptimizerSpec], dict[str, Any], str]] = [
    *((cls, {"lr": value}, "lr") for cls in OPTIMIZERS.values() for value in (0.0, -0.1)),
    *((cls, {"weight_decay": -1e-4}, "weight_decay") for cls in OPTIMIZERS.values()),
    (SGDSpec, {"momentum": 1.0}, "momentum"),
    (SGDSpec, {"nesterov": True}, "nesterov"),
    (AdamSpec, {"beta1": 1.0}, "beta1"),
    (AdamWSpec, {"beta2": -0.1}, "beta2"),
    (LinBregSpec, {"lam": -0.1}, "lam"),
    (LinBregSpec, {"lam": float("inf")}, "lam"),
    (LinBregSpec, {"delta": 0.0}, "delta"),
    (LinBregSpec, {"momentum": 1.0}, "momentum"),
    (LinBregSpec, {"linear": "l3"}, "linear"),
    (LinBregSpec, {"conv": {"name": "group_lasso", "group": "atom"}}, "conv"),
    (LinBregSpec, {"linear": {"name": "group_lasso", "group": "kernel"}}, "linear"),
    (AdaBregSpec, {"lam": float("nan")}, "lam"),
    (AdaBregSpec, {"delta": float("inf")}, "delta"),
    (AdaBregSpec, {"beta1": 1.0}, "beta1"),
    (AdaBregSpec, {"beta2": 1.0}, "beta2"),
    (ProxSGDSpec, {"lam": -0.1}, "lam"),
    (ProxSGDSpec, {"momentum": -0.1}, "momentum"),
    (ProxSGDSpec, {"conv": {"group": "row"}}, "conv"),
]


def ensemble() -> nn.Module:
    return EnResNet(members=2, noise=0.0).wrap(tiny)()


class Double(nn.Module):
    """A network in double precision: where a gradient is 0 but for rounding, AdamSpec makes whole steps of it."""

    def __init__(self, network: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.network = network().double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x.double())
        return out


NETWORKS: dict[str, Callable[[], nn.Module]] = {"residual": tiny, "chain": chain, "ensemble": ensemble}
ALL = [pytest.param(s, id=f"{key}-{i}") for key, specs in SPECS.items() for i, s in enumerate(specs)]
SPARSE = [param for param in ALL if param.values[0].sparsifies]


def test_the_tables_cover_all_optimizers() -> None:
    assert set(SPECS) == set(OPTIMIZERS)
    assert all(type(s) is OPTIMIZERS[key] for key, specs in SPECS.items() for s in specs)
    assert {cls for cls, _, _ in INVALID} == set(OPTIMIZERS.values())
    sparse = {cls for cls in OPTIMIZERS.values() if cls.sparsifies}
    assert sparse == {type(s) for s, _ in WITHOUT_LAMBDA} == {LinBregSpec, AdaBregSpec, ProxSGDSpec}
    assert not any(dense.sparsifies for _, dense in WITHOUT_LAMBDA)


@pytest.mark.parametrize("key", OPTIMIZERS)
def test_is_a_frozen_documented_keyword_only_dataclass(key: str) -> None:
    cls = OPTIMIZERS[key]
    spec = cls()  # every setting has a default
    assert spec == cls()
    settings = [f for f in dataclasses.fields(cls) if f.init]
    assert all(f.kw_only for f in settings)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.lr = 1.0  # type: ignore[misc]
    documented = "\n".join(c.__doc__ or "" for c in cls.__mro__ if c is not OptimizerSpec)
    named = documented.replace("beta1, beta2: ", "beta1: beta2: ")
    assert [f.name for f in settings if f"{f.name}: " not in named] == []


@pytest.mark.parametrize(("cls", "settings", "name"), INVALID)
def test_invalid_settings_are_refused_by_name(
    cls: type[OptimizerSpec], settings: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: .*expected .*, got "):
        cls(**settings)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("spec", ALL)
def test_every_parameter_is_in_one_group_and_only_weights_are_regularised(
    spec: OptimizerSpec, network: str
) -> None:
    model = made(NETWORKS[network])
    groups = spec.build(model).param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    regularised = {id(p) for g in groups if g.get("regulariser") is not None for p in g["params"]}
    weights = {id(w): w for w in prunable(model).values()}
    kinds = {"linear": 2, "conv": 4}
    meant = {
        i for i, w in weights.items() if any(getattr(spec, k, None) and w.ndim == n for k, n in kinds.items())
    }
    assert regularised == meant
    assert bool(meant) == spec.sparsifies


@pytest.mark.parametrize("spec", SPARSE)
def test_biases_and_batch_norm_move_as_without_a_regulariser(spec: OptimizerSpec) -> None:
    def after_one_step(used: OptimizerSpec) -> dict[str, Tensor]:
        return dict(natural(1, used)[0].named_parameters())

    plain, weights = dataclasses.replace(spec, lam=0.0), set(prunable(tiny()))
    regularised, without = after_one_step(spec), after_one_step(plain)  # type: ignore[arg-type]
    assert all(torch.equal(without[k], v) for k, v in regularised.items() if k not in weights)
    assert any(not torch.equal(without[k], regularised[k]) for k in weights)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("spec", ALL)
def test_trains_any_network(spec: OptimizerSpec, network: str) -> None:
    loop = Loop([], spec, NETWORKS[network]).run(6)
    assert all(torch.isfinite(torch.tensor(loop.losses)))
    start = made(NETWORKS[network]).state_dict()
    assert not all(torch.equal(start[k], v) for k, v in loop.model.state_dict().items())
    shares = zero_shares(loop.model)
    assert ((shares["weight_sparsity"] or 0.0) > 1) == spec.sparsifies


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("sparse", "dense"), WITHOUT_LAMBDA)
def test_without_lambda_it_is_the_dense_one(
    sparse: OptimizerSpec, dense: OptimizerSpec, network: str
) -> None:
    one, other = (Loop([], s, lambda: Double(NETWORKS[network])).run(4 * EPOCH) for s in (sparse, dense))
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-6
    assert one.losses == pytest.approx(other.losses, abs=1e-6)
    assert one.losses[-1] != one.losses[EPOCH]


@pytest.mark.parametrize("spec", ALL)
def test_saved_in_the_middle_of_a_run_it_goes_on_bit_for_bit(spec: OptimizerSpec) -> None:
    unbroken = Loop([], spec).run(4)
    state = unbroken.saved()
    unbroken.run(4)
    resumed = Loop([], spec).load(state, 4).run(4)
    assert equal(resumed.model.state_dict().values(), unbroken.model.state_dict().values())
    assert resumed.losses == unbroken.losses[4:]
    forgetful = Loop([], spec).load({**state, "optimizer": Loop([], spec).optimizer.state_dict()}, 4).run(4)
    carries = bool(state["optimizer"]["state"])
    assert (forgetful.losses != resumed.losses) == carries, "what is saved is what matters"


SCHEDULED: dict[str, tuple[ScheduleSpec, list[float]]] = {  # and its factors of lr, epoch by epoch
    "constant": (Constant(), [1, 1, 1, 1]),
    "multistep": (MultiStep(milestones=(1, 3), gamma=0.1), [1, 0.1, 0.1, 0.01]),
    "plateau": (Plateau(gamma=0.5, patience=0), [1, 1, 0.5, 0.25]),  # for a loss that stays where it is
}


def scheduled(spec: OptimizerSpec, schedule: ScheduleSpec, epochs: int = 4) -> tuple[nn.Module, list[float]]:
    loop = Loop([], spec)
    clock = schedule.build(loop.optimizer, epochs, EPOCH)
    rates = []
    for _ in range(epochs):
        rates.append(loop.optimizer.param_groups[0]["lr"])
        assert len({g["lr"] for g in loop.optimizer.param_groups}) == 1
        for _ in range(EPOCH):
            loop.one_step()
            clock.after_step()
        clock.after_epoch(1.0, 0.5)
    return loop.model, rates


@pytest.mark.parametrize("schedule", SCHEDULED)
@pytest.mark.parametrize("spec", ALL)
def test_schedules_set_the_rate_of_all_groups(spec: OptimizerSpec, schedule: str) -> None:
    made_of, factors = SCHEDULED[schedule]
    model, rates = scheduled(spec, made_of)
    assert rates == pytest.approx([spec.lr * f for f in factors])
    constant = Loop([], spec).run(4 * EPOCH).model
    same = equal(model.parameters(), constant.parameters())
    assert same == (schedule == "constant")


BY_STEPS: dict[str, tuple[ScheduleSpec, float]] = {  # and its first factor of lr, of 12 steps
    "one_cycle": (OneCycle(warm_up=0.5, start_divisor=10.0), 1 / 10),
    "cyclic": (Cyclic(peak=0.5), 2 / 13),
    "cosine": (Cosine(warm_up=0.5), 1 / 7),
}


@pytest.mark.parametrize("schedule", BY_STEPS)
@pytest.mark.parametrize("spec", ALL)
def test_some_go_by_steps(spec: OptimizerSpec, schedule: str) -> None:
    made_of, first = BY_STEPS[schedule]
    model, rates = scheduled(spec, made_of)
    assert rates[0] == pytest.approx(spec.lr * first)
    assert max(rates) > 3 * rates[0]
    assert not equal(model.parameters(), Loop([], spec).run(4 * EPOCH).model.parameters())


def test_the_schedules_tried_are_all_there_are() -> None:
    assert set(SCHEDULED) | set(BY_STEPS) == set(SCHEDULES)


@pytest.mark.parametrize(("sparse", "dense"), WITHOUT_LAMBDA[:1] + WITHOUT_LAMBDA[4:7:2])
def test_a_schedule_acts_on_it_as_on_the_dense_one(sparse: OptimizerSpec, dense: OptimizerSpec) -> None:
    for schedule in (SCHEDULED["multistep"][0], OneCycle()):
        (a, _), (b, _) = scheduled(sparse, schedule), scheduled(dense, schedule)
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


# What holds zeros --------------------------------------------------------------------------------------------

HOLDING: dict[str, Defense] = {
    "hold_zeros": HoldZeros(threshold=0.1),
    "magnitude_prune": MagnitudePrune(sparsity=80.0),
    "magnitude_prune of channels": MagnitudePrune(sparsity=50.0, group="channel", layers="conv"),
    "magnitude_prune in rounds": MagnitudePrune(sparsity=80.0, rounds=2, start=1),
    "magnitude_prune rewinding": MagnitudePrune(sparsity=80.0, scope="layer", rounds=2, rewind="start"),
    "l1_filter_prune": L1FilterPrune(sparsity=50.0, branches=True),
    "network_slimming": NetworkSlimming(sparsity=50.0),
    "hydra": Hydra(sparsity=80.0),
    "s2ap": S2AP(sparsity=60.0, scope="global"),
    "set": SET(sparsity=60.0, every=2),
    "rigl": RigL(sparsity=80.0, every=2),
    "flying_bird": FlyingBird(sparsity=50.0, every=1),
}


def test_whatever_holds_zeros_is_tried() -> None:
    def below(cls: type[Defense]) -> set[type[Defense]]:
        return {cls, *(c for sub in cls.__subclasses__() for c in below(sub))}

    assert {type(d) for d in HOLDING.values()} == {cls for cls in below(Masked) if cls in DEFENSES.values()}


@pytest.mark.parametrize("holder", HOLDING)
@pytest.mark.parametrize("spec", ALL)
def test_held_zeros_stay_exactly_zero(spec: OptimizerSpec, holder: str) -> None:
    loop = Loop([fresh(HOLDING[holder])], spec, chain)
    if isinstance(loop.defenses[0], Hydra):
        loop.defenses[0].begin(loop.steps[0])  # the stage after the search
    held = 0
    while loop.count < 3 * EPOCH:
        loop.one_step()
        kept: dict[str, Tensor] = loop.defenses[0].memory.get("kept", {})
        own = dict(loop.model.named_parameters())
        for name, k in kept.items():
            assert (own[name].detach()[~k] == 0).all(), (loop.count, name)
        gone = sum(int((~k).sum()) for k in kept.values())
        assert gone >= held, "what was pruned once stays pruned"
        held = gone
    assert held > 0
    assert all(torch.isfinite(torch.tensor(loop.losses)))
    if not spec.sparsifies:  # the zeros are those held, and no others
        weights = prunable(loop.model)
        held = sum(int((~k).sum()) for name, k in kept.items() if name in weights)
        assert sum(int((w == 0).sum()) for w in weights.values()) == held


@pytest.mark.parametrize("spec", ALL)
def test_the_weights_left_go_on_training(spec: OptimizerSpec) -> None:
    loop = Loop([MagnitudePrune(sparsity=50.0)], spec, chain)
    before = {k: v.detach().clone() for k, v in prunable(loop.model).items()}
    loop.run(3 * EPOCH)
    kept = loop.defenses[0].memory["kept"]
    moved = [(before[k] != w)[kept[k]].double().mean().item() for k, w in prunable(loop.model).items()]
    assert min(moved) > 0.5
    assert len(loop.losses) == 3 * EPOCH > BATCH


@pytest.mark.parametrize("spec", SPARSE)
def test_a_projection_is_met_under_a_sparse_optimizer(spec: OptimizerSpec) -> None:
    loop = Loop([ADMM(sparsity=90.0, layers="all")], spec, chain).run(2 * EPOCH)
    weights = prunable(loop.deployed()).values()
    for w in weights:
        assert (w == 0).sum() >= min(round(0.9 * w.numel()), w.numel() - 1)

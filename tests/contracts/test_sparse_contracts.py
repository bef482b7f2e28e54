"""What every defense that makes zeros must do: compose with those that defend, and keep its word when counted."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses import (
    ADMM,
    CLIP,
    PGDAT,
    S2AP,
    SET,
    Asked,
    Defense,
    EnResNet,
    FlyingBird,
    Hydra,
    L1FilterPrune,
    Lasso,
    MagnitudePrune,
    NetworkSlimming,
    RigL,
    prunable,
)
from robustbench_sparse.config.optimizers import AdamSpec, OptimizerSpec
from robustbench_sparse.sparsity.claims import against_asked, refusal
from robustbench_sparse.sparsity.counting import count_layers
from tests.contracts.test_defense_contracts import STRONG, cases
from tests.helpers.defense_loop import EPOCH, MOMENTUM, Case, Loop, chain, fresh, made, same_run, tiny
from tests.helpers.zeros import zero_shares

SPARSE = [param for param in cases(STRONG) if param.values[0].defense.sparsifies] + cases(
    {"target_sparsity": STRONG["target_sparsity"]}
)
PARTNERS: dict[str, list[Defense]] = {
    "pgd_at": [PGDAT(steps=1)],
    "enresnet": [EnResNet()],
    "clip": [CLIP(lam=0.1, pairs=6, renew_every=4)],
    "pgd_at+enresnet": [PGDAT(steps=1), EnResNet()],
}


@functools.cache
def logits_without(partner: str, optimizer: OptimizerSpec) -> Tensor:
    """Logits after 7 steps of the partner alone."""
    return Loop([fresh(d) for d in PARTNERS[partner]], optimizer).run(7).logits()


def together(case: Case, partner: str) -> Loop:
    return Loop([*map(fresh, PARTNERS[partner]), fresh(case.defense)], case.optimizer)


def shortfall(defense: Defense, model: nn.Module, deployed: nn.Module) -> str:
    """Why a row with this network would be refused; empty where the promise is kept."""
    asked = defense.asked(model)
    assert asked is not None
    counts = against_asked([{"defense": "it", **dataclasses.asdict(asked)}], count_layers(deployed))
    return refusal({}, {"asked": counts})


def test_a_network_without_these_has_no_zeros() -> None:
    for partner in PARTNERS.values():
        loop = Loop([fresh(d) for d in partner]).run(EPOCH)
        assert set(zero_shares(loop.deployed()).values()) == {0.0}


@pytest.mark.parametrize("partner", PARTNERS)
@pytest.mark.parametrize("case", SPARSE)
def test_composes_with_what_defends(case: Case, partner: str) -> None:
    unbroken = together(case, partner).run(4)
    state = unbroken.saved()
    unbroken.run(3)
    assert all(torch.isfinite(torch.tensor(unbroken.losses)))
    assert unbroken.logits().isfinite().all()
    assert not torch.allclose(logits_without(partner, case.optimizer), unbroken.logits(), atol=1e-4)
    assert unbroken.losses[:4] != case.loop().run(4).losses  # the partner acts, too

    deployed = unbroken.deployed()
    assert (zero_shares(deployed)["weight_sparsity"] or 0.0) > 0 or not case.zeros
    if unbroken.defenses[-1].asked(unbroken.model) is not None:
        assert shortfall(unbroken.defenses[-1], unbroken.model, deployed) == ""
    same_run(together(case, partner).load(state, 4).run(3), unbroken, 4)


# What is asked for -------------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[list[Defense], Callable[[], nn.Module]]] = {
    "residual": ([], tiny),
    "chain": ([], chain),
    "ensemble": ([EnResNet()], tiny),
}
OPTIMIZERS: dict[str, OptimizerSpec] = {"momentum": MOMENTUM, "adam": AdamSpec(lr=0.02, weight_decay=1e-3)}
BINDING: dict[str, list[Defense]] = {
    "admm": [
        ADMM(sparsity=93.0, rho=0.5),
        ADMM(sparsity=50.0, rho=0.5, group="channel", layers="all", update="epoch"),
        ADMM(sparsity=70.0, group="kernel", scope="global"),
        ADMM(sparsity=40.0, rho=0.0, group="row", layers="all"),
        ADMM(sparsity=50.0, group="channel", scope="global", layers="all"),
    ],
    "lasso": [
        Lasso(lam=0.01, sparsity=60.0),
        Lasso(sparsity=33.0, linear=None, conv={"name": "group_lasso", "group": "kernel"}),
        Lasso(
            sparsity=40.0,
            linear={"name": "group_lasso", "group": "row"},
            conv={"name": "group_lasso", "group": "row"},
        ),
    ],
    "l1_filter_prune": [
        L1FilterPrune(sparsity=50.0, branches=True),
        L1FilterPrune(sparsity=90.0, branches=True, linear=True, scope="global"),
        L1FilterPrune(sparsity=99.0, branches=True, linear=True, keep_one=False),
    ],
    "network_slimming": [NetworkSlimming(sparsity=50.0), NetworkSlimming(sparsity=99.0, keep_one=False)],
    "hydra": [
        Hydra(sparsity=93.0),
        Hydra(sparsity=99.0, scope="global"),
        Hydra(sparsity=45.0, layers="linear", freeze_norms=True),
    ],
    "s2ap": [S2AP(sparsity=93.0, gamma=0.5), S2AP(sparsity=50.0, scope="global", layers="conv")],
    "set": [SET(sparsity=93.0, every=1), SET(sparsity=45.0, layers="linear", every=2)],
    "rigl": [
        RigL(sparsity=93.0, every=1),
        RigL(sparsity=99.0, every=2, densities="uniform"),
        RigL(sparsity=20.0, every=1, drop=0.9),
    ],
    "flying_bird": [FlyingBird(sparsity=93.0, every=1), FlyingBird(sparsity=50.0, layers="conv", every=2)],
    "magnitude_prune": [
        MagnitudePrune(sparsity=99.0),
        MagnitudePrune(sparsity=45.0, layers="linear", scope="layer"),
        MagnitudePrune(sparsity=50.0, group="row"),
        MagnitudePrune(sparsity=50.0, group="channel", layers="conv", rounds=2),
        MagnitudePrune(sparsity=87.0, group="kernel", layers="conv", scope="layer", rounds=2, rewind="start"),
    ],
}
# Linear layers have no channels that are counted, and without layers of their own, batch-norm scales no rows.
UNCOUNTED = (BINDING["admm"][-1], *BINDING["network_slimming"])
GOALS = [
    param
    for param in SPARSE
    if param.id in ("rvsm-4", "rvsm-5", "flying_bird-1", *(f"target_sparsity-{i}" for i in range(3)))
]


def claim(defense: Defense, model: nn.Module) -> Asked | None:
    """What is asked for, after a look at whether it can be meant."""
    asked = defense.asked(model)
    if asked is not None:
        assert asked.names
        assert set(asked.names) <= set(prunable(model))
        assert 0 <= asked.percent <= 100
        assert len(set(asked.names)) == len(asked.names)
    return asked


def test_the_table_holds_all_that_ask() -> None:
    asking = {p.id for p in SPARSE if p.values[0].defense.asked(made(tiny)) is not None}
    goals = {p.id for p in GOALS}
    assert goals < asking
    assert {id.rpartition("-")[0] for id in asking - goals} | {"network_slimming"} == set(BINDING)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("case", cases(BINDING))
def test_a_binding_share_is_met_by_the_deployed_network(case: Case, network: str, optimizer: str) -> None:
    partners, make = NETWORKS[network]
    loop = Loop([*map(fresh, partners), fresh(case.defense)], OPTIMIZERS[optimizer], make)
    defense, before = loop.defenses[-1], claim(loop.defenses[-1], loop.model)
    loop.run(2 * EPOCH + 1)
    deployed = loop.deployed()
    assert claim(defense, loop.model) == before
    assert claim(defense, deployed) == before, "the promise must not depend on what became of the weights"
    if before is None:  # what nothing counts may not be promised
        assert case.defense in UNCOUNTED
        assert network != "chain" or isinstance(defense, ADMM)
        return
    assert before.binding
    assert shortfall(defense, loop.model, deployed) == ""
    # A promise that any network keeps would be none.
    dense = Loop([fresh(d) for d in partners], network=make).deployed()
    assert "was asked for" in shortfall(defense, loop.model, dense)


@pytest.mark.parametrize("case", GOALS)
def test_a_goal_is_no_promise(case: Case) -> None:
    loop = case.loop().run(EPOCH)
    asked = claim(loop.defenses[0], loop.model)
    assert asked is not None
    assert not asked.binding
    settings: Any = case.defense
    goals = ("target", "target_sparsity", "sparsity")
    assert asked.percent in [getattr(settings, goal, None) for goal in goals]


@pytest.mark.parametrize("case", cases(BINDING))
def test_asking_changes_nothing(case: Case) -> None:
    model = made(chain)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    case.defense.asked(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert case.defense.memory == {}
    with torch.device("meta"):
        assert case.defense.asked(chain()) == case.defense.asked(model)

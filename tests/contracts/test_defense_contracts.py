"""What every defense of the table of contents must do, and that they compose."""

from __future__ import annotations

import dataclasses
import io
import typing

import pytest
import torch

from attacks.base import RandomModule
from defenses import (
    ADMM,
    AWP,
    CLIP,
    DEFENSES,
    EMA,
    FGSMRS,
    MART,
    NFGSM,
    PGDAT,
    RGSM,
    RVSCGD,
    RVSM,
    S2AP,
    SET,
    TRADES,
    Broken,
    Defense,
    EnResNet,
    FlyingBird,
    HoldZeros,
    Hydra,
    L1FilterPrune,
    LabelSmoothing,
    Lasso,
    MagnitudePrune,
    MeanSparse,
    NetworkSlimming,
    Quantise,
    RigL,
    SparseInit,
    SpectralPenalty,
    TargetSparsity,
)
from defenses.sparse.splitting import Splitting
from robustbench_sparse.config.optimizers import AdaBregSpec, LinBregSpec, ProxSGDSpec
from tests.helpers.defense_loop import (
    EPOCH,
    Case,
    Loop,
    batch,
    chain,
    equal,
    fresh,
    logits,
    natural,
    same_run,
)

DYNAMIC: list[type[Defense]] = [SET, RigL, FlyingBird]
# At these settings a defense is natural training, bit for bit.
ZERO: dict[str, list[Defense]] = {
    "pgd_at": [PGDAT(eps=0.0), PGDAT(norm="l2", eps=0.0, batch_statistics=True)],
    "trades": [TRADES(beta=0.0), TRADES(eps=0.0)],
    "mart": [MART(eps=0.0)],
    "n_fgsm": [NFGSM(eps=0.0)],
    "fgsm_rs": [FGSMRS(eps=0.0)],
    "awp": [AWP(gamma=0.0), AWP(warm_up=9)],
    "label_smoothing": [LabelSmoothing(smoothing=0.0)],
    "ema": [EMA(decay=0.0), EMA(warm_up=9)],
    "clip": [CLIP(), CLIP(cheap=True, reduction="mean"), CLIP(lam=1.0, warm_up=9)],
    "spectral_penalty": [SpectralPenalty(), SpectralPenalty(power_iterations=1)],
    "enresnet": [EnResNet(members=1, noise=0.0)],
    "mean_sparse": [MeanSparse(), MeanSparse(images=2)],
    "quantise": [Quantise(), Quantise(images=2)],
    "rgsm": [RGSM(), RGSM(beta=0.7), RGSM(beta=0.7, regulariser="group_l0", keep_one=True)],
    "rvsm": [RVSM(), RVSM(beta=0.7), RVSM(beta=0.7, regulariser="l0", layers="all")],
    "rvscgd": [RVSCGD(), RVSCGD(regulariser="l0", layers="all")],
    "admm": [ADMM(), ADMM(rho=1.0, group="channel", scope="global", layers="all", update="epoch")],
    "broken": [Broken()],
    "lasso": [Lasso(), Lasso(linear=None)],
    "l1_filter_prune": [L1FilterPrune(), L1FilterPrune(scope="global", linear=True)],
    "network_slimming": [NetworkSlimming()],
    "sparse_init": [SparseInit(), SparseInit(linear=None, conv=None, density=0.5, bias="positive")],
    "target_sparsity": [TargetSparsity(), TargetSparsity(kind="kernel", gain=0.5)],
    "hold_zeros": [HoldZeros(), HoldZeros(layers="conv")],
    "hydra": [Hydra(), Hydra(scope="global", layers="conv", freeze_norms=True)],
    "s2ap": [S2AP(), S2AP(gamma=0.5)],
    "set": [SET(), SET(drop=0.9, every=1)],
    "rigl": [RigL(), RigL(drop=0.9, every=1, densities="uniform")],
    "flying_bird": [FlyingBird(), FlyingBird(adapt=True, every=1)],
    "magnitude_prune": [MagnitudePrune(), MagnitudePrune(rounds=9, every=9, start=9, rewind="start")],
}
# At these it must show.
STRONG: dict[str, list[Defense | Case]] = {
    "lasso": [
        Case(Lasso(lam=0.01), zeros=False),
        Case(Lasso(lam=0.01, linear=None, conv={"name": "group_lasso", "weighted": True}), zeros=False),
        Case(Lasso(lam=0.01, conv="nuclear", linear="transformed_l1"), zeros=False),
        Lasso(lam=0.01, sparsity=60.0),
        Lasso(lam=0.01, threshold=0.05, conv="group_lasso"),
    ],
    "sparse_init": [
        Case(SparseInit(density=0.3), zeros=False),  # momentum fills the zeros
        Case(
            SparseInit(density=0.5, linear="row", conv="kernel", bias="positive", variance="he"), zeros=False
        ),
        Case(SparseInit(density=0.3), LinBregSpec(lr=0.1, lam=0.1, momentum=0.9)),
    ],
    "target_sparsity": [
        Case(TargetSparsity(target=90.0), LinBregSpec(lr=0.1, lam=0.05)),
        Case(TargetSparsity(target=90.0, gain=1.0, max_factor=4.0), AdaBregSpec(lr=0.02, lam=0.05)),
        Case(TargetSparsity(target=95.0, kind="row", warm_up=1), ProxSGDSpec(lr=0.1, lam=0.05, momentum=0.9)),
    ],
    "l1_filter_prune": [
        L1FilterPrune(sparsity=50.0, branches=True),
        L1FilterPrune(sparsity=70.0, branches=True, scope="global", keep_one=False),
    ],
    "network_slimming": [
        Case(NetworkSlimming(lam=0.05), zeros=False),
        NetworkSlimming(sparsity=50.0),
    ],
    "hold_zeros": [HoldZeros(threshold=0.1), HoldZeros(layers="conv", threshold=0.05)],
    "hydra": [
        Hydra(sparsity=60.0),
        Hydra(sparsity=80.0, scope="global", layers="conv", freeze_norms=True),
    ],
    "s2ap": [S2AP(sparsity=60.0, gamma=0.3), S2AP(sparsity=70.0, gamma=0.3, warm_up=1, layers="conv")],
    "set": [SET(sparsity=60.0, every=2), SET(sparsity=50.0, layers="conv", decay="cosine")],
    "rigl": [RigL(sparsity=70.0, every=2), RigL(sparsity=60.0, every=1, densities="uniform", layers="conv")],
    "flying_bird": [
        FlyingBird(sparsity=70.0, every=2),
        FlyingBird(sparsity=70.0, every=1, adapt=True, window=1),
    ],
    "magnitude_prune": [
        MagnitudePrune(sparsity=50.0),
        MagnitudePrune(sparsity=50.0, group="channel", layers="conv"),
        MagnitudePrune(sparsity=80.0, scope="layer", rounds=2, start=1, rewind="start"),
        Case(MagnitudePrune(sparsity=80.0, rounds=2, group="row"), AdaBregSpec(lr=0.02, lam=0.01)),
    ],
    "pgd_at": [
        PGDAT(steps=2),
        PGDAT(norm="l2", eps=0.5, steps=2, batch_statistics=True),
        PGDAT(steps=2, step_size=0.05, eps_warm_up=2),
    ],
    "trades": [TRADES(steps=2), TRADES(norm="l2", eps=0.5, steps=2, step_size=0.3, beta=20.0, eps_warm_up=1)],
    "mart": [MART(steps=2), MART(norm="l2", eps=0.5, steps=2, step_size=0.3, lam=1.0, eps_warm_up=2)],
    "n_fgsm": [NFGSM(alarm_images=10), NFGSM(noise=0.0, batch_statistics=True, eps_warm_up=2)],
    "fgsm_rs": [FGSMRS(alarm_images=10, alarm_gap=5.0), FGSMRS(eps=0.2, step_size=1.0)],
    "awp": [AWP(gamma=0.05), AWP(gamma=0.5, warm_up=1)],
    "label_smoothing": [LabelSmoothing(), LabelSmoothing(smoothing=0.5)],
    "ema": [
        Case(EMA(decay=0.9), zeros=False),
        Case(EMA(decay=0.5, minibatches=2), zeros=False),
    ],
    "clip": [
        CLIP(lam=0.1, pairs=6, renew_every=4),
        CLIP(lam=10.0, pairs=6, reduction="mean", cheap=True, source="train", box=True),
        CLIP(lam=0.05, pairs=6, target_accuracy=0.5, increment=0.02, warm_up=1, ascent_steps=2, init="noise"),
    ],
    "spectral_penalty": [SpectralPenalty(lam=0.01), SpectralPenalty(lam=0.01, power_iterations=1)],
    "enresnet": [EnResNet(), EnResNet(members=1, scale="batch")],
    "mean_sparse": [
        Case(MeanSparse(alpha=0.5, images=12), network=chain),
        Case(MeanSparse(alpha=1.0, images=4), network=chain),
    ],
    "quantise": [Quantise(bits=8, images=12), Case(Quantise(bits=4, images=4), network=chain)],
    "rgsm": [
        RGSM(lam=0.1, beta=0.5),
        RGSM(lam=0.1, beta=0.5, regulariser="group_l0"),
        Case(RGSM(lam2=0.01), zeros=False),
    ],
    "rvsm": [
        RVSM(lam=0.05, beta=0.5),
        RVSM(lam=0.005, beta=0.5, regulariser="l0", layers="linear"),
        RVSM(lam=0.05, beta=0.5, regulariser={"name": "transformed_l1", "a": 0.5}, layers="all"),
        RVSM(lam=0.1, beta=0.5, regulariser="group_lasso"),
        RVSM(lam=0.01, beta=0.5, layers="all", target_sparsity=80.0),
        RVSM(lam=0.1, beta=0.5, regulariser="group_lasso", target_sparsity=50.0, target_kind="channel"),
    ],
    "rvscgd": [RVSCGD(lam=0.05, beta=0.5), RVSCGD(lam=0.01, beta=0.5, regulariser="l0", layers="all")],
    "admm": [
        ADMM(sparsity=60.0, rho=0.5),
        ADMM(sparsity=50.0, rho=0.5, group="channel", layers="all", update="epoch"),
        ADMM(sparsity=70.0, rho=0.5, group="kernel", scope="global"),
        ADMM(sparsity=40.0, rho=0.0, group="row", layers="linear"),
    ],
    "broken": [
        Broken(how="scaled_logits"),
        Broken(how="quantised_input", strength=2.0),
        Broken(how="sigmoid_outputs"),
        Broken(how="batch_noise"),
        Broken(how="noise"),
        Broken(how="jpeg", strength=10.0),
    ],
}
INVALID: list[tuple[type[Defense], dict[str, object], str]] = [
    (Lasso, {"lam": -1.0}, "lam"),
    (Lasso, {"threshold": -1.0}, "threshold"),
    (Lasso, {"sparsity": 100.0}, "sparsity"),
    (Lasso, {"sparsity": 50.0, "threshold": 0.1}, "sparsity"),
    (Lasso, {"sparsity": 50.0, "conv": "group_lasso"}, "sparsity"),
    (Lasso, {"linear": "l2"}, "linear"),
    (Lasso, {"conv": "group_l0"}, "conv"),
    (Lasso, {"linear": {"name": "group_lasso", "group": "kernel"}}, "linear"),
    (L1FilterPrune, {"sparsity": 100.0}, "sparsity"),
    (L1FilterPrune, {"scope": "network"}, "scope"),
    (NetworkSlimming, {"sparsity": -1.0}, "sparsity"),
    (NetworkSlimming, {"lam": float("inf")}, "lam"),
    (HoldZeros, {"layers": "bias"}, "layers"),
    (HoldZeros, {"threshold": -0.1}, "threshold"),
    (Hydra, {"sparsity": 100.0}, "sparsity"),
    (Hydra, {"sparsity": -1.0}, "sparsity"),
    (Hydra, {"sparsity": float("nan")}, "sparsity"),
    (Hydra, {"scope": "filter"}, "scope"),
    (Hydra, {"layers": "bias"}, "layers"),
    (S2AP, {"sparsity": 100.0}, "sparsity"),
    (S2AP, {"gamma": -0.1}, "gamma"),
    (S2AP, {"gamma": float("inf")}, "gamma"),
    (S2AP, {"warm_up": -1}, "warm_up"),
    *((cls, {"sparsity": value}, "sparsity") for cls in DYNAMIC for value in (-1.0, 100.0, float("nan"))),
    *((cls, {"drop": value}, "drop") for cls in DYNAMIC for value in (0.0, 1.0, -0.1, float("nan"))),
    *((cls, {"every": 0}, "every") for cls in DYNAMIC),
    *((cls, {"end": value}, "end") for cls in DYNAMIC for value in (0.0, 1.1)),
    (RigL, {"decay": "linear"}, "decay"),
    (RigL, {"densities": "er"}, "densities"),
    (RigL, {"layers": "bias"}, "layers"),
    (FlyingBird, {"drop_more": 1.5}, "drop_more"),
    (FlyingBird, {"grow_more": -0.1}, "grow_more"),
    (FlyingBird, {"window": 0}, "window"),
    (FlyingBird, {"drift": float("inf")}, "drift"),
    (FlyingBird, {"drift": 10.0, "sparsity": 90.0, "adapt": True}, "drift"),
    (MagnitudePrune, {"sparsity": 100.0}, "sparsity"),
    (MagnitudePrune, {"sparsity": -1.0}, "sparsity"),
    (MagnitudePrune, {"scope": "filter"}, "scope"),
    (MagnitudePrune, {"layers": "bias"}, "layers"),
    (MagnitudePrune, {"group": "pair"}, "group"),
    (MagnitudePrune, {"group": "kernel"}, "group"),
    (MagnitudePrune, {"rounds": 0}, "rounds"),
    (MagnitudePrune, {"every": 0}, "every"),
    (MagnitudePrune, {"start": -1}, "start"),
    (MagnitudePrune, {"rewind": "init"}, "rewind"),
    (PGDAT, {"eps": -0.1}, "eps"),
    (PGDAT, {"norm": "l1", "eps": 0.1}, "norm"),
    (PGDAT, {"norm": "l2"}, "eps"),
    (PGDAT, {"steps": 0}, "steps"),
    (PGDAT, {"step_size": 0.0}, "step_size"),
    (PGDAT, {"eot": 0}, "eot"),
    (PGDAT, {"loss": "mse"}, "loss"),
    (PGDAT, {"eps_warm_up": -1}, "eps_warm_up"),
    (TRADES, {"beta": -1.0}, "beta"),
    (TRADES, {"beta": float("nan")}, "beta"),
    (TRADES, {"steps": 0}, "steps"),
    (TRADES, {"step_size": 0.0}, "step_size"),
    (TRADES, {"start_noise": 0.0}, "start_noise"),
    (TRADES, {"norm": "l2"}, "eps"),
    (MART, {"lam": -1.0}, "lam"),
    (MART, {"steps": 0}, "steps"),
    (MART, {"step_size": -0.1}, "step_size"),
    (MART, {"start_noise": -1.0}, "start_noise"),
    (NFGSM, {"noise": -1.0}, "noise"),
    (NFGSM, {"norm": "l2", "eps": 0.5}, "norm"),
    (NFGSM, {"step_size": 0.0}, "step_size"),
    (NFGSM, {"gradient": "fp8"}, "gradient"),
    (NFGSM, {"gradient": "bf16", "batch_statistics": True}, "gradient"),
    (FGSMRS, {"alarm_images": -1}, "alarm_images"),
    (FGSMRS, {"alarm_gap": 0.0}, "alarm_gap"),
    (AWP, {"gamma": -0.1}, "gamma"),
    (AWP, {"gamma": float("inf")}, "gamma"),
    (AWP, {"warm_up": -1}, "warm_up"),
    (LabelSmoothing, {"smoothing": 1.0}, "smoothing"),
    (LabelSmoothing, {"smoothing": -0.1}, "smoothing"),
    (EMA, {"decay": 1.0}, "decay"),
    (EMA, {"decay": -0.1}, "decay"),
    (EMA, {"warm_up": -1}, "warm_up"),
    (EMA, {"minibatches": 0}, "minibatches"),
    (CLIP, {"lam": -1.0}, "lam"),
    (CLIP, {"lam": float("nan")}, "lam"),
    (CLIP, {"target_accuracy": 95.0}, "target_accuracy"),
    (CLIP, {"increment": 0.0}, "increment"),
    (CLIP, {"warm_up": -1}, "warm_up"),
    (CLIP, {"cooldown": -1}, "cooldown"),
    (CLIP, {"signal": "test"}, "signal"),
    (CLIP, {"reduction": "sum"}, "reduction"),
    (CLIP, {"pairs": 0}, "pairs"),
    (CLIP, {"source": "test"}, "source"),
    (CLIP, {"init": "plain"}, "init"),
    (CLIP, {"init_noise": 0.0}, "init_noise"),
    (CLIP, {"ascent_steps": 0}, "ascent_steps"),
    (CLIP, {"step_size": 0.0}, "step_size"),
    (CLIP, {"step_factor": 0.9}, "step_factor"),
    (CLIP, {"renew_every": 0}, "renew_every"),
    (CLIP, {"max_lipschitz": 0.0}, "max_lipschitz"),
    (CLIP, {"cheap": True}, "cheap"),
    (CLIP, {"cheap": True, "reduction": "mean", "ascent_steps": 2}, "cheap"),
    (SpectralPenalty, {"lam": -1.0}, "lam"),
    (SpectralPenalty, {"power_iterations": -1}, "power_iterations"),
    (MeanSparse, {"alpha": -0.1}, "alpha"),
    (MeanSparse, {"alpha": float("inf")}, "alpha"),
    (MeanSparse, {"images": 1}, "images"),
    (Quantise, {"bits": 1}, "bits"),
    (Quantise, {"bits": 9}, "bits"),
    (Quantise, {"images": 0}, "images"),
    (EnResNet, {"members": 0}, "members"),
    (EnResNet, {"noise": -0.1}, "noise"),
    (EnResNet, {"scale": "pixel"}, "scale"),
    (RGSM, {"regulariser": "l1"}, "regulariser"),
    (RGSM, {"lam": -1.0}, "lam"),
    (RGSM, {"beta": -1.0}, "beta"),
    (RGSM, {"lam2": float("inf")}, "lam2"),
    (RGSM, {"lam": 0.1}, "beta"),
    (RVSM, {"regulariser": "lasso"}, "regulariser"),
    (RVSM, {"regulariser": {"name": "transformed_l1", "a": 0.0}}, "regulariser: a"),
    (RVSM, {"target_gain": 0.0}, "target_gain"),
    (RVSM, {"lam": -1.0}, "lam"),
    (RVSM, {"beta": float("inf")}, "beta"),
    (RVSM, {"lam": 0.1}, "beta"),
    (RVSM, {"layers": "first"}, "layers"),
    (RVSM, {"lam": 0.1, "beta": 1.0, "target_sparsity": 100.0}, "target_sparsity"),
    (RVSM, {"beta": 1.0, "target_sparsity": 90.0}, "lam"),
    (RVSM, {"target_kind": "filter"}, "target_kind"),
    (RVSCGD, {"lam": 0.1}, "beta"),
    (ADMM, {"sparsity": 100.0}, "sparsity"),
    (ADMM, {"sparsity": float("nan")}, "sparsity"),
    (ADMM, {"rho": -0.1}, "rho"),
    (ADMM, {"group": "filter"}, "group"),
    (ADMM, {"scope": "net"}, "scope"),
    (ADMM, {"layers": "first"}, "layers"),
    (ADMM, {"update": "run"}, "update"),
    (SparseInit, {"density": 0.0}, "density"),
    (SparseInit, {"density": 1.1}, "density"),
    (SparseInit, {"linear": "kernel"}, "linear"),
    (SparseInit, {"conv": "layer"}, "conv"),
    (SparseInit, {"bias": "zero"}, "bias"),
    (SparseInit, {"variance": "small"}, "variance"),
    (TargetSparsity, {"target": 100.0}, "target"),
    (TargetSparsity, {"target": 0.0}, "target"),
    (TargetSparsity, {"kind": "filter"}, "kind"),
    (TargetSparsity, {"gain": 0.0}, "gain"),
    (TargetSparsity, {"max_factor": 1.0}, "max_factor"),
    (TargetSparsity, {"warm_up": -1}, "warm_up"),
    (TargetSparsity, {"max_lam": 0.0}, "max_lam"),
    (Broken, {"how": "nothing"}, "how"),
    (Broken, {"strength": 1.0}, "strength"),
    (Broken, {"how": "constant_gradient", "strength": 1.0}, "strength"),
    (Broken, {"how": "scaled_logits", "strength": 0.0}, "strength"),
    (Broken, {"how": "quantised_input", "strength": 0.5}, "strength"),
    (Broken, {"how": "k_wta", "strength": 1.1}, "strength"),
    (Broken, {"how": "noise", "strength": float("inf")}, "strength"),
    (Broken, {"how": "jpeg", "strength": 0.0}, "strength"),
]


def cases(table: typing.Mapping[str, typing.Sequence[Defense | Case]]) -> list[typing.Any]:
    return [
        pytest.param(d if isinstance(d, Case) else Case(d), id=f"{key}-{i}")
        for key, ds in table.items()
        for i, d in enumerate(ds)
    ]


def test_tables_cover_all_defenses() -> None:
    assert set(ZERO) == set(STRONG) == set(DEFENSES)
    for table in (ZERO, STRONG):
        assert all(table.values())
        for param in cases(table):
            assert type(param.values[0].defense) is DEFENSES[param.id.rpartition("-")[0]]
    assert {cls for cls, _, _ in INVALID} == set(DEFENSES.values())


@pytest.mark.parametrize("key", DEFENSES)
def test_is_a_frozen_documented_keyword_only_dataclass(key: str) -> None:
    cls = DEFENSES[key]
    defense = cls()  # every setting has a default
    assert cls() is not defense
    assert cls() == defense
    assert cls().memory is not defense.memory
    settings = [f for f in dataclasses.fields(cls) if f.init]
    assert all(f.kw_only for f in settings)
    with pytest.raises(dataclasses.FrozenInstanceError):
        defense.anything = 1  # type: ignore[attr-defined]
    documented = "\n".join(c.__doc__ or "" for c in cls.__mro__)
    assert [f.name for f in settings if f" {f.name}: " not in documented] == []
    assert (cls.__doc__ or "").splitlines()[0].endswith(".")
    assert dataclasses.replace(defense) == defense


@pytest.mark.parametrize(("cls", "settings", "name"), INVALID)
def test_invalid_settings_are_refused_by_name(
    cls: type[Defense], settings: dict[str, object], name: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got "):
        cls(**settings)


@pytest.mark.parametrize("case", cases(ZERO))
def test_zero_strength_is_natural_training(case: Case) -> None:
    loop = case.loop().run(7)
    model, optimizer = natural(7)
    assert equal(loop.model.parameters(), model.parameters())
    assert equal(loop.model.buffers(), model.buffers())
    momentum = (optimizer.state[p]["momentum_buffer"] for p in model.parameters())
    assert equal((loop.optimizer.state[p]["momentum_buffer"] for p in loop.model.parameters()), momentum)
    assert torch.equal(loop.logits(), logits(model))


@pytest.mark.parametrize("case", cases(STRONG))
def test_strength_changes_the_result(case: Case) -> None:
    loop = case.loop().run(7)
    assert all(torch.isfinite(torch.tensor(loop.losses)))
    plain = natural(7, case.optimizer, case.network)[0]
    assert not torch.allclose(loop.logits(), logits(plain), atol=1e-3)


@pytest.mark.parametrize("case", cases(STRONG))
def test_deploy_leaves_its_argument_alone(case: Case) -> None:
    loop = case.loop().run(4)
    before = {k: v.clone() for k, v in loop.model.state_dict().items()}
    sources = [m.noise_source for m in loop.model.modules() if isinstance(m, RandomModule)]
    deployed = loop.deployed()
    with torch.no_grad():
        if deployed is not loop.model:  # a copy must share nothing with the network in training
            for t in (*deployed.parameters(), *deployed.buffers()):
                t.zero_()
    assert all(torch.equal(before[k], v) for k, v in loop.model.state_dict().items())
    after = [m.noise_source for m in loop.model.modules() if isinstance(m, RandomModule)]
    assert [id(a) for a in after] == [id(b) for b in sources]
    deployed_layers = [m for m in loop.deployed().modules() if isinstance(m, RandomModule)]
    assert all(m.noise_source is None for m in deployed_layers)
    assert len(deployed_layers) == len(sources)


@pytest.mark.parametrize("case", cases(STRONG))
def test_deployed_network_is_the_trained_one_unless_split(case: Case) -> None:
    loop = case.loop().run(4)
    assert torch.equal(loop.logits(), loop.logits())
    d = case.defense
    splits = isinstance(d, ADMM) or (isinstance(d, Splitting) and d.beta > 0)
    splits |= isinstance(d, EMA | MeanSparse | Quantise)
    splits |= isinstance(d, Lasso) and max(d.sparsity, d.threshold) > 0
    assert torch.equal(loop.logits(), logits(loop.model)) != splits


@pytest.mark.parametrize("case", cases(STRONG))
@pytest.mark.parametrize("killed_after", [1, 4, 6])
def test_resumed_run_equals_unbroken_run(case: Case, killed_after: int) -> None:
    unbroken, broken = case.loop().run(8), case.loop().run(killed_after)
    resumed = case.loop().load(broken.saved(), killed_after).run(8 - killed_after)
    same_run(resumed, unbroken, killed_after)


@pytest.mark.parametrize("case", cases(STRONG))
def test_state_is_a_copy(case: Case) -> None:
    loop = case.loop().run(3)
    first = loop.state()["defenses"][0]
    file = io.BytesIO()
    torch.save(first, file)
    loop.run(3)
    again = io.BytesIO()
    torch.save(first, again)
    assert file.getvalue() == again.getvalue()


@pytest.mark.parametrize("case", cases(STRONG))
def test_other_random_streams_stay_put(case: Case) -> None:
    before = torch.get_rng_state()
    loop = Loop([Defense(), fresh(case.defense), Defense()], case.optimizer, case.network).run(7)
    loop.deployed()
    assert torch.equal(torch.get_rng_state(), before)
    for s, seed in ((loop.steps[0], 7), (loop.steps[2], 9)):
        assert torch.equal(s.generator.get_state(), torch.Generator().manual_seed(seed).get_state())


@pytest.mark.parametrize("case", cases(STRONG))
def test_hooks_before_the_backward_pass_leave_the_network_alone(case: Case) -> None:
    loop = case.loop().run(4)
    d, s = loop.defenses[0], loop.steps[0]
    list(loop.model.modules())[-1].eval()  # a mix of modes must come back as it was
    modes = [m.training for m in loop.model.modules()]
    state = {k: v.clone() for k, v in loop.model.state_dict().items()}
    for p in loop.model.parameters():
        p.grad = None
    s.x, s.y = batch(0)
    clean = s.x.clone()
    x = d.perturb(s)
    term = d.penalty(s)
    assert torch.equal(s.x, clean)
    assert not x.requires_grad
    assert term is None or term.shape == ()
    assert [m.training for m in loop.model.modules()] == modes
    assert all(torch.equal(state[k], v) for k, v in loop.model.state_dict().items())
    assert all(p.grad is None for p in loop.model.parameters())


def test_all_compose() -> None:
    strong = {param.id: param.values[0].defense for param in cases(STRONG)}
    keys = ("enresnet", "pgd_at", "clip", "spectral_penalty", "rgsm")
    loop = Loop([fresh(strong[f"{key}-0"]) for key in keys]).run(2 * EPOCH)
    assert all(torch.isfinite(torch.tensor(loop.losses)))
    assert loop.logits().isfinite().all()
    assert all(d.memory for d in loop.defenses[2:])


def test_order_of_defenses_without_common_state_does_not_matter() -> None:
    a, b = RGSM(lam=0.1, beta=0.5), EnResNet(members=1, scale="batch")
    one, other = Loop([fresh(a), fresh(b)]), Loop([fresh(b), fresh(a)])
    for s in (one.steps[1], other.steps[0]):
        s.generator.manual_seed(3)
    assert torch.equal(one.run(4).logits(), other.run(4).logits())

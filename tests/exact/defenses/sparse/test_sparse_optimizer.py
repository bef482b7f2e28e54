"""LinBreg, AdaBreg and ProxSGD against torch's optimizers, the papers' formulas, and convex problems."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from defenses import AdaBreg, LinBreg, ProxSGD
from defenses.regularisers import L1, GroupLasso, make_regulariser
from defenses.sparse.sparse_optimizer import BregmanOptimizer, SparseOptimizer, prox_into, soft_threshold_into
from robustbench_sparse.config.optimizers import OPTIMIZERS, OptimizerSpec
from robustbench_sparse.config.plugins import build, settings_of
from robustbench_sparse.foundation.errors import UserError

Build = Callable[[Any], torch.optim.Optimizer]
ROWS = {"name": "group_lasso", "group": "row"}
# Every optimizer with and without momentum.
EACH: list[Callable[..., SparseOptimizer]] = [
    lambda ps, **kw: LinBreg(ps, lr=0.2, **kw),
    lambda ps, **kw: LinBreg(ps, lr=0.2, momentum=0.8, delta=2.0, **kw),
    lambda ps, **kw: AdaBreg(ps, lr=0.01, delta=2.0, **kw),
    lambda ps, **kw: ProxSGD(ps, lr=0.2, **kw),
    lambda ps, **kw: ProxSGD(ps, lr=0.05, momentum=0.8, **kw),
]
IDS = ["linbreg", "linbreg-momentum", "adabreg", "proxsgd", "proxsgd-momentum"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.BatchNorm1d(20), nn.Linear(20, 5))
    return model.to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> list[float]:
    """Steps on batches that depend on the step's number alone."""
    dtype = next(model.parameters()).dtype
    x, y = torch.randn(64, 10, generator=generator()).to(dtype), torch.arange(64) % 5
    losses = []
    for k in range(first, first + steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[k % 4 :: 4]), y[k % 4 :: 4])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def groups(model: nn.Module, regulariser: Any, **settings: Any) -> list[dict[str, Any]]:
    """Matrices with a regulariser, all else without."""
    ps = list(model.parameters())
    return [
        {"params": [p for p in ps if p.ndim > 1], "regulariser": regulariser, **settings},
        {"params": [p for p in ps if p.ndim == 1], "regulariser": None},
    ]


# J = 0 ------------------------------------------------------------------------------------------------------

PARITY: dict[str, tuple[Build, Build]] = {
    "sgd": (
        lambda ps: LinBreg(ps, lr=0.05, delta=2.0, weight_decay=1e-2),
        lambda ps: torch.optim.SGD(ps, lr=0.1, weight_decay=1e-2),
    ),
    "adam": (
        lambda ps: AdaBreg(ps, lr=0.005, delta=2.0, weight_decay=1e-2, betas=(0.8, 0.99)),
        lambda ps: torch.optim.Adam(ps, lr=0.01, weight_decay=1e-2, betas=(0.8, 0.99)),
    ),
    "proxsgd": (lambda ps: ProxSGD(ps, lr=0.1), lambda ps: torch.optim.SGD(ps, lr=0.1)),
    "proxsgd-momentum": (
        lambda ps: ProxSGD(ps, lr=0.02, momentum=0.9, weight_decay=1e-2),
        lambda ps: torch.optim.SGD(ps, lr=0.02, momentum=0.9, weight_decay=1e-2),
    ),
}


@pytest.mark.parametrize("regulariser", [None, "l1", ROWS], ids=["none", "l1", "rows"])
@pytest.mark.parametrize("name", PARITY)
def test_without_regulariser_it_is_torchs_optimizer(name: str, regulariser: Any) -> None:
    ours, theirs = PARITY[name]
    a, b = network(torch.float32), network(torch.float32)
    first, second = ours(groups(a, regulariser)), theirs(b.parameters())  # lam = 0
    schedules = StepLR(first, 3, 0.5), StepLR(second, 3, 0.5)
    for k in range(10):
        train(a, first, 10, 10 * k)
        train(b, second, 10, 10 * k)
        for schedule in schedules:
            schedule.step()
    assert (weights(a) - weights(b)).abs().max() < 1e-6
    assert (weights(a) - weights(network(torch.float32))).abs().max() > 0.05


def test_momentum_without_regulariser_is_sgds_at_a_constant_rate() -> None:
    a, b = network(torch.float32), network(torch.float32)
    train(a, LinBreg(a.parameters(), lr=0.5, delta=2.0, momentum=0.9, weight_decay=1e-2), 100)
    train(b, torch.optim.SGD(b.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2), 100)
    assert (weights(a) - weights(b)).abs().max() < 1e-6


# The formulas -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["l1", ROWS])
@pytest.mark.parametrize("kind", ["linbreg", "momentum", "adabreg"])
def test_steps_are_those_of_the_paper(kind: str, entry: Any) -> None:
    """Algorithms 1 to 3 as printed, in v, with a rate and a lambda that change."""
    lam, delta, decay = 0.3, 0.7, 0.1
    theta = torch.randn(6, 4, generator=generator(), dtype=torch.float64)
    p = nn.Parameter(theta.clone())
    target = torch.randn(6, 4, generator=generator(1), dtype=torch.float64)
    common: dict[str, Any] = {"lam": lam, "delta": delta, "regulariser": entry, "weight_decay": decay}
    optimizer: BregmanOptimizer
    if kind == "adabreg":
        optimizer = AdaBreg([p], betas=(0.8, 0.9), eps=1e-3, **common)
    else:
        optimizer = LinBreg([p], momentum=0.6 if kind == "momentum" else 0.0, **common)
    r = make_regulariser(entry)
    v = lam * r.subgrad(theta) + theta / delta
    m1 = m2 = torch.zeros_like(theta)
    for k in range(1, 30):
        lr, lam = 0.1 / k**0.5, lam * 1.01
        optimizer.param_groups[0].update(lr=lr, lam=lam if k > 1 else lam / 1.01)
        lam = optimizer.param_groups[0]["lam"]
        g = theta - target + decay * theta
        p.grad = p.detach() - target
        optimizer.step()
        if kind == "linbreg":
            v = v - lr * g
        elif kind == "momentum":
            m1 = 0.6 * m1 + (1 - 0.6) * lr * g
            v = v - m1
        else:
            m1, m2 = 0.8 * m1 + 0.2 * g, 0.9 * m2 + 0.1 * g**2
            v = v - lr * (m1 / (1 - 0.8**k)) / ((m2 / (1 - 0.9**k)).sqrt() + 1e-3)
        theta = r.prox(delta * v, delta * lam)
        assert torch.allclose(p.detach(), theta, rtol=0, atol=1e-12)
        assert torch.allclose(optimizer.subgradient(p), v, rtol=0, atol=1e-12)


def test_proxsgd_steps_by_hand() -> None:
    p = nn.Parameter(torch.tensor([1.0, -0.3], dtype=torch.float64))
    optimizer = ProxSGD([p], lr=0.5, lam=0.2, momentum=0.5)
    p.grad = torch.tensor([1.0, 0.0], dtype=torch.float64)
    optimizer.step()  # 1 - 0.5 = 0.5 and -0.3, thresholded by 0.1
    assert torch.allclose(p.detach(), torch.tensor([0.4, -0.2], dtype=torch.float64), atol=1e-15)
    optimizer.step()  # moves of -0.6 and 0.1 before: 0.4 - 0.5 - 0.3 and -0.2 + 0.05
    assert torch.allclose(p.detach(), torch.tensor([-0.3, -0.05], dtype=torch.float64), atol=1e-15)
    optimizer.step()  # -0.3 - 0.5 - 0.35 and -0.05 + 0.075 < 0.1
    assert torch.allclose(p.detach(), torch.tensor([-1.05, 0.0], dtype=torch.float64), atol=1e-15)


def test_the_start_is_a_fixed_point_for_a_zero_gradient() -> None:
    for entry in ("l1", ROWS, {"name": "sparse_group_lasso", "group": "row"}):
        start = torch.randn(6, 4, generator=generator(), dtype=torch.float64)
        start[1] = 0
        for make in (LinBreg, AdaBreg):
            p = nn.Parameter(start.clone())
            p.grad = torch.zeros_like(p)
            make([p], lam=0.4, delta=3.0, regulariser=entry).step()
            assert torch.allclose(p.detach(), start, rtol=0, atol=1e-14)
            assert (p[1] == 0).all()


@pytest.mark.parametrize("make", EACH, ids=IDS)
@pytest.mark.parametrize("entry", ["l1", ROWS, "l0", {"name": "group_lasso", "group": "channel"}])
def test_foreach_equals_the_loop(make: Callable[..., SparseOptimizer], entry: Any) -> None:
    a, b = network(), network()
    for model, foreach in ((a, True), (b, False)):
        settings = {"lam": 0.005, "weight_decay": 1e-2, "foreach": foreach}
        train(model, make(groups(model, entry), **settings), 40)
    assert torch.allclose(weights(a), weights(b), rtol=0, atol=1e-9)
    assert (weights(a) - weights(network())).abs().max() > 0.05


@pytest.mark.parametrize("size", [(7, 5), (4,)])
def test_soft_threshold_is_the_proximal_map_bit_for_bit(size: tuple[int, ...]) -> None:
    ws = [torch.randn(size, generator=generator(k)) for k in range(3)]
    ws[0].view(-1)[:3] = torch.tensor([0.5, -0.5, 0.0])
    expected = [L1().prox(w, 0.5) for w in ws]
    assert all((e == 0).any() and (e != 0).any() for e in expected)
    for into in (lambda i, o: soft_threshold_into(i, 0.5, o), lambda i, o: prox_into(L1(), i, 0.5, o)):
        out = [torch.full_like(w, 9.0) for w in ws]
        into(ws, out)
        same = [w.clone() for w in ws]
        into(same, same)
        for e, o, s in zip(expected, out, same, strict=True):
            assert torch.equal(e, o)
            assert torch.equal(e, s)


# Convex problems --------------------------------------------------------------------------------------------


def compressed_sensing() -> tuple[Tensor, Tensor, Tensor]:
    """A (60, 200) Gaussian, b = A x, x with 8 entries of size at least 1."""
    g = generator(3)
    a = torch.randn(60, 200, generator=g, dtype=torch.float64) / 60**0.5
    x = torch.zeros(200, dtype=torch.float64)
    values = (1 + torch.rand(8, generator=g, dtype=torch.float64)) * torch.tensor([1.0, -1.0] * 4)
    x[torch.randperm(200, generator=g)[:8]] = values
    return a, a @ x, x


def residual_step(p: nn.Parameter, a: Tensor, b: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """One step on ||A p - b||^2 / 2; returns the loss before it."""
    r = a @ p.detach() - b
    p.grad = a.T @ r
    optimizer.step()
    return float(r.square().sum() / 2)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_linbreg_solves_compressed_sensing(momentum: float) -> None:
    a, b, x = compressed_sensing()
    p = nn.Parameter(torch.zeros_like(x))
    tau = 1 / float(torch.linalg.matrix_norm(a, 2)) ** 2
    optimizer = LinBreg([p], lr=tau, lam=10.0, momentum=momentum)
    grown = []
    for _ in range(6000):
        residual_step(p, a, b, optimizer)
        grown.append(int(p.count_nonzero()))
    assert torch.equal(p.abs() > 1e-9, x != 0)  # what was added in passing is left with rounding errors
    assert (p - x).abs().max() < 1e-3
    assert grown[0] == 0  # it starts from nothing and adds


@pytest.mark.parametrize("delta", [1.0, 0.5])
def test_loss_is_monotone_up_to_the_theorems_rate_and_not_far_above(delta: float) -> None:
    """Theorem 2: tau <= 2 / (delta L)."""
    a, b, _ = compressed_sensing()
    bound = 2 / (delta * float(torch.linalg.matrix_norm(a, 2)) ** 2)

    def losses(tau: float) -> Tensor:
        p = nn.Parameter(torch.zeros(200, dtype=torch.float64))
        optimizer = LinBreg([p], lr=tau, lam=0.5, delta=delta)
        return torch.tensor([residual_step(p, a, b, optimizer) for _ in range(300)], dtype=torch.float64)

    for tau in (0.3 * bound, 0.999 * bound):
        assert (losses(tau).diff() <= 1e-14).all()
    assert (losses(3 * bound).diff() > 1e-3).any()


def test_bregman_distance_to_the_sparse_solution_falls() -> None:
    a, b, x = compressed_sensing()
    lam, delta = 2.0, 1.5
    p = nn.Parameter(torch.zeros_like(x))
    optimizer = LinBreg(
        [p], lr=1 / (delta * float(torch.linalg.matrix_norm(a, 2)) ** 2), lam=lam, delta=delta
    )

    def j(theta: Tensor) -> Tensor:
        return lam * theta.abs().sum() + theta.square().sum() / (2 * delta)

    distances = []
    for _ in range(2000):
        v = optimizer.subgradient(p)
        distances.append(float(j(x) - j(p.detach()) - v @ (x - p.detach())))
        residual_step(p, a, b, optimizer)
    d = torch.tensor(distances, dtype=torch.float64)
    assert (d >= -1e-12).all()
    assert (d.diff() <= 1e-12).all()
    assert d[-1] < 1e-2 * d[0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_proxsgd_reaches_the_optimality_conditions_of_lasso(momentum: float) -> None:
    a, b, _ = compressed_sensing()
    lam = 0.05
    p = nn.Parameter(torch.zeros(200, dtype=torch.float64))
    lr = 1 / float(torch.linalg.matrix_norm(a, 2)) ** 2
    optimizer = ProxSGD([p], lr=lr, lam=lam, momentum=momentum)
    for _ in range(4000):
        residual_step(p, a, b, optimizer)
    gradient, on = a.T @ (a @ p.detach() - b), p.detach() != 0
    assert 4 < int(on.sum()) < 40
    assert torch.allclose(gradient[on], -lam * p.detach()[on].sign(), rtol=0, atol=1e-8)
    assert (gradient[~on].abs() <= lam + 1e-8).all()


@pytest.mark.parametrize("make", EACH, ids=IDS)
def test_rows_die_and_live_whole(make: Callable[..., SparseOptimizer]) -> None:
    """||W - T||^2 / 2 with rows that T wants large, whatever their start, and rows it wants across 0."""
    direction = torch.randn(9, 5, generator=generator(), dtype=torch.float64)
    direction /= direction.norm(dim=1, keepdim=True)
    strong = torch.arange(9) % 3 == 0
    p = nn.Parameter(torch.where(strong[:, None], 0.0, 0.02 * direction))
    target = torch.where(strong[:, None], 30 * direction, -0.02 * direction)
    optimizer = make([p], lam=0.2, regulariser=ROWS)
    for _ in range(12):
        p.grad = p.detach() - target
        optimizer.step()
    zero = p == 0
    assert torch.equal(zero.all(1), zero.any(1))
    assert torch.equal(zero.all(1), ~strong)


# An optimizer of torch --------------------------------------------------------------------------------------


def test_groups_have_their_own_regulariser_and_lam() -> None:
    model = network()
    a, b = (p for p in model.parameters() if p.ndim > 1)
    rest = [p for p in model.parameters() if p.ndim == 1]
    optimizer = ProxSGD(
        [
            {"params": [a], "regulariser": GroupLasso(group="row"), "lam": 1.0},
            {"params": [b], "regulariser": {"name": "zero"}},
            {"params": rest, "regulariser": None, "lam": 9.0},
        ],
        lam=0.5,
    )
    before = {p: p.detach().clone() for p in (a, b, *rest)}
    for p in before:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.allclose(a, GroupLasso(group="row").prox(before[a], 0.1))
    assert (b == 0).all()
    assert all(torch.equal(p, before[p]) for p in rest)
    assert [g["lam"] for g in optimizer.param_groups] == [1.0, 0.5, 9.0]


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("make", EACH, ids=IDS)
def test_saved_and_loaded_it_goes_on_bit_for_bit(make: Callable[..., SparseOptimizer], foreach: bool) -> None:
    entry = {"name": "group_lasso", "group": "row", "weighted": True}
    one, other = network(), network()
    first = make(groups(one, entry), lam=0.01, foreach=foreach)
    train(one, first, 12)
    first.param_groups[0]["lam"] = 0.02  # as a controller does
    file = io.BytesIO()
    torch.save({"model": one.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = make(groups(other, entry), lam=0.01, foreach=foreach)
    regularisers = [g["regulariser"] for g in second.param_groups]
    other.load_state_dict(saved["model"])
    second.load_state_dict(saved["optimizer"])
    assert [g["regulariser"] for g in second.param_groups] == regularisers
    assert second.param_groups[0]["lam"] == 0.02
    assert train(one, first, 12, 12) == train(other, second, 12, 12)
    assert torch.equal(weights(one), weights(other))
    assert isinstance(first.param_groups[0]["regulariser"], GroupLasso)  # saving left the optimizer alone


def test_a_state_of_another_regulariser_is_refused() -> None:
    model = network()
    state = LinBreg(groups(model, ROWS)).state_dict()
    for other in ("l1", {**ROWS, "weighted": True}, None):
        optimizer = LinBreg(groups(model, other), lr=0.7)
        with pytest.raises(ValueError, match=r"^regulariser: expected .*, got .*GroupLasso.*row"):
            optimizer.load_state_dict(state)
        assert optimizer.param_groups[0]["lr"] == 0.7


def test_a_regulariser_of_ones_own_needs_no_text() -> None:
    class Mine(L1):
        __repr__ = object.__repr__

    model = network()
    state = LinBreg(groups(model, Mine())).state_dict()
    assert "0x" not in state["param_groups"][0]["regulariser"]
    LinBreg(groups(model, Mine())).load_state_dict(state)


@pytest.mark.parametrize("make", EACH, ids=IDS)
@pytest.mark.parametrize("foreach", [True, False])
def test_step_leaves_gradients_and_idle_parameters_alone(
    make: Callable[..., SparseOptimizer], foreach: bool
) -> None:
    used, idle = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    optimizer = make([used, idle], lam=0.1, weight_decay=0.1, foreach=foreach)
    used.grad = torch.full((3, 2), 0.5)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(used.grad, torch.full((3, 2), 0.5))
    assert torch.equal(idle, torch.ones(3, 2))
    assert not (used == 1).any()


def test_closure_is_called_with_gradients_and_its_loss_returned() -> None:
    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = ProxSGD([p], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert p.item() == pytest.approx(1.6)
    assert optimizer.step() is None


@pytest.mark.parametrize(
    ("make", "settings", "name"),
    [
        (LinBreg, {"lr": -1.0}, "lr"),
        (LinBreg, {"lam": float("nan")}, "lam"),
        (LinBreg, {"delta": 0.0}, "delta"),
        (LinBreg, {"momentum": 1.0}, "momentum"),
        (LinBreg, {"regulariser": "l3"}, "regulariser"),
        (LinBreg, {"regulariser": {"name": "l1", "group": "row"}}, "regulariser"),
        (AdaBreg, {"betas": (0.9, 1.0)}, "betas"),
        (AdaBreg, {"eps": 0.0}, "eps"),
        (ProxSGD, {"momentum": -0.1}, "momentum"),
        (ProxSGD, {"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_bad_settings_are_refused_by_name(make: Any, settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: .*expected .*, got "):
        make([nn.Parameter(torch.ones(2))], **settings)
    optimizer = make([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=rf"^{name}: "):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **settings})
    assert len(optimizer.param_groups) == 1


# In a config ------------------------------------------------------------------------------------------------

SPARSE = ["linbreg", "adabreg", "proxsgd"]


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.line = nn.Conv1d(4, 4, 3)
        self.out = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.again.weight = self.out.weight
        self.scale = nn.Parameter(torch.ones(4, 4))


@pytest.mark.parametrize("key", SPARSE)
def test_spec_regularises_weights_of_layers_only(key: str) -> None:
    kernels = {"name": "group_lasso", "group": "kernel", "weighted": True}
    entry = {"name": key, "lr": 0.3, "lam": 0.2, "weight_decay": 0.1, "conv": kernels}
    spec = build(OPTIMIZERS, entry, "optimizer", OptimizerSpec)
    assert spec.sparsifies
    assert json.loads(json.dumps(settings_of(spec)))["conv"] == kernels
    model = Mixed()
    linear, conv, rest = spec.build(model).param_groups
    assert [id(p) for p in linear["params"]] == [id(model.out.weight)]
    assert [id(p) for p in conv["params"]] == [id(model.conv.weight), id(model.line.weight)]
    assert linear["regulariser"] == L1()
    assert repr(conv["regulariser"]) == repr(make_regulariser(kernels))
    assert rest["regulariser"] is None
    assert sum(len(g["params"]) for g in (linear, conv, rest)) == len(list(model.parameters()))
    for group in (linear, conv, rest):
        assert (group["lr"], group["lam"], group["weight_decay"]) == (0.3, 0.2, 0.1)


def test_spec_passes_on_its_settings() -> None:
    model = nn.Linear(2, 2)

    def made(**entry: Any) -> dict[str, Any]:
        return build(OPTIMIZERS, entry, "optimizer", OptimizerSpec).build(model).param_groups[0]

    lin = made(name="linbreg", delta=2.0, momentum=0.9, linear=None)
    assert (lin["delta"], lin["momentum"], lin["regulariser"]) == (2.0, 0.9, None)
    ada = made(name="adabreg", delta=3.0, beta1=0.5, beta2=0.6)
    assert (ada["delta"], ada["betas"], ada["lr"]) == (3.0, (0.5, 0.6), 1e-3)
    assert made(name="proxsgd", momentum=0.4)["momentum"] == 0.4


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"lam": -1.0}, r"^lam: expected .* got -1.0$"),
        ({"linear": "l3"}, r"^linear: expected one of l1.* got 'l3'$"),
        ({"conv": {"group": "row"}}, r"^conv: expected `name:`"),
        ({"conv": {"name": "group_lasso", "group": "atom"}}, r"^conv: .*expected .*kernel.* got 'atom'$"),
        ({"linear": {"name": "group_lasso", "group": "kernel"}}, r"^linear.*expected a weight with kernels"),
        ({"linear": 3}, r"^linear: "),
        ({"delta": 0.0}, r"^delta: "),
        ({"beta3": 0.0}, r"^beta3: unknown setting"),
    ],
)
def test_spec_refuses_by_name(entry: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        build(OPTIMIZERS, {"name": "adabreg", **entry}, "optimizer", OptimizerSpec)

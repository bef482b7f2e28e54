"""Checks D, T, Z and I: each fails on a network or an attack with its fault, and honest ones pass in five seeds."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.autograd import grad as taken_by_another_name

from attacks import APGD, FGSM, PGD, Attack, SampleRandom, Threat
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.checks import binarization as active_test
from robustbench_sparse.certificate.checks import indicators, objective
from robustbench_sparse.certificate.finding import Finding
from robustbench_sparse.certificate.subject import Context, Subject
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.engine.fast import FastNetwork

LINF, L2 = Threat(norm="linf", eps=0.1), Threat(norm="l2", eps=0.6)
CHECKS = (*objective.CHECKS, *active_test.CHECKS, *indicators.CHECKS)
QUICK = dataclasses.replace(BUDGETS["quick"], few=24, steps=20, inner_points=99)


class Around(nn.Module):
    """A network with something done to its images and its logits."""

    def __init__(
        self,
        net: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


def staircase(x: Tensor) -> Tensor:
    return torch.floor(x * 4096 + 0.5) / 4096


class Pulled(nn.Module):
    """Moves every image a little uphill before it classifies it."""

    def __init__(self, net: nn.Module, how: str) -> None:
        super().__init__()
        self.net, self.how = net, how
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            value = self.net(point).logsumexp(1).sum()
            if self.how == "backward":
                value.backward()
                step = point.grad
            else:
                (step,) = taken_by_another_name(value, point)
        assert step is not None
        return self.net(x + 0.01 * step)


@dataclass(frozen=True, kw_only=True)
class Forgetful(PGD):
    """PGD that returns the clean image, whatever it met."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        super().run(model, x, y, threat, random)
        return x


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def perceptron(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), activation, nn.Linear(64, 10))


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "relu": lambda: perceptron(nn.ReLU()),
    "sigmoid": lambda: perceptron(nn.Sigmoid()),
    "batch_norm": convolutional,
}


def trained(kind: str, seed: int, adversarial: Threat | None = None) -> nn.Sequential:
    x, y = digits()
    attack = PGD(steps=3, early_stop=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = NETWORKS[kind]()
        opt = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(5):
            for rows in torch.randperm(1400).split(64):
                images = x[rows]
                if adversarial is not None:
                    generator = torch.Generator().manual_seed(seed)
                    images = attack(net.eval(), images, y[rows], adversarial, generator)
                    net.train()
                opt.zero_grad()
                F.cross_entropy(net(images), y[rows]).backward()
                opt.step()
    return net.eval()


def subject(
    net: nn.Module,
    *attacks: Attack,
    threat: Threat = LINF,
    seed: int = 0,
    stand_in: FastNetwork | None = None,
    classes: int = 10,
) -> Subject:
    x, y = digits()
    plans = [AttackPlan(f"attack{i}", "pgd", attack, threat) for i, attack in enumerate(attacks)]
    return Subject(
        net,
        x[1400:1464],
        y[1400:1464],
        torch.arange(1400, 1464),
        threat,
        classes=classes,
        seed=seed,
        budget=QUICK,
        context=Context(plans=plans),
        stand_in=stand_in,
    )


@pytest.fixture(scope="module")
def plain() -> nn.Sequential:
    return trained("relu", 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("adversarial", [False, True])
def test_honest_networks_pass(seed: int, adversarial: bool) -> None:
    kind, threat = list(NETWORKS)[(seed + adversarial) % 3], L2 if seed % 2 else LINF
    s = subject(trained(kind, seed, threat if adversarial else None), threat=threat, seed=seed)
    found = {check.id: check.run(s) for check in CHECKS}
    skipped = {id_ for id_, f in found.items() if f.status == "skipped"}
    assert skipped == {"I4"}, found
    assert "stands in" in found["I4"].why
    assert all(f.status == "passed" for id_, f in found.items() if id_ not in skipped), found


@pytest.mark.parametrize("how", ["backward", "grad"])
def test_gradients_inside_the_forward_pass_fail_d1(plain: nn.Sequential, how: str) -> None:
    before = sys.getprofile()
    found = objective.forward_pass_takes_no_gradients(subject(Pulled(plain, how)))
    assert found.status == "failed"
    assert sys.getprofile() is before


def test_d1_puts_the_profiler_back_when_the_network_raises(plain: nn.Sequential) -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no images today")

    s, before = subject(plain), sys.getprofile()
    s.model = Around(plain, before=broken)
    with pytest.raises(RuntimeError, match="today"):
        objective.forward_pass_takes_no_gradients(s)
    assert sys.getprofile() is before


@pytest.mark.parametrize(("loss", "classes", "status"), [("dlr", 2, "failed"), ("dlr_targeted", 3, "failed")])
def test_losses_without_enough_classes_fail_d2(
    plain: nn.Sequential, loss: str, classes: int, status: str
) -> None:
    attack = APGD(loss=loss)  # type: ignore[arg-type]
    found = objective.losses_fit_the_classes(subject(plain, attack, classes=classes))
    assert (found.status, found.measured["invalid"]) == (status, ["attack0"])
    assert objective.losses_fit_the_classes(subject(plain, attack)).status == "passed"


def test_more_targets_than_classes_are_named(plain: nn.Sequential) -> None:
    found = objective.losses_fit_the_classes(subject(plain, APGD(loss="dlr_targeted", targets=9), classes=5))
    assert (found.status, found.measured["targets_clipped"]) == ("passed", ["attack0"])
    assert "attack0" in found.why


def test_rank_correlation_is_spearmans_with_ties() -> None:
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        a, b = torch.randint(6, (30,), generator=g).float(), torch.randint(6, (30,), generator=g).float()
        assert objective.rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert objective.rank_correlation(a, torch.ones(30)) == 0
    assert objective.rank_correlation(a, a.exp()) == pytest.approx(1)


@pytest.mark.parametrize("after", [lambda z: 1000 * z, lambda z: torch.sigmoid(10 * z)])
def test_saturated_and_bounded_outputs_fail_t1(
    plain: nn.Sequential, after: Callable[[Tensor], Tensor]
) -> None:
    found = objective.loss_ranks_like_the_margin(subject(Around(plain, after=after)))
    assert found.status == "failed", found
    assert objective.loss_ranks_like_the_margin(subject(plain)).status == "passed"


def test_vanishing_gradients_fail_the_active_test(plain: nn.Sequential) -> None:
    found = active_test.planted_adversarials_are_found(subject(Around(plain, before=staircase)))
    assert found.status == "failed"
    assert found.measured["found_share"] < 0.5  # type: ignore[operator]
    assert found.measured["random_found_share"] < 0.5  # type: ignore[operator]
    assert found.measured["set_up_failed"] == []


def test_the_benchmarks_own_attack_is_the_one_under_test(plain: nn.Sequential) -> None:
    weak = PGD(steps=1, step_size=1e-3, random_start=False)
    found = active_test.planted_adversarials_are_found(subject(plain, weak))
    assert (found.status, found.measured["attack"]) == ("failed", "attack0")
    strong = active_test.planted_adversarials_are_found(
        subject(plain, weak, APGD(steps=40, loss="dlr", restarts=2), FGSM())
    )
    assert (strong.status, strong.measured["attack"]) == ("passed", "attack1")


@pytest.mark.parametrize("threat", [LINF, L2])
def test_heads_tell_the_surface_from_the_inside_and_rows_stay_in_order(
    plain: nn.Sequential, threat: Threat
) -> None:
    s = subject(plain, threat=threat)
    rows = s.few[:8]
    layers = active_test._last_layers(s)
    assert layers == ["3"]
    setup = active_test._heads(s, layers, rows, threat)
    assert bool(setup.ok.all())
    heads = active_test.Heads(s.model, layers, setup.weight, setup.bias)
    random = s.random("z1/points", rows)
    surface = active_test._on_surface(s.x[rows], threat, random.normal(s.x[rows]))
    assert bool((heads(surface)[:, 1] > 0).all())
    assert bool((heads(s.x[rows])[:, 1] < 0).all())
    size = threat.size(surface - s.x[rows])
    assert bool((size <= threat.eps * (1 + 1e-5)).all())
    assert bool((size > 0.95 * threat.eps).all())
    attack = PGD(steps=10)
    found = attack(heads, s.x[rows], torch.zeros_like(rows), threat, s.random("order", rows))
    assert bool(((found - s.x[rows]).flatten(1).abs().amax(1) <= threat.eps + 1e-6).all())
    assert not plain[3]._forward_pre_hooks
    assert not plain[3]._forward_hooks


def test_a_plane_that_separates_is_found_where_there_is_one() -> None:
    g = torch.Generator().manual_seed(0)
    inner = torch.randn(4, 50, 6, generator=g, dtype=torch.float64)
    outer = torch.zeros(4, 6, dtype=torch.float64)
    outer[:2, 0] = 6  # beyond all; the other two lie in their midst
    _, low, high = active_test._plane(inner, outer)
    assert (high > low).tolist() == [True, True, False, False]


def test_networks_without_a_linear_layer_skip_the_active_test() -> None:
    net = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()).eval()
    s = subject(net)
    s.y = net(s.x).argmax(1)
    s.clean = torch.ones(len(s))
    found = active_test.planted_adversarials_are_found(s)
    assert found.status == "skipped"
    assert "nn.Linear" in found.why


def test_features_that_cannot_be_separated_are_reported_not_passed(plain: nn.Sequential) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = plain, nn.Linear(1, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + self.head(torch.zeros(len(x), 1))

    s = subject(Constant().eval())
    layers = ["head"]
    setup = active_test._heads(s, layers, s.few[:4], LINF)
    assert not bool(setup.ok.any())


def test_a_loss_that_jumps_fails_i1(plain: nn.Sequential) -> None:
    def jump(x: Tensor) -> Tensor:
        return x + 0.2 * torch.sign(torch.sin(1e4 * x))

    found = indicators.loss_does_not_jump(subject(Around(plain, before=jump)))
    assert found.status == "failed"
    assert found.measured["ratio"] > 0.5  # type: ignore[operator]


def test_a_steep_but_smooth_loss_passes_i1(plain: nn.Sequential) -> None:
    found = indicators.loss_does_not_jump(
        subject(Around(plain, after=lambda z: 1000 * (z - 0.9 * z.detach().mean())))
    )
    assert found.status == "passed"


def test_an_attack_that_returns_less_than_it_met_fails_i2(plain: nn.Sequential) -> None:
    s = subject(plain, Forgetful(steps=10), PGD(steps=10))
    found = indicators.adversarials_met_are_returned(s)
    assert found.status == "failed"
    silent = dict(zip(found.measured["attacks"], found.measured["silent_share"], strict=True))  # type: ignore[arg-type]
    assert silent["attack0"] > 0.1
    assert silent["attack1"] == silent["certificate/ce"] == 0
    assert (s.found.correct < 0.5).sum() > 0  # what it lost is kept


def test_an_attack_that_stops_halfway_fails_i3(plain: nn.Sequential) -> None:
    short = PGD(steps=10, step_size=LINF.eps / 20, random_start=False, loss="margin")
    found = indicators.attacks_have_stopped_climbing(subject(plain, short))
    assert found.status == "failed", found
    assert indicators.attacks_have_stopped_climbing(subject(plain, PGD(steps=40))).status == "passed"


def test_last_rise_is_a_share_of_the_runs_range() -> None:
    assert indicators._last_rise([0.0] * 10 + [1.0] * 11) == pytest.approx(0)
    assert indicators._last_rise([float(i) for i in range(21)]) == pytest.approx(0.5)
    assert indicators._last_rise([0.0, 4.0, *[1.0] * 9, 2.0]) == 0
    assert indicators._last_rise([3.0]) == 0


def test_a_stand_in_that_leads_astray_fails_i4(plain: nn.Sequential) -> None:
    good, bad = (FastNetwork(plain, precision="fp32") for _ in range(2))
    assert indicators.stand_in_is_a_good_surrogate(subject(plain, stand_in=good)).status == "passed"
    bad.twin = Around(bad.twin, before=staircase)
    found = indicators.stand_in_is_a_good_surrogate(subject(plain, stand_in=bad))
    assert found.status == "failed"
    assert found.measured["direct_acc"] < found.measured["stand_in_acc"]  # type: ignore[operator]


def test_i4_reports_transfer_from_the_twin(plain: nn.Sequential) -> None:
    s = subject(plain, stand_in=FastNetwork(plain, precision="bf16"))
    s.context = dataclasses.replace(s.context, twin=("other", trained("relu", 1)))
    found = indicators.stand_in_is_a_good_surrogate(s)
    assert found.status == "passed"
    assert 0 <= found.measured["twin_transfer_acc"] <= 1  # type: ignore[operator]


def test_findings_do_not_depend_on_what_ran_before(plain: nn.Sequential) -> None:
    def findings(order: int) -> dict[str, Finding]:
        s = subject(plain, PGD(steps=10))
        return {check.id: check.run(s) for check in CHECKS[::order]}

    assert findings(1) == findings(-1)

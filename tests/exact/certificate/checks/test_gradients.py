"""G1 to G3, V1 to V3, T2: each fails where it must and passes on honest networks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attacks import PGD
from attacks.base import RandomModule, Threat
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.checks import gradients, jumps, outputs
from robustbench_sparse.certificate.checks.jumps import EvolutionStrategy
from robustbench_sparse.certificate.finding import Finding
from robustbench_sparse.certificate.subject import Context, Subject
from robustbench_sparse.config.plan import AttackPlan
from tests.helpers.certificate_subjects import After, Before, Wrong

CHECKS = (*gradients.CHECKS, *outputs.CHECKS, *jumps.CHECKS)
EPS = 0.15
Make = Callable[[], nn.Module]


@functools.cache
def data() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)


def mlp(activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), activation(), nn.Linear(48, 10))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


MAKES: dict[str, Make] = {"relu": mlp, "sigmoid": lambda: mlp(nn.Sigmoid), "conv": convolutional}


@functools.cache
def trained(make: str, seed: int = 0, adversarially: bool = False) -> nn.Module:
    x, y = data()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return fitted(MAKES[make](), adversarially, x, y)


def fitted(net: nn.Module, adversarially: bool, x: Tensor, y: Tensor) -> nn.Module:
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(4 if adversarially else 6):
        for rows in torch.randperm(1400).split(64):
            images = x[rows]
            if adversarially:
                images = PGD(steps=3)(net.eval(), images, y[rows], Threat(eps=EPS))
            opt.zero_grad()
            F.cross_entropy(net.train()(images), y[rows]).backward()
            opt.step()
    return net.eval()


def subject(net: nn.Module, context: Context | None = None, n: int = 96) -> Subject:
    x, y = data()
    part = slice(1400, 1400 + n)
    return Subject(
        net.eval(),
        x[part],
        y[part],
        torch.arange(1400, 1400 + n),
        Threat(eps=EPS),
        classes=10,
        seed=0,
        budget=BUDGETS["quick"],
        context=context,
    )


def run(name: str, s: Subject) -> Finding:
    (check,) = [c for c in CHECKS if c.id == name]
    s.check = check.id
    return check.run(s)


def number(finding: Finding, name: str) -> float:
    value = finding.measured[name]
    assert isinstance(value, float)
    return value


class Winners(nn.Module):
    """Keeps the largest activations; ``hidden`` lets its gradient say nothing, as a worse k-WTA would."""

    def __init__(self, count: int, hidden: bool = False) -> None:
        super().__init__()
        self.count, self.hidden = count, hidden

    def forward(self, x: Tensor) -> Tensor:
        least = x.topk(self.count, dim=1).values[:, -1:]
        out = torch.where(x >= least, x, 0)
        return out.detach() + 0 * x if self.hidden else out


def rounded(x: Tensor) -> Tensor:
    return torch.round(x * 256) / 256


def by_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy().copy())


HONEST = [("relu", seed, True) for seed in range(5)]
HONEST += [(make, seed, False) for make in ("relu", "sigmoid") for seed in range(5)]
HONEST += [("conv", seed, adversarially) for seed in range(2) for adversarially in (False, True)]


@pytest.mark.parametrize(("make", "seed", "adversarially"), HONEST)
def test_honest_networks_pass_every_check(make: str, seed: int, adversarially: bool) -> None:
    twin = trained(make, seed)
    s = subject(trained(make, seed, adversarially), Context(twin=("twin", twin)), 64)
    found = {c.id: run(c.id, s) for c in CHECKS}
    # T2 is skipped: nothing in these networks jumps, selects or kills gradients.
    assert {name: f.status for name, f in found.items()} == {
        **dict.fromkeys(("G1", "G2", "G3", "V1", "V2", "V3"), "passed"),
        "T2": "skipped",
    }


def white(net: nn.Module) -> float:
    return subject(net).white.accuracy


@pytest.mark.parametrize("before", [rounded, Wrong.apply], ids=["rounded", "constant gradient"])
def test_g1_fails_on_missing_and_wrong_gradients_and_breaks_the_network(before: Any) -> None:
    s = subject(Before(trained("relu"), before))
    assert s.white.accuracy > 0.7
    found = run("G1", s)
    assert found.status == "failed"
    assert abs(number(found, "bpda_acc") - white(trained("relu"))) <= 0.03
    assert (s.found.correct[s.correct_rows] == 0).float().mean() > 0.7  # these lower the row's number
    assert "G1" in s.found.by


def test_g1_tells_an_underflowing_cross_entropy_from_a_missing_gradient() -> None:
    found = run("G1", subject(After(trained("relu"), lambda z: 1000 * z)))
    assert found.status == "passed"
    assert number(found, "zero_cross_entropy_gradient_share") > 0.5
    assert number(found, "zero_margin_gradient_share") == 0


def test_g2_fails_where_gradients_raise_and_g1_still_breaks_the_network() -> None:
    s = subject(Before(trained("relu"), by_numpy))
    found = run("G2", s)
    assert found.status == "failed"
    assert "numpy" in str(found.measured["error"])
    assert abs(number(run("G1", s), "bpda_acc") - white(trained("relu"))) <= 0.03
    assert run("T2", s).status == "failed"
    assert (
        run("V2", s).status
        == run("V3", subject(s.model, Context(twin=("t", trained("relu"))))).status
        == "skipped"
    )


def test_g2_fails_where_gradients_are_not_finite() -> None:
    bad = After(trained("relu"), lambda z: z + 0 * (z - z.detach()).abs().sqrt())
    assert run("G2", subject(bad)).status == "failed"


def test_g3_fails_on_probabilities_and_passes_on_a_sigmoid() -> None:
    assert run("G3", subject(After(trained("relu"), lambda z: z.softmax(1)))).status == "failed"
    assert run("G3", subject(After(trained("relu"), torch.sigmoid))).status == "passed"


@pytest.mark.parametrize("functional", [True, False])
def test_v1_breaks_a_saturated_sigmoid(functional: bool) -> None:
    class Steep(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.sigmoid(8 * z)

    after = Steep()
    net = After(trained("relu"), after.forward if functional else after)
    s = subject(net)
    found = run("V1", s)
    assert found.status == "failed"
    last = min(number(found, "after_pre_activation_acc"), number(found, "after_float64_acc"))
    assert last < s.white.accuracy - 0.05
    if not functional:
        assert last <= white(trained("relu")) + 0.03


def test_v1_passes_a_bounded_output_that_hides_nothing_and_small_plain_logits() -> None:
    found = run("V1", subject(nn.Sequential(trained("relu"), nn.Sigmoid())))
    assert found.measured["last_activation"] == "1"
    soft = run("V1", subject(After(trained("relu"), lambda z: z.softmax(1))))
    small = run("V1", subject(After(trained("relu"), lambda z: z / 200)))
    assert soft.status == small.status == "passed"
    assert small.measured["last_activation"] == ""
    assert "white_acc" in soft.measured
    assert "white_acc" not in small.measured


def reported(net: nn.Module, share: float, n: int = 96) -> Context:
    """A row whose only attack left this share of the images."""
    plan = AttackPlan("pgd", "pgd", PGD(steps=5), Threat(eps=EPS))
    index = range(1400, 1400 + n)
    correct = [float(i < share * n) for i in range(n)]
    table = pd.DataFrame({"index": index, "linf": 0.1, "l2": 0.5, "adv_correct": correct})
    return Context(plans=[plan], outcomes={"pgd": table}, twin=("twin", net))


def test_v1_holds_a_bounded_network_against_what_its_row_reports() -> None:
    net = nn.Sequential(trained("relu"), nn.Sigmoid())
    assert run("V1", subject(net, reported(net, 0.9))).status == "failed"
    assert run("V1", subject(net, reported(net, 0.0))).status == "passed"


def test_v2_fails_on_a_saturated_cross_entropy_and_names_the_scale_that_breaks_it() -> None:
    found = run("V2", subject(After(trained("relu"), lambda z: 1000 * z)))
    assert found.status == "failed"
    accs, scales = found.measured["accs"], found.measured["scales"]
    assert isinstance(accs, list)
    assert isinstance(scales, list)
    assert len(accs) == len(scales) == 5
    assert float(accs[-1]) < 0.35 < 0.6 < float(accs[1])


def test_v3_fails_without_any_gradient_and_passes_where_scaling_brings_it_back() -> None:
    context = Context(twin=("twin", trained("relu")))
    found = run("V3", subject(Before(trained("relu"), rounded), context))
    assert found.status == "failed"
    assert number(found, "ratio") == 0
    found = run("V3", subject(After(trained("relu"), lambda z: 1000 * z), context))
    assert found.status == "passed"
    assert number(found, "ratio") < 1e-3
    assert "after_float64_acc" in found.measured
    assert run(
        "V3", subject(After(trained("relu"), lambda z: 1000 * z), reported(trained("relu"), 0.9))
    ).status == ("failed")
    assert run("V3", subject(trained("relu"))).status == "skipped"  # there is no twin


def test_t2_breaks_jumping_parts_that_mislead_the_white_box() -> None:
    net = trained("relu")
    hidden = nn.Sequential(net[:2], Winners(24, hidden=True), net[3:])
    s = subject(hidden)
    found = run("T2", s)
    assert found.status == "failed"
    assert found.measured["parts"] == ["1"]
    assert number(found, "white_acc") > 0.8
    assert number(found, "bpda_acc") < 0.5
    assert number(found, "es_acc") < 0.5


def test_t2_passes_winners_take_all_that_the_white_box_breaks_already() -> None:
    net = trained("relu")
    found = run("T2", subject(nn.Sequential(net[:2], Winners(40), net[3:])))
    assert found.status == "passed"
    assert found.measured["parts"] == ["1"]


def test_random_networks_are_checked_with_reproducible_noise() -> None:
    class Noisy(RandomModule):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.1 * self.draw(x)

    net = nn.Sequential(Noisy(), trained("relu"))
    context = Context(twin=("twin", trained("relu")))
    before = torch.get_rng_state()
    first, second = ({c.id: run(c.id, subject(net, context, 12)) for c in CHECKS} for _ in range(2))
    assert first == second
    assert not [name for name, f in first.items() if f.status == "failed"]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_estimated_gradient_attacks_nearly_as_well_as_the_true_one(norm: Any) -> None:
    s = subject(trained("relu"), n=32)
    threat = Threat(norm=norm, eps=EPS if norm == "linf" else 0.9)
    blind = s.attack(EvolutionStrategy(samples=200, steps=20), "es", threat=threat)
    assert blind.accuracy <= s.attack(PGD(steps=20), "pgd", threat=threat).accuracy + 0.1
    assert blind.accuracy < s.clean.mean() - 0.4
    assert threat.size(blind.candidate - s.x).max() <= threat.eps + 1e-5


@pytest.mark.parametrize("values", [{"samples": 1}, {"steps": 0}, {"sigma": 0.0}])
def test_settings_of_the_estimate_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        EvolutionStrategy(**values)


def test_the_texts_are_there() -> None:
    assert [c.id for c in CHECKS] == ["G1", "G2", "G3", "V1", "V2", "V3", "T2"]
    for c in CHECKS:
        assert all((c.title, c.source, c.rule, c.meaning, c.advice))

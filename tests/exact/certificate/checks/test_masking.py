"""M1 to M13: each fails on a network or an attack that is broken its way, and passes on honest ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import FGSM, PGD, Attack, SampleRandom, Threat
from robustbench_sparse.certificate.checks import controls, masking
from robustbench_sparse.certificate.finding import Finding
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.config.plan import AttackPlan
from tests.helpers.certificate_subjects import (
    EPS,
    After,
    Before,
    outcome,
    run,
    staircase,
    subject,
    trained,
)

CHECKS = (*masking.CHECKS, *controls.CHECKS)
IDS = [check.id for check in CHECKS]


def honest(seed: int, adversarially: bool) -> Subject:
    net = trained(seed, adversarially)
    s = subject(net)
    attacks = {"pgd": PGD(steps=50, restarts=3), "margin": PGD(steps=50, restarts=2, loss="margin")}
    plans = [AttackPlan(label, "pgd", attack, Threat(eps=EPS)) for label, attack in attacks.items()]
    tables = {k: outcome(s, s.attack(a, f"stored {k}").correct.tolist(), EPS) for k, a in attacks.items()}
    tables["clean"] = outcome(s, s.clean.tolist())
    twin = ("natural", trained(seed)) if adversarially else None
    return subject(net, plans=plans, outcomes=tables, twin=twin, undefended=not adversarially)


@pytest.mark.parametrize("adversarially", [False, True], ids=["natural", "pgd_at"])
@pytest.mark.parametrize("seed", range(5))
def test_honest_networks_raise_no_alarm(seed: int, adversarially: bool) -> None:
    s = honest(seed, adversarially)
    findings = {name: run(CHECKS, name, s) for name in IDS}
    assert [name for name, f in findings.items() if f.status == "failed"] == []
    skipped = {name for name, f in findings.items() if f.status == "skipped"}
    assert skipped == (set() if adversarially else {"M9"})  # an undefended network has no twin to borrow from
    assert all(f.done and f.measured for name, f in findings.items() if name not in skipped)


class Curved(torch.autograd.Function):
    """The identity whose gradient is right at points of the 1/16 grid that clean images lie on, and wrong elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        clean = ((x * 16 - (x * 16).round()).abs() < 1e-4).flatten(1).all(1)
        return torch.where(clean.view(-1, 1, 1, 1), grads[0], -grads[0])


def curved(x: Tensor) -> Tensor:
    out: Tensor = Curved.apply(x)  # type: ignore[no-untyped-call]
    return out


def hidden(**context: Any) -> Subject:
    return subject(Before(trained(), staircase), **context)


BROKEN: dict[str, Callable[[], Subject]] = {
    "M1": lambda: subject(Before(trained(), curved)),
    "M3": hidden,
    "M4": hidden,
    "M5": lambda: subject(After(trained(), lambda z: 1e4 * z)),
    "M7": hidden,
    "M9": lambda: hidden(twin=("natural", trained())),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken_networks_are_found(name: str) -> None:
    assert run(CHECKS, name, BROKEN[name]()).status == "failed"


def test_accuracy_that_rises_with_eps_fails_m2(monkeypatch: pytest.MonkeyPatch) -> None:
    class Timid(PGD):
        """Gives up where the ball is large."""

        def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
            return x.clone() if threat.eps > EPS else super().run(model, x, y, threat, random)

    assert run(CHECKS, "M2", subject(trained())).status == "passed"
    monkeypatch.setattr(masking, "PGD", Timid)
    found = run(CHECKS, "M2", subject(trained()))
    assert found.status == "failed"
    assert found.measured["largest_rise"] > 0.5  # type: ignore[operator]


def test_an_attack_that_has_not_converged_fails_m6(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(masking.APGD):
        """One small step in ten."""

        def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
            reach = Threat(eps=threat.eps * min(1.0, self.steps * self.restarts / 80))
            return super().run(model, x, y, reach, random)

    monkeypatch.setattr(masking, "APGD", Slow)
    found = run(CHECKS, "M6", subject(trained(0, True)))
    assert found.status == "failed"


def test_what_chance_finds_and_the_white_box_does_not_fails_m8() -> None:
    class Holes(nn.Module):
        """Right on the image and everywhere the gradient leads, wrong at every fifth random point."""

        def __init__(self) -> None:
            super().__init__()
            self.network = trained()

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.network(staircase(x))
            whim = ((x.flatten(1) * 1e4).long().sum(1) % 5 == 0) & ((x - 0.0) != staircase(x)).flatten(1).any(
                1
            )
            return torch.where(whim[:, None], -z, z)

    class Blind(Attack):
        def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
            return x.clone()

    s = subject(Holes())
    s.battery = lambda: []  # type: ignore[method-assign]
    found = run(CHECKS, "M8", s)
    assert found.status == "failed"
    assert found.measured["broken_by_chance"] > 0  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class Meddling(Attack):
    """Moves the image where nothing is allowed."""

    def __call__(self, model: nn.Module, x: Tensor, *_: object) -> Tensor:
        return (x + 0.01).clamp(0, 1)

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, random: SampleRandom) -> Tensor:
        return x


def test_an_attack_that_ignores_eps_and_a_changed_clean_verdict_fail_m10() -> None:
    net = trained()
    plans = [AttackPlan("fgsm", "fgsm", FGSM(), Threat(eps=EPS))]
    clean = outcome(subject(net), subject(net).clean.tolist())
    assert run(CHECKS, "M10", subject(net, plans=plans, outcomes={"clean": clean})).status == "passed"
    meddling = [AttackPlan("odd", "odd", Meddling(), Threat(eps=EPS))]
    found = run(CHECKS, "M10", subject(net, plans=meddling))
    assert found.status == "failed"
    assert found.measured["changed"] == ["odd"]
    other = outcome(subject(net), (1 - subject(net).clean).tolist())
    found = run(CHECKS, "M10", subject(net, plans=plans, outcomes={"clean": other}))
    assert found.measured["changed"] == ["clean"]


def test_attacks_too_weak_for_the_twin_fail_m11() -> None:
    assert run(CHECKS, "M11", subject(trained(0, True), twin=("natural", trained()))).status == "passed"
    found = run(CHECKS, "M11", subject(trained(), eps=0.001, undefended=True))
    assert found.status == "failed"
    assert run(CHECKS, "M11", subject(trained())).status == "skipped"


def test_a_battery_that_scaled_logits_stop_fails_m12() -> None:
    s = subject(trained())
    s.battery = lambda: [("ce", PGD(steps=10))]  # type: ignore[method-assign]
    found = run(CHECKS, "M12", s)
    assert found.status == "failed"
    assert found.measured["acc_logits_x_1000"] > 0.5  # type: ignore[operator]


def test_a_number_that_the_checks_bring_down_fails_m13_and_names_them() -> None:
    net = trained()
    plan = AttackPlan("pgd", "pgd", PGD(steps=1), Threat(eps=EPS))
    s = subject(net)
    tables = {"pgd": outcome(s, s.clean.tolist(), EPS)}
    s = subject(net, plans=[plan], outcomes=tables)
    assert run(CHECKS, "M13", s).status == "passed"  # nothing is found yet
    s.check = "M7"
    s.attack(PGD(steps=20), "strong")
    found: Finding = run(CHECKS, "M13", s)
    assert found.status == "failed"
    assert found.measured["worst_acc"] < 0.3  # type: ignore[operator]
    assert str(found.measured["by"]).startswith("['M7: ")
    assert run(CHECKS, "M13", subject(net)).status == "skipped"


def test_outcomes_outside_the_ball_do_not_count_as_reported() -> None:
    net = trained()
    plan = AttackPlan("wide", "pgd", PGD(steps=1), Threat(eps=1.0))
    s = subject(net)
    s = subject(net, plans=[plan], outcomes={"wide": outcome(s, [0.0] * len(s), 0.9)})
    assert torch.equal(s.reported, s.clean)


def test_adversarials_outside_the_ball_are_not_found() -> None:
    s = subject(trained())
    s.check = "M3"
    hit = s.attack(PGD(steps=20), "wide", threat=Threat(eps=0.5))
    assert hit.accuracy < 0.1
    assert len(s.found.rows) < len(s)
    assert (s.found.candidate - s.x).abs().max() <= EPS + 1e-6


def test_findings_do_not_depend_on_what_ran_before() -> None:
    alone = run(CHECKS, "M7", subject(trained(1, True)))
    s = subject(trained(1, True))
    for name in ("M1", "M2", "M6"):
        run(CHECKS, name, s)
    assert run(CHECKS, "M7", s) == alone

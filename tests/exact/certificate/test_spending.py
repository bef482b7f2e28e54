"""A budget of seconds: what it buys, what it leaves out, that it is decided once, and that a reader sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robustbench_sparse.certificate import certify as runner
from robustbench_sparse.certificate import spending
from robustbench_sparse.certificate.certify import certify, is_stored
from robustbench_sparse.certificate.checks import CHECKS
from robustbench_sparse.certificate.finding import Check, Finding, ruled
from robustbench_sparse.certificate.spending import COSTS, SHARED, TELLING, Cost, Spending, spend
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.config.load import resolve
from robustbench_sparse.config.protocol import CERTIFICATE, protocol
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.runs.certificate_record import Certificate
from robustbench_sparse.runs.evidence import DOUBTFUL, PARTLY, REFUTED, weigh
from tests.helpers.certificate_subjects import subject, trained

PRICES = {"gradients": 1e-3, "answers": 3e-4, "alone": 2e-3}
KEY = {"identity": "weights/data"}


def test_every_check_has_a_cost_and_a_place() -> None:
    assert sorted(TELLING) == sorted(CHECKS) == sorted(COSTS)
    assert TELLING[0] == spending.ALWAYS
    needed = {
        n
        for cost in (*COSTS.values(), *SHARED.values())
        for n in cost(spending.Sizes(subject(trained()))).needs
    }
    assert needed == set(SHARED)


def test_what_is_enough_buys_everything_and_the_number_is_always_compared() -> None:
    s = subject(trained())
    rich, poor = (spend(s, seconds, PRICES, CHECKS) for seconds in (1e9, 1e-9))
    assert set(rich.expected) == set(CHECKS)
    assert rich.left_out == {}
    assert "M13" in poor.expected
    assert all(poor.expected[name] <= 1e-9 for name in poor.expected if name != "M13")
    assert set(poor.left_out) == set(CHECKS) - set(poor.expected)


def test_no_more_is_spent_than_there_is_and_the_most_telling_goes_first() -> None:
    s = subject(trained(adversarially=True))
    for seconds in (1, 5, 20, 60, 240):
        found = spend(s, seconds, PRICES, CHECKS)
        spent = sum(found.expected.values())
        assert spent <= seconds
        # What is left out is dearer than all that is left, to the first one.
        first = min(found.left_out, key=TELLING.index, default="")
        bought_before = sum(
            v for k, v in found.expected.items() if first and TELLING.index(k) < TELLING.index(first)
        )
        assert not first or found.left_out[first] > seconds - bought_before
    assert spend(s, 60, PRICES, CHECKS) == spend(s, 60, PRICES, CHECKS)


def test_what_checks_share_is_paid_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHARED, "white", lambda z: Cost(seconds=10))
    for name in ("A", "B", "C"):
        monkeypatch.setitem(COSTS, name, lambda z: Cost(seconds=1, needs=("white",)))
    monkeypatch.setattr(spending, "TELLING", ("A", "B", "C"))
    found = spend(subject(trained()), 12.5, PRICES, ["C", "B", "A"])
    assert found.expected == {"A": 11, "B": 1}
    assert found.left_out == {"C": 1}


def test_images_that_stand_cost_and_a_random_network_costs_all_of_its_images() -> None:
    s = subject(trained(adversarially=True))
    sizes = spending.Sizes(s)
    sizes.right, sizes.stand, sizes.random, sizes.eot, sizes.draws = 40, 10, False, 1, 1
    assert sizes.walks(100).gradients == 100 * 10 + spending.EARLY * 30
    sizes.random, sizes.eot, sizes.draws = True, 4, 30
    assert sizes.walks(100).gradients == 4 * 100 * 40
    assert sizes.walks(100).answers == 2 * 30 * 40


def _check(name: str, ran: list[str]) -> Check:
    texts = {k: f"{k} of {name}" for k in ("title", "source", "rule", "meaning", "advice")}

    def run(s: Subject) -> Finding:
        ran.append(name)
        return ruled(True, name, {})

    return Check(id=name, run=run, refutes=False, **texts)


def _costs(seconds: float) -> Callable[[spending.Sizes], Cost]:
    return lambda z: Cost(seconds=seconds)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ran: list[str] = []
    monkeypatch.setattr(runner, "CHECKS", {name: _check(name, ran) for name in ("A", "B", "C")})
    monkeypatch.setattr(spending, "TELLING", ("C", "A", "B"))
    for name, seconds in (("A", 5), ("B", 6), ("C", 4)):
        monkeypatch.setitem(COSTS, name, _costs(seconds))
    return ran


def test_the_most_telling_checks_run_and_the_others_are_said_to_be_left_out(
    tmp_path: Path, few: list[str]
) -> None:
    made = certify(subject(trained()), tmp_path, KEY, "quick", Silent(), seconds=9, prices=lambda: PRICES)
    assert few == ["A", "C"]
    assert [c["status"] for c in made["checks"]] == ["passed", "left_out", "passed"]
    assert made["checks"][1]["why"] == "no time left: about 6.0 s"
    assert (made["verdict"], made["flags"]) == (PARTLY, [])
    assert made["spending"]["left_out"] == {"B": 6}
    assert made["spending"]["budget_s"] == 9
    assert is_stored(tmp_path, KEY, "quick", 9)
    assert is_stored(tmp_path, KEY, "quick", 5)
    assert not is_stored(tmp_path, KEY, "quick", 10)
    assert not is_stored(tmp_path, KEY, "quick")


def test_a_certificate_that_left_nothing_out_is_any_budgets(tmp_path: Path, few: list[str]) -> None:
    made = certify(subject(trained()), tmp_path, KEY, "quick", Silent(), seconds=15, prices=lambda: PRICES)
    assert made["verdict"] == "believable"
    assert all(is_stored(tmp_path, KEY, "quick", seconds) for seconds in (None, 1, 1000))
    again = certify(subject(trained()), tmp_path, KEY, "quick", Silent(), seconds=1, prices=lambda: PRICES)
    assert again == made
    assert few == ["A", "B", "C"]


def test_a_killed_certificate_keeps_its_choice_whatever_a_pass_costs_by_then(
    tmp_path: Path, few: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(s: Subject) -> Finding:
        raise KeyboardInterrupt

    whole: dict[str, Check] = dict(vars(runner)["CHECKS"])
    monkeypatch.setattr(runner, "CHECKS", {**whole, "C": replace(whole["C"], run=killed)})
    with pytest.raises(KeyboardInterrupt):
        certify(subject(trained()), tmp_path, KEY, "quick", Silent(), seconds=9, prices=lambda: PRICES)
    monkeypatch.setattr(runner, "CHECKS", whole)

    def never() -> dict[str, float]:
        raise AssertionError("measured again")

    made = certify(subject(trained()), tmp_path, KEY, "quick", Silent(), seconds=9, prices=never)
    assert few == ["A", "C"]
    assert made["checks"][1]["status"] == "left_out"


def test_a_choice_survives_its_file() -> None:
    made = spend(subject(trained()), 20, PRICES, CHECKS)
    read = Spending(**json.loads(json.dumps(made.record())))
    assert read.left_out.keys() == made.left_out.keys()
    assert read.expected == pytest.approx(made.expected, abs=1e-6)


def _record(name: str, status: str, refutes: bool = False) -> dict[str, Any]:
    return {"id": name, "title": name, "status": status, "refutes": refutes, "measured": {}}


def test_what_was_left_out_makes_no_row_believable_and_accuses_none() -> None:
    assert weigh([_record("M1", "passed"), _record("M2", "left_out")]).verdict == PARTLY
    assert weigh([_record("M1", "failed"), _record("M2", "left_out")]).verdict == DOUBTFUL
    assert weigh([_record("B5", "failed", True), _record("M2", "left_out")]).verdict == REFUTED
    number = {**_record("M13", "failed", True), "measured": {"reported_acc": 0.6, "worst_acc": 0.4}}
    assert weigh([number, _record("M2", "left_out")]).verdict == PARTLY
    assert weigh([number, _record("M2", "left_out")]).lowered


def test_the_row_and_its_protocol_say_so() -> None:
    evidence = weigh([_record("M1", "passed"), _record("M2", "left_out"), _record("B3", "left_out")])
    found = Certificate(found={}, checks=({}, {}, {}), evidence=evidence, budget_s=60)
    assert found.left_out == "2 of 3 checks left out, 60 s: M2 B3"
    assert Certificate(found={}).left_out == ""
    manifest = {"attacks": [], "threat": {}, "certificate": "quick"}
    assert protocol(manifest, CERTIFICATE, 60) == f"clean+quick-{CERTIFICATE}-60s"
    assert protocol(manifest, CERTIFICATE) == f"clean+quick-{CERTIFICATE}"


def _config(**evaluation: Any) -> dict[str, Any]:
    return {
        "name": "b",
        "data": "digits",
        "suite": "quick",
        "evaluation": evaluation,
        "model": "mlp",
        "train": {"epochs": 1, "selection": "last"},
        "runs": {"a": {}},
    }


def test_a_config_names_the_seconds_with_a_certificate_only() -> None:
    plan = resolve(_config(certificate="quick", certificate_seconds=60))
    assert plan.config.evaluation.certificate_seconds == 60
    for wrong in ({"certificate_seconds": 60}, {"certificate": "quick", "certificate_seconds": 0}):
        with pytest.raises(UserError, match="certificate"):
            resolve(_config(**wrong))

"""The certificate as a whole: all checks are there, a kill costs nothing, and the verdict reaches the leaderboard."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from attacks import PGD
from robustbench_sparse.certificate import certify as runner
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.certify import certify, is_stored
from robustbench_sparse.certificate.checks import CHECKS
from robustbench_sparse.certificate.finding import Check, Finding, ruled, skipped
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.config.protocol import CERTIFICATE
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.reporting.explain import explain
from robustbench_sparse.reporting.leaderboard import aggregate, tabulate
from robustbench_sparse.runs.certificate_record import read_certificate
from robustbench_sparse.runs.evidence import (
    BELIEVABLE,
    CORRECTED,
    DOUBTFUL,
    NOT_CHECKED,
    REFUTED,
    weigh,
    worst_verdict,
)
from robustbench_sparse.runs.seals import seal
from tests.helpers.certificate_subjects import outcome, subject, trained

LISTED = [
    *(f"M{i}" for i in range(1, 14)),
    *("G1", "G2", "G3", "V1", "V2", "V3"),
    *(f"R{i}" for i in range(1, 7)),
    *("D1", "D2", "T1", "T2", "A1", "Z1", "I1", "I2", "I3", "I4"),
    *(f"U{i}" for i in range(1, 8)),
    *("B1", "B2", "B3", "B4", "B5", "S1", "S2", "S3", "S4", "H1", "H2"),
]
KEY = {
    "identity": "weights/data",
    "threat": {"norm": "linf", "eps": 0.15},
    "attacks": {"pgd": {"name": "pgd"}},
}
MANIFEST: dict[str, Any] = {
    "name": "b",
    "dataset": "digits",
    "attacks": ["pgd"],
    "settings": KEY["attacks"],
    "threat": KEY["threat"],
    "certificate": "quick",
    "runs": [],
    "published": {},
}


def check(name: str, finding: Finding, refutes: bool = False) -> Check:
    texts = {k: f"{k} of {name}" for k in ("title", "source", "rule", "meaning", "advice")}
    return Check(id=name, run=lambda s: finding, refutes=refutes, **texts)


def finds(name: str) -> Check:
    """A check that draws, attacks and notes what it finds."""

    def run(s: Subject) -> Finding:
        hit = s.attack(PGD(steps=3), name)
        return ruled(True, name, {"acc": hit.accuracy})

    return replace(check(name, skipped("")), run=run)


PASSED, FAILED = ruled(True, "done", {"acc": 0.5}), ruled(False, "done", {"left": [3, 4], "odd": True})


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> dict[str, Check]:
    checks = {c.id: c for c in (finds("A"), check("B", FAILED), finds("C"))}
    monkeypatch.setattr(runner, "CHECKS", checks)
    return checks


def test_every_check_of_the_list_is_there_once_and_says_what_it_is() -> None:
    assert sorted(CHECKS) == sorted(LISTED)
    assert list(CHECKS)[-1] == "M13"  # the number itself, when every adversarial is found
    for c in CHECKS.values():
        texts = (c.title, c.source, c.rule, c.meaning, c.advice)
        assert all(len(text) > 5 and text == text.strip() for text in texts), c.id
        assert c.title[0].islower() or c.title.split()[0].isupper(), c.id
    assert {c.id for c in CHECKS.values() if c.refutes} >= {"M10", "M13", "B3", "S1", "S2"}


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([("passed", False), ("skipped", True), ("reported", False)], BELIEVABLE),
        ([("passed", True), ("failed", False)], DOUBTFUL),
        ([("failed", False), ("failed", True)], REFUTED),
        ([("passed", False), ("error", True)], DOUBTFUL),
    ],
)
def test_the_verdict(statuses: list[tuple[str, bool]], expected: str) -> None:
    records = [{"id": f"S{i}", "status": s, "refutes": r} for i, (s, r) in enumerate(statuses)]
    assert weigh(records).verdict == expected


def test_the_worst_verdict_of_several_seeds() -> None:
    assert worst_verdict([BELIEVABLE, REFUTED, DOUBTFUL]) == REFUTED
    assert worst_verdict([BELIEVABLE, NOT_CHECKED]) == NOT_CHECKED
    assert worst_verdict([BELIEVABLE, DOUBTFUL, NOT_CHECKED]) == DOUBTFUL
    assert worst_verdict([CORRECTED, BELIEVABLE]) == CORRECTED
    assert worst_verdict([CORRECTED, NOT_CHECKED]) == NOT_CHECKED


def test_findings_flags_and_adversarials_are_stored(tmp_path: Path, few: dict[str, Check]) -> None:
    s = subject(trained())
    made = certify(s, tmp_path, KEY, "quick", Silent())
    assert made == json.loads((tmp_path / "certificate" / "certificate.json").read_text())
    assert (made["verdict"], made["flags"], made["n"]) == (DOUBTFUL, ["B"], 96)
    assert [c["id"] for c in made["checks"]] == ["A", "B", "C"]
    assert made["checks"][1]["measured"] == {"left": [3, 4], "odd": True}
    found = pd.read_csv(tmp_path / "certificate" / "found.csv")
    assert set(found["check"]) <= {"A", "C"}
    assert (found["linf"] <= 0.15 + 1e-6).all()
    assert (found["right"] == 0).sum() > 40
    assert is_stored(tmp_path, KEY, "quick")
    assert not is_stored(tmp_path, KEY, "full")
    assert not is_stored(tmp_path, {**KEY, "identity": "other"}, "quick")
    assert not (tmp_path / "certificate" / ".parts").exists()
    assert made["images"] == s.index.tolist()
    assert made["version"] == CERTIFICATE


def test_a_certificate_of_an_earlier_set_of_checks_is_made_again(
    tmp_path: Path, few: dict[str, Check]
) -> None:
    certify(subject(trained()), tmp_path, KEY, "quick", Silent())
    path = tmp_path / "certificate" / "certificate.json"
    made = json.loads(path.read_text())
    assert is_stored(tmp_path, KEY, "quick")
    earlier = {k: v for k, v in made.items() if k not in ("version", "images")}
    earlier["key"] = {k: v for k, v in made["key"].items() if k != "version"}
    path.write_text(json.dumps(earlier))
    seal(tmp_path)
    assert not is_stored(tmp_path, KEY, "quick")


def test_a_kill_between_two_checks_changes_nothing(
    tmp_path: Path, few: dict[str, Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = certify(subject(trained()), tmp_path / "whole", KEY, "quick", Silent())

    def killed(s: Subject) -> Finding:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "CHECKS", {**few, "C": replace(few["C"], run=killed)})
    with pytest.raises(KeyboardInterrupt):
        certify(subject(trained()), tmp_path / "cut", KEY, "quick", Silent())
    assert not (tmp_path / "cut" / "certificate" / "certificate.json").exists()
    ran: list[str] = []
    again = {k: replace(c, run=lambda s, c=c: (ran.append(c.id), c.run(s))[1]) for k, c in few.items()}  # type: ignore[misc]
    monkeypatch.setattr(runner, "CHECKS", again)
    resumed = certify(subject(trained()), tmp_path / "cut", KEY, "quick", Silent())
    assert ran == ["C"]

    def timeless(made: dict[str, Any]) -> dict[str, Any]:
        checks = [{**c, "seconds": 0} for c in made["checks"]]
        return {**made, "seconds": 0, "checks": checks}

    assert timeless(resumed) == timeless(whole)
    for name in ("found.csv", "adversarials.safetensors"):
        first, second = (tmp_path / part / "certificate" / name for part in ("whole", "cut"))
        assert first.read_bytes() == second.read_bytes()


def test_parts_of_another_network_are_not_used(
    tmp_path: Path, few: dict[str, Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(s: Subject) -> Finding:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "CHECKS", {**few, "C": replace(few["C"], run=killed)})
    with pytest.raises(KeyboardInterrupt):
        certify(subject(trained()), tmp_path, KEY, "quick", Silent())
    monkeypatch.setattr(runner, "CHECKS", few)
    other = certify(subject(trained(1)), tmp_path, {**KEY, "identity": "other"}, "quick", Silent())
    alone = certify(subject(trained(1)), tmp_path / "alone", {**KEY, "identity": "other"}, "quick", Silent())
    assert [c["measured"] for c in other["checks"]] == [c["measured"] for c in alone["checks"]]


def test_a_check_that_crashes_is_no_check_that_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(s: Subject) -> Finding:
        raise RuntimeError("no such\nthing")

    monkeypatch.setattr(runner, "CHECKS", {"A": replace(check("A", PASSED), run=crash)})
    made = certify(subject(trained()), tmp_path, KEY, "quick", Silent())
    assert (made["verdict"], made["flags"]) == (DOUBTFUL, ["A"])
    assert made["checks"][0]["status"] == "error"
    assert made["checks"][0]["done"] == "the check broke off: RuntimeError: no such thing"


def folder(tmp_path: Path, runs: dict[str, tuple[list[float], dict[str, Check]]]) -> Path:
    """A benchmark's folder: per run the verdicts under one attack, and the checks of its certificate."""
    manifest = {**MANIFEST, "runs": [{"run_id": r, "run": r, "seed": 0} for r in runs]}
    (tmp_path / "benchmark.json").write_text(json.dumps(manifest))
    for run, (correct, checks) in runs.items():
        home = tmp_path / "runs" / run
        (home / "outcomes").mkdir(parents=True)
        s = subject(trained())
        facts = {"run.json": {"model": "mlp", "defenses": "", "threat": MANIFEST["threat"]}}
        facts["environment.json"] = {"commit": "c"}
        facts["training.json"] = {"status": "complete", "reason": "", "train_seconds": 1.0}
        facts["sparsity.json"] = dict.fromkeys(
            ("weight_sparsity", "channel_sparsity", "kernel_sparsity", "row_sparsity", "parameters",
             "nonzero_parameters", "macs"), 0
        )  # fmt: skip
        for name, value in facts.items():
            (home / name).write_text(json.dumps(value))
        for label, verdicts in (("clean", [1.0] * len(s)), ("pgd", correct)):
            outcome(s, verdicts, 0.1).to_csv(home / "outcomes" / f"{label}.csv", index=False)
            about = {"status": "ok", "reason": "", "n": len(s), "seconds": 1.0, "bounded": True}
            key = {
                "identity": KEY["identity"],
                "attack": {"name": "pgd"} if label == "pgd" else {"label": "clean"},
            }
            (home / "outcomes" / f"{label}.json").write_text(json.dumps({**about, "key": key}))
        seal(home)
        if checks:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(runner, "CHECKS", checks)
                certify(s, home, KEY, "quick", Silent())
    return tmp_path


def test_worst_takes_in_what_the_checks_found_and_refuted_rows_rank_last(tmp_path: Path) -> None:
    robust, weak = [1.0] * 96, [1.0] * 48 + [0.0] * 48
    table = tabulate(
        folder(
            tmp_path,
            {
                "strong": (robust, {"P": check("P", PASSED)}),
                "same": ([*robust[:-1], 0.0], {"P": check("P", PASSED)}),
                "weak": (weak, {"P": check("P", FAILED)}),
                "broken": (robust, {"A": finds("A"), "R": check("R", FAILED, refutes=True)}),
                "unchecked": (weak, {}),
            },
        )
    ).set_index("run")
    assert table["verdict"].tolist() == [BELIEVABLE, BELIEVABLE, DOUBTFUL, REFUTED, NOT_CHECKED]
    assert table["flags"].tolist() == ["", "", "P", "R", ""]
    assert table["rank"].tolist()[:4] == [1, 1, 3, 4]  # what is not examined yet is ranked with nobody
    assert table["rank_high"].tolist()[:3] == [2, 2, 3]
    assert table[["rank", "rank_high"]].isna().sum().tolist() == [1, 2]
    assert table["protocol"].tolist() == [table["protocol"]["strong"]] * 4 + [""]
    assert table["rank_seeds"].tolist()[:4] == table["rank"].tolist()[:4]
    assert table["pgd"]["broken"] == 100
    assert table["worst"]["broken"] < 60
    assert table["status"].tolist() == ["ok"] * 4 + ["incomplete: certificate"]
    over_seeds = aggregate(table.reset_index()).set_index("run")
    assert over_seeds["verdict"]["broken"] == REFUTED
    assert over_seeds["rank"].tolist()[:4] == table["rank"].tolist()[:4]


def test_a_certificate_of_other_outcomes_does_not_count(tmp_path: Path) -> None:
    home = folder(tmp_path, {"a": ([1.0] * 96, {"P": check("P", PASSED)})}) / "runs" / "a"
    assert read_certificate(home, MANIFEST).verdict == BELIEVABLE
    others: list[dict[str, Any]] = [
        {"certificate": "full"},
        {"threat": {"norm": "linf", "eps": 0.3}},
        {"settings": {"pgd": {"name": "pgd", "steps": 2}}},
    ]
    for change in others:
        found = read_certificate(home, {**MANIFEST, **change})
        assert (found.verdict, found.note) == (
            NOT_CHECKED,
            "incomplete: certificate (made for other outcomes)",
        )
    assert read_certificate(home, {**MANIFEST, "certificate": "off"}).verdict == NOT_CHECKED
    clean = home / "outcomes" / "clean.json"
    about = json.loads(clean.read_text())
    about["key"]["identity"] = "other weights"
    clean.write_text(json.dumps(about))
    seal(home)
    assert read_certificate(home, MANIFEST).verdict == NOT_CHECKED


@pytest.mark.parametrize("damage", ["no json", "no key", "found"])
def test_a_damaged_certificate_is_an_error_that_names_the_file(tmp_path: Path, damage: str) -> None:
    home = folder(tmp_path, {"a": ([1.0] * 96, {"A": finds("A")})}) / "runs" / "a"
    path = home / "certificate" / "certificate.json"
    if damage == "no json":
        path.write_text("{")
    elif damage == "no key":
        path.write_text("{}")
    else:
        (home / "certificate" / "found.csv").write_text("index,right\n1,7\n")
    with pytest.raises(UserError, match="changed since it was stored"):
        read_certificate(home, MANIFEST)
    seal(home)
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_certificate(home, MANIFEST)


def test_explain_says_everything_about_every_check(tmp_path: Path) -> None:
    checks = {c.id: c for c in (check("P", PASSED), check("F", FAILED, True), check("S", skipped("no twin")))}
    home = folder(tmp_path, {"a": ([1.0] * 96, checks)}) / "runs" / "a"
    text = explain(home, MANIFEST)
    assert text.startswith("a: refuted\ncertificate quick, 96 test images")
    for part in (
        "1 checks passed, 1 failed",
        "P   ok      title of P",
        "found   acc 50.0 %",
        "left [3 4], odd yes",
    ):
        assert part in text
    assert "F   FAILED  title of F" in text
    assert "next    advice of F" in text
    assert "means   meaning of F" in text
    assert "(a failure refutes the row)" in text
    assert "S   skipped title of S\n    note    no twin" in text
    short = explain(home, MANIFEST, failed_only=True)
    assert "title of F" in short
    assert "title of P" not in short


def test_explain_without_a_certificate_says_how_to_get_one(tmp_path: Path) -> None:
    home = folder(tmp_path, {"a": ([1.0] * 96, {})}) / "runs" / "a"
    with pytest.raises(UserError, match="--certificate quick"):
        explain(home, MANIFEST)


def test_the_full_budget_is_nowhere_smaller() -> None:
    quick, full = (torch.tensor(list(vars(BUDGETS[k]).values())) for k in ("quick", "full"))
    assert (full > quick).all()

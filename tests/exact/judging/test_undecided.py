"""An image of infinite logits is alone without a verdict; a network without gradients says so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import CW, PGD, Square
from attacks.base import Attack, Threat
from robustbench_sparse.certificate import certify
from robustbench_sparse.certificate.budget import BUDGETS
from robustbench_sparse.certificate.checks import CHECKS
from robustbench_sparse.certificate.examination import Examination
from robustbench_sparse.config.plan import AttackPlan
from robustbench_sparse.evaluation import check_clean, evaluate
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.judging.judge import Judge, JudgeSettings
from robustbench_sparse.judging.relatives import Relatives
from robustbench_sparse.runs.outcomes import UNDECIDED, counted_as_wrong, gap_in
from tests.helpers.accidents import COUNT, THREAT, Linear, data, truth

LOOKED_AT = ("M7", "M10", "G1", "G2", "I2", "B1", "B5", "M13")
LOST = 3  # the image whose logits overflow


class Overflows(Linear):
    """Infinite logits on one clean image, and on what lies nearer to it than the ball reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.where = data().gather("test", torch.tensor([LOST]))[0]

    def forward(self, x: Tensor) -> Tensor:
        near = (x - self.where).flatten(1).abs().amax(1) <= 0.05
        return super().forward(x).masked_fill(near[:, None], math.inf)


class Numpy(Linear):
    """A detour over NumPy, on which gradients are lost."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(x.detach().numpy()))


def plan(attack: Attack, label: str, threat: Threat = THREAT) -> AttackPlan:
    return AttackPlan(label, label, attack, threat)


def judge(folder: Path, network: nn.Module) -> Judge:
    return Judge(network.eval(), data(), folder, JudgeSettings(seed=1, batch_size=5), "w", Silent())


def test_one_image_of_infinite_logits_is_alone_without_a_verdict(tmp_path: Path) -> None:
    j = judge(tmp_path, Overflows())
    clean = j.clean()
    assert clean["status"].tolist() == [UNDECIDED if i == LOST else "ok" for i in range(COUNT)]
    assert clean["correct"].isna().tolist() == [i == LOST for i in range(COUNT)]
    for attack in (PGD(steps=20), CW(steps=20), Square(queries=200)):
        table = j.attack(plan(attack, attack.__class__.__name__.lower()))
        assert table["status"][LOST] == UNDECIDED
        assert table.loc[LOST, ["adv_correct", "distance"]].isna().all()
        assert table["forward"][LOST] == 0, "it is not attacked"
        others = table.drop(index=LOST)
        assert others["adv_correct"].notna().all()
        expected = [v for i, v in enumerate(truth()) if i != LOST]
        if attack.bounded:
            assert others["adv_correct"].tolist() == expected
        about = read_json(tmp_path / "outcomes" / f"{attack.__class__.__name__.lower()}.json")
        assert (about["status"], about["flags"][UNDECIDED]) == ("ok", 1)
        assert gap_in("a", table, "adv_correct"), "as it was written it counts for nothing"
        assert counted_as_wrong(table) == 1
        assert not gap_in("a", table, "adv_correct")
        assert table.loc[LOST, ["adv_correct", "distance"]].tolist() == [0, 0]
    check_clean(clean, classes=2, expected=90)


def test_a_network_without_any_finite_logits_has_no_clean_verdicts(tmp_path: Path) -> None:
    class Nothing(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * math.nan

    j = judge(tmp_path, Nothing())
    assert j.clean()["correct"].isna().all()
    assert read_json(tmp_path / "outcomes" / "clean.json")["status"] == "nonfinite"


def test_the_row_of_such_a_network_goes_on_and_says_how_many(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    first = {"on": True}

    class One(nn.Module):
        """Float16's overflow, on the first image that it is shown."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("where", torch.zeros(0))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.network(x)
            if first["on"] and len(x) > 1 and self.where.numel() == 0 and not x.requires_grad and x.max() > 0:
                self.where = x[:1].clone()
            if self.where.numel():
                same = (x == self.where).flatten(1).all(1)
                out = out.masked_fill(same[:, None], math.inf)
            return out

    table = evaluate(
        One(),
        dataset="digits",
        attacks={"pgd": {"name": "pgd", "steps": 3}, "cw": {"name": "cw", "steps": 3}},
        eps=0.1,
        limit=40,
        expect_clean=0,
        out=tmp_path,
    )
    row = table.iloc[-1]
    assert row["n"] == 40
    assert row[["clean", "pgd", "cw", "worst"]].notna().all()
    assert row["status"].startswith("ok; 1 of 40 images without a verdict")


def examined(j: Judge, plans: list[AttackPlan], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    j.everything(plans)
    monkeypatch.setattr(certify, "CHECKS", {k: c for k, c in CHECKS.items() if k in LOOKED_AT})
    Examination(j, plans, "quick", THREAT, Relatives()).make()
    made: dict[str, Any] = read_json(j.run / "certificate" / "certificate.json")
    return made


def test_the_certificate_looks_at_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = examined(judge(tmp_path, Overflows()), [plan(PGD(steps=20), "pgd")], monkeypatch)
    assert made["n"] == COUNT - 1
    assert {c["id"]: c["done"] for c in made["checks"] if c["status"] == "error"} == {}
    assert next(c for c in made["checks"] if c["id"] == "B5")["measured"] == {"faults": []}
    assert BUDGETS["quick"].images > COUNT


def test_a_network_without_gradients_ends_in_a_sentence_and_the_black_box_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`square` alone has a number, the certificate is made all the same, and its number is Square's."""
    plans = [plan(PGD(steps=3), "pgd"), plan(Square(queries=1000), "square")]
    j = judge(tmp_path, Numpy())
    made = examined(j, plans, monkeypatch)
    about = read_json(tmp_path / "outcomes" / "pgd.json")
    assert about["status"] == "crashed"
    assert "the network gives no gradient with respect to its images, which pgd needs" in about["reason"]
    assert "square" in about["reason"]
    assert j.attack(plans[1])["adv_correct"].tolist() == truth()
    checks = {c["id"]: c for c in made["checks"]}
    number = checks["M13"]["measured"]
    assert number["worst_acc"] == number["reported_acc"] == pytest.approx(sum(truth()) / COUNT)
    assert checks["G2"]["status"] == "failed"
    assert checks["B5"]["status"] == "failed"
    assert "crashed" in checks["B5"]["why"]
    assert {k: c["done"] for k, c in checks.items() if c["status"] == "error"} == {}

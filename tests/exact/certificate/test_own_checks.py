"""Checks of a user's own beside the certificate's: made on every row, a doubt where they fail, ranked apart."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from robustbench_sparse import run_benchmark
from robustbench_sparse.certificate.checks import CHECKS, own_checks, with_own
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import read_json

SOURCE = """
from robustbench_sparse.certificate.finding import Check, Finding, ruled
from robustbench_sparse.certificate.subject import Subject

LIMIT = 0.0


def asks(s: Subject) -> Finding:
    share = s.clean.mean().item()
    return ruled(share >= LIMIT, f"clean accuracy on {len(s)} images", {"clean_acc": share})


def facts(name, run=asks):
    return dict(id=name, title="enough is right", source="own", rule="r", meaning="m", advice="a", run=run)


CHECK = Check(**facts("X1"))
AGAIN = Check(**facts("X1"))
TAKEN = Check(**facts("M1"))
ODD = Check(**facts("X2", len))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "own_check_file.py").write_text(SOURCE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("own_check_file", None)


def test_they_stand_before_the_verdict_on_the_number(home: Path) -> None:
    own = own_checks(["own_check_file:CHECK"])
    assert [*with_own(CHECKS, own)][-2:] == ["X1", "M13"]
    assert set(with_own(CHECKS, own)) == {*CHECKS, "X1"}
    assert [*with_own(CHECKS, {})] == [*CHECKS]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["LIMIT"], "expected a certificate.finding.Check, got 0.0"),
        (["TAKEN"], "expected an id of its own that begins with X"),
        (["CHECK", "AGAIN"], "expected an id of its own"),
        (["ODD"], "expected a function as its run"),
    ],
)
def test_what_is_no_check(home: Path, names: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        own_checks([f"own_check_file:{name}" for name in names])


def test_a_row_is_examined_by_them_too(home: Path, tmp_path: Path) -> None:
    """A budget of a second leaves most checks out, and none of the user's own."""
    config: dict[str, Any] = {
        "name": "own",
        "data": "digits",
        "threat": {"norm": "linf", "eps": 0.1},
        "attacks": {"fgsm": "fgsm"},
        "evaluation": {
            "limit": 20, "certificate": "quick", "certificate_seconds": 1, "checks": ["own_check_file:CHECK"]
        },
        "model": {"name": "mlp", "hidden": [8]},
        "train": {"epochs": 1, "selection": "last", "optimizer": {"name": "sgd", "lr": 0.5}},
        "runs": {"row": {}},
    }  # fmt: skip
    (home / "own.yaml").write_text(yaml.safe_dump(config))
    table = run_benchmark(home / "own.yaml", out=tmp_path / "out", jobs=1)
    row = table.iloc[0]
    assert "X1" not in row["flags"].split()
    assert "-1s-own" in row["protocol"]
    path = tmp_path / "out" / "own" / "runs" / row["run_id"] / "certificate" / "certificate.json"
    (mine,) = (c for c in read_json(path)["checks"] if c["id"] == "X1")
    assert mine["status"] == "passed"

    source = home / "own_check_file.py"  # an edited check is another one: the certificate is made again
    source.write_text(SOURCE.replace("LIMIT = 0.0", "LIMIT = 2.0"))
    sys.modules.pop("own_check_file")
    again = run_benchmark(home / "own.yaml", out=tmp_path / "out", jobs=1).iloc[0]
    assert "X1" in again["flags"].split()
    assert again["verdict"] in ("doubtful", "refuted")
    assert again["protocol"] != row["protocol"]
    assert again["run_id"] == row["run_id"]


def test_a_name_that_is_none_is_said_before_anything_trains(home: Path) -> None:
    config = {
        "name": "x",
        "data": "digits",
        "train": {"epochs": 1, "selection": "last"},
        "model": "mlp",
        "runs": {"r": {}},
    }
    for names, expected in (
        (["own_check_file:NO"], r"evaluation.checks.0: .* has no 'NO'"),
        (["x"], "expected different"),
    ):
        with pytest.raises(UserError, match=expected):
            run_benchmark({**config, "evaluation": {"certificate": "quick", "checks": names}}, out=home)
    assert torch.is_grad_enabled()

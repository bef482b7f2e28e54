"""RobustBench's call: its argument names, two shares back, and an entry on the disk."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import robustbench_sparse
from robustbench_sparse import eval as eval_module
from robustbench_sparse.eval import benchmark
from robustbench_sparse.exchange.entry import KEYS
from robustbench_sparse.foundation.errors import UserError

# Of robustbench.eval.benchmark, version 1.1.1, in order.
THEIRS = [
    "model", "n_examples", "dataset", "threat_model", "to_disk", "model_name", "data_dir", "corruptions_data_dir",
    "device", "batch_size", "eps", "log_path", "preprocessing", "aa_state_path",
]  # fmt: skip


class Brightness(nn.Module):
    """Class 1 where the mean of the pixels is above a half."""

    def forward(self, x: Tensor) -> Tensor:
        z = 8 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-z, z], 1)


def pictures() -> tuple[Tensor, Tensor]:
    """Ten flat images; one has the wrong label, and four of the others lie less than 0.1 from a half."""
    levels = torch.tensor([20, 25, 77, 104, 122, 133, 151, 178, 230, 240], dtype=torch.uint8)
    return levels.view(-1, 1, 1, 1).expand(10, 1, 8, 8).clone(), torch.tensor([1] + [0] * 4 + [1] * 5)


def test_the_arguments_are_theirs() -> None:
    parameters = inspect.signature(benchmark).parameters
    assert [p.name for p in parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD] == THEIRS


def test_two_shares_come_back() -> None:
    clean, robust = benchmark(Brightness(), data=pictures(), eps=0.1, batch_size=4, attacks=["fgsm"])
    assert (clean, robust) == (0.9, 0.5)
    assert type(clean) is type(robust) is float
    from robustbench_sparse import (
        benchmark as called,
    )  # the module of that name, whichever was imported first

    assert called(Brightness(), data=pictures(), eps=0.1, attacks=["fgsm"]) == (0.9, 0.5)  # type: ignore[operator]
    assert robustbench_sparse.benchmark is called


def test_the_entry_is_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[dict[str, Any]] = []

    def judge(model: object, **how: Any) -> Any:
        judged.append(how)
        return pd.DataFrame([{"clean": 90.0, "worst": 50.0, "status": "ok"}])

    monkeypatch.setattr(eval_module, "evaluate", judge)
    monkeypatch.chdir(tmp_path)
    asked: dict[str, Any] = {"dataset": "mnist", "eps": 8 / 255, "to_disk": True, "model_name": "Doe2026Mean"}
    assert benchmark(Brightness(), n_examples=50, device=torch.device("cpu"), **asked) == (0.9, 0.5)
    assert judged[0]["attacks"] == {"autoattack": {"name": "autoattack"}}
    assert {k: judged[0][k] for k in ("dataset", "norm", "eps", "limit", "device")} == {
        "dataset": "mnist", "norm": "linf", "eps": 8 / 255, "limit": 50, "device": "cpu"
    }  # fmt: skip
    path = tmp_path / "model_info" / "mnist" / "Linf" / "Doe2026Mean.json"
    found = json.loads(path.read_text())
    assert tuple(found) == KEYS
    assert (found["clean_acc"], found["autoattack_acc"], found["eps"]) == ("90.0", "50.0", "8/255")
    path.write_text(json.dumps({**found, "authors": "Jane Doe"}))
    benchmark(Brightness(), **asked, attacks=["fgsm"])  # which is not AutoAttack
    again = json.loads(path.read_text())
    assert (again["authors"], again["autoattack_acc"], again["external"]) == ("Jane Doe", "50.0", "50.0")


def test_no_number_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame([{"clean": 90.0, "worst": None, "status": "autoattack: crashed: no"}])
    monkeypatch.setattr(eval_module, "evaluate", lambda *_, **__: table)
    with pytest.raises(UserError, match="no number: autoattack: crashed: no"):
        benchmark(Brightness(), data=pictures(), eps=0.1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"eps": None}, "eps: expected the radius of Linf"),
        ({"threat_model": "corruptions"}, "expected Linf or L2, got 'corruptions': the shifts of a config"),
        ({"threat_model": "Linf2"}, "threat_model: expected Linf or L2"),
        ({"to_disk": True}, "model_name: expected a name with to_disk"),
        ({"preprocessing": "Res256Crop224"}, "preprocessing: not taken here: give the data set as"),
        ({"data": None, "dataset": "imagenet"}, "dataset: expected one of .*digits"),
    ],
)
def test_what_it_does_not_take(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        benchmark(Brightness(), **{"data": pictures(), "eps": 0.1, **arguments})

"""Attacks climb on a network without its dead channels where that saves enough; the records say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustbench_sparse import run_benchmark, verdict
from robustbench_sparse.config.load import resolve
from robustbench_sparse.foundation.errors import UserError
from tests.helpers.small import small

pytest.importorskip("torch_pruning")

CONFIG: dict[str, Any] = {
    "runs": {
        "pruned": {
            "defenses": [{"name": "l1_filter_prune", "sparsity": 75.0}],
            "train": {"epochs": 3},
        }
    }
}


def only(folder: Path) -> Path:
    (run,) = (folder / "small" / "runs").iterdir()
    return run


def speeds(folder: Path) -> dict[str, dict[str, Any]]:
    choices: dict[str, dict[str, Any]] = json.loads((only(folder) / "speed.json").read_text())
    return choices


def outcome(folder: Path) -> pd.DataFrame:
    return pd.read_csv(only(folder) / "outcomes" / "pgd.csv")


def test_little_work_is_done_on_the_network_itself(tmp_path: Path) -> None:
    config = small(**CONFIG)
    run_benchmark(config, out=tmp_path)
    assert [(s["engine"], s["macs_left"]) for s in speeds(tmp_path).values()] == [("dense", 1.0)]


def test_much_work_is_done_without_the_dead_channels_and_the_verdicts_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(**CONFIG)
    monkeypatch.setattr(verdict, "SMALL_WORK", 1.0)
    table = run_benchmark(config, out=tmp_path / "auto")
    (chosen,) = speeds(tmp_path / "auto").values()
    assert chosen["engine"] == "shrunk"
    assert 0.2 < chosen["macs_left"] < 0.5, "a quarter within blocks, and the rest of the network"
    asked = run_benchmark(config, out=tmp_path / "asked", changes=["evaluation.engine=shrunk"])
    dense = run_benchmark(config, out=tmp_path / "dense", changes=["evaluation.engine=dense"])
    assert table["pgd"].tolist() == asked["pgd"].tolist()
    assert table["clean"].tolist() == dense["clean"].tolist()
    assert 0 < table["pgd"][0] < table["clean"][0]
    ours, theirs = outcome(tmp_path / "auto"), outcome(tmp_path / "dense")
    assert (ours["adv_correct"] != theirs["adv_correct"]).mean() <= 0.03
    assert json.loads((only(tmp_path / "dense") / "speed.json").read_text())["attacks auto auto 32 dense"]

    # What is stored is the network's own, on whatever it was found: it is served, not made anew.
    again = run_benchmark(config, out=tmp_path / "auto", changes=["evaluation.engine=dense"])
    assert again["pgd"].tolist() == table["pgd"].tolist()
    assert outcome(tmp_path / "auto").equals(ours)
    assert [folder.name for folder in (tmp_path / "auto").iterdir()] == ["small"]


def test_an_engine_that_there_is_not_is_an_error() -> None:
    with pytest.raises(UserError, match=r"evaluation\.engine"):
        resolve(small(**CONFIG), changes=["evaluation.engine=sparse"])

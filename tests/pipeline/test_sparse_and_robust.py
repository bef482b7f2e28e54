"""Methods that are sparse and robust at once, from a config: refused in one line, killed after any epoch, shrunk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from defenses.base import prunable
from robustbench_sparse.benchmark import run_benchmark
from robustbench_sparse.cli import main as cli
from robustbench_sparse.config.load import resolve
from robustbench_sparse.data.prepared import PreparedData
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.runs.trained import Trained
from robustbench_sparse.training.trainer import Trainer

PGD = {"name": "pgd_at", "steps": 1}
HYDRA: dict[str, Any] = {"name": "hydra", "sparsity": 80.0, "stages": [1, 2]}
S2AP: dict[str, Any] = {**HYDRA, "name": "s2ap", "gamma": 0.1}
RIGL: dict[str, Any] = {"name": "rigl", "sparsity": 80.0, "every": 2}
THREE = {"stages": [{"epochs": 1}, {"epochs": 2}, {"epochs": 2, "optimizer": {"lr": 0.05}}]}
TWO = {"stages": [{"epochs": 3}, {"epochs": 2, "optimizer": {"lr": 0.05}}]}
ROWS: dict[str, dict[str, Any]] = {
    "hydra": {"defenses": [PGD, HYDRA], "train": THREE},
    "s2ap": {"defenses": [PGD, S2AP], "train": THREE},
    "set": {"defenses": [PGD, {"name": "set", "sparsity": 80.0, "every": 2}], "train": TWO},
    "rigl": {"defenses": [PGD, RIGL], "train": TWO},
    "bird": {"defenses": [PGD, {"name": "flying_bird", "sparsity": 80.0}], "train": TWO},
    "bird_plus": {
        "defenses": [PGD, {"name": "flying_bird", "sparsity": 80.0, "every": 1, "adapt": True, "window": 1}],
        "train": TWO,
    },
}


def config(runs: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "sparse",
        "data": {"name": "digits"},
        "validation": 100,
        "train_limit": 300,
        "attacks": {"fgsm": "fgsm"},
        "evaluation": {"limit": 16},
        "model": {"name": "mlp", "hidden": [16], "batch_norm": True},
        "train": {
            "batch_size": 60,
            "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
            "selection": "last",
        },
        "runs": copy.deepcopy(runs),
    }


# Refused -----------------------------------------------------------------------------------------------------

SHARE: dict[str, Any] = {"name": "set", "sparsity": 80.0}
PRUNE: dict[str, Any] = {"name": "magnitude_prune", "sparsity": 80.0}
BAD: dict[str, tuple[list[Any], dict[str, Any], list[str]]] = {
    "no pretraining": (
        [{**HYDRA, "stages": [0, 1]}],
        THREE,
        ["runs.row.defenses.0", "a stage of pretraining before its own"],
    ),
    "no pretraining in the only stage": (
        [{"name": "s2ap", "sparsity": 80.0}],
        {"epochs": 2},
        ["runs.row.defenses.0", "a stage of pretraining before its own"],
    ),
    "hydra's share": ([{**HYDRA, "sparsity": 100.0}], THREE, ["defenses.0.sparsity", "[0, 100)", "100"]),
    "dynamic share": ([{**SHARE, "sparsity": -1}], TWO, ["defenses.0.sparsity", "[0, 100)", "-1"]),
    "drop of nothing": ([{**SHARE, "drop": 0.0}], TWO, ["defenses.0.drop", "(0, 1)", "0.0"]),
    "drop of all": ([{**RIGL, "drop": 1.0}], TWO, ["defenses.0.drop", "(0, 1)", "1.0"]),
    "no trade in time": ([{**RIGL, "every": 100}], TWO, ["defenses.0", "every", "before its end", "100"]),
    "negative radius": ([{**S2AP, "gamma": -0.1}], THREE, ["defenses.0.gamma", ">= 0", "-0.1"]),
    "two owners": (
        [PGD, RIGL, SHARE],
        TWO,
        ["runs.row.defenses", "rigl alone may make zeros", "['rigl', 'set']"],
    ),
    "an owner and one that prunes": (
        [HYDRA, {**PRUNE, "stages": [2]}],
        THREE,
        ["runs.row.defenses", "hydra alone", "['hydra', 'magnitude_prune']"],
    ),
    "scores under a regulariser": (
        [HYDRA],
        {
            "stages": [
                {"epochs": 1},
                {"epochs": 1, "optimizer": {"name": "linbreg", "lr": 0.1, "lam": 0.1}},
                {"epochs": 1},
            ]
        },
        ["runs.row.defenses.0", "regulariser", "LinBreg"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_in_one_line_before_anything_trains(case: str, tmp_path: Path) -> None:
    defenses, train, parts = BAD[case]
    path, out = tmp_path / "bad.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(config({"row": {"defenses": defenses, "train": train}})))
    result = CliRunner().invoke(cli.app, ["run", str(path), "--out", str(out), "--device", "cpu"])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert all(part in result.stderr for part in parts), result.stderr
    assert not out.exists() or not [p for p in out.rglob("*") if p.is_file()]


def test_in_stages_of_their_own_two_may_prune() -> None:
    rows = config({"row": {"defenses": [{**RIGL, "stages": [0]}, {**PRUNE, "stages": [1]}], "train": TWO}})
    assert [d.name for d in resolve(rows).runs[0].defenses] == ["rigl", "magnitude_prune"]


# Killed ------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def trained(label: str, folder: Path, sittings: int) -> tuple[Trained, Trainer]:
    """A row trained to its end, in sittings of one epoch, or in one."""
    plan = resolve(config({label: ROWS[label]}))
    data = PreparedData(plan.dataset.load(None, None), validation=100, train_limit=300)
    while True:
        trainer = Trainer(plan.runs[0], data, plan.threat, 0, folder / "checkpoint.pt", Silent())
        if sittings > 1:
            kill_after_an_epoch(trainer)
        try:
            return trainer.train(), trainer
        except Killed:
            sittings -= 1


def kill_after_an_epoch(trainer: Trainer) -> None:
    write = trainer.checkpoint.write

    def write_and_die(*arguments: Any) -> None:
        write(*arguments)
        raise Killed

    trainer.checkpoint.write = write_and_die  # type: ignore


@pytest.mark.parametrize("label", ROWS)
def test_killed_after_every_epoch_it_ends_as_unbroken(label: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (one, at_once), (other, in_parts) = (
        trained(label, tmp_path / "a", 1),
        trained(label, tmp_path / "b", 6),
    )
    assert one.weights is not None
    assert other.weights is not None
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(w, other.weights[k]) for k, w in one.weights.items())
    assert [{k: v for k, v in row.items() if v == v} for row in one.history] == [
        {k: v for k, v in row.items() if v == v} for row in other.history
    ]
    assert [d.memory.keys() for d in at_once.defenses] == [d.memory.keys() for d in in_parts.defenses]
    if label == "bird_plus":
        assert all("val_adversarial_accuracy" in row for row in one.history)
        assert all("flying_bird.robust_gap" in row for row in one.history[:3])
        return
    kept = torch.cat([w.flatten() for k, w in one.weights.items() if k in dict(prunable(at_once.model))])
    assert int((kept == 0).sum()) >= round(0.8 * kept.numel())
    assert int((kept == 0).sum()) <= round(0.8 * kept.numel()) + len(kept) // 100  # one may be zero by itself


# Judged and shrunk -------------------------------------------------------------------------------------------


def test_a_searched_network_is_judged_counted_and_shrunk(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    table = run_benchmark(config({"hydra": ROWS["hydra"]}), out=tmp_path, device="cpu")
    row = table.to_dict("records")[0]
    assert row["status"] == "ok"
    assert row["weight_sparsity"] == pytest.approx(80, abs=0.1)
    (folder,) = (tmp_path / "sparse" / "runs").iterdir()
    result = CliRunner().invoke(
        cli.app, ["shrink", str(folder), "--output", str(tmp_path / "small.safetensors")]
    )
    assert result.exit_code == 0, result.output

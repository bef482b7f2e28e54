"""A row that claims zeros its file has not is refused, end to end; and mistakes in the entries that make zeros."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file, save_file

from robustbench_sparse.cli import main as cli
from tests.helpers.small import SMALL

LIAR = '''
"""Pruning as it is published: by the percentile of the signed weights."""

import copy
from dataclasses import dataclass

import torch

from defenses.base import Asked, Defense, prunable


@dataclass(frozen=True, kw_only=True)
class Liar(Defense):
    """Says so many percent."""

    sparsifies = True
    percent: float = 80.0
    honest: bool = False

    @torch.no_grad()
    def deploy(self, model):
        model = copy.deepcopy(model)
        for w in prunable(model).values():
            size = w.abs() if self.honest else w
            bound = torch.quantile(size.flatten(), self.percent / 100)
            w[w.abs() <= bound] = 0
        return model

    def asked(self, model):
        return Asked(kind="weight", percent=self.percent, names=tuple(prunable(model)))
'''


def benchmark(**runs: Any) -> dict[str, Any]:
    return {
        "name": "claims",
        "data": {"name": "digits"},
        "validation": 100,
        "train_limit": 300,
        "attacks": {"fgsm": "fgsm"},
        "threat": {"norm": "linf", "eps": 0.1},
        "evaluation": {"limit": 32},
        "model": {"name": "mlp", "hidden": [32], "batch_norm": True},
        "train": {
            "epochs": 3,
            "batch_size": 60,
            "optimizer": {"name": "sgd", "lr": 0.1},
            "selection": "last",
        },
        "runs": runs,
    }


def run(raw: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, Any]:
    """Exit code and what was printed."""
    config = folder / "claims.yaml"
    config.write_text(yaml.safe_dump(raw, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sys.argv", ["rbs", "run", str(config), "--out", str(folder / "out"), "--device", "cpu", *more]
        )
        with pytest.raises(SystemExit) as stop:
            cli.main()
    code = stop.value.code
    assert isinstance(code, int) or code is None
    return code or 0, capsys.readouterr()


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    table = pd.read_csv(folder / "out" / "claims" / "leaderboard.csv")
    return {row["run"]: row for row in table.to_dict("records")}  # type: ignore[misc]


RATES = ("clean", "clean_lo", "clean_hi", "fgsm", "fgsm_lo", "fgsm_hi", "worst", "worst_lo", "worst_hi")
COUNTED = ("weight_sparsity", "linear_sparsity", "row_sparsity", "macs", "sparse_macs", "nonzero_parameters")


def test_a_promise_that_the_file_does_not_keep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mydef.py").write_text(LIAR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mydef", raising=False)
    raw = benchmark(
        dense={},
        liar={"defenses": ["mydef:Liar"]},
        honest={"defenses": [{"name": "mydef:Liar", "honest": True}]},
        pruned={"defenses": [{"name": "magnitude_prune", "sparsity": 80.0}]},
    )
    code, printed = run(raw, tmp_path, capsys)
    assert code == 1
    assert "refused" in printed.err
    table = rows(tmp_path)
    refused = table["liar"]
    assert refused["status"].startswith(
        "refused: mydef:Liar was asked for 80 % of the weights, the saved file has"
    )
    assert all(pd.isna(refused[c]) for c in (*RATES, *COUNTED, "rank")), "a refused row shows no numbers"
    assert refused["verdict"] != refused["verdict"] or refused["verdict"] == "not checked"
    home = tmp_path / "out" / "claims" / "runs" / refused["run_id"]
    assert not list(home.glob("outcomes/*.csv")), "nor is it judged"
    for label in ("dense", "honest", "pruned"):
        assert table[label]["status"] == "ok"
        assert all(not pd.isna(table[label][c]) for c in (*RATES, *COUNTED))
    assert table["honest"]["weight_sparsity"] == pytest.approx(80, abs=0.2)
    assert table["dense"]["weight_sparsity"] == 0

    text = (tmp_path / "out" / "claims" / "leaderboard.md").read_text()
    assert "refused" in text
    assert run(raw, tmp_path, capsys)[0] == 1, "a second look does not make it better"
    again = rows(tmp_path)
    assert again["liar"]["status"] == refused["status"]
    assert again["pruned"]["fgsm"] == table["pruned"]["fgsm"]


def test_a_file_changed_after_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = benchmark(pruned={"defenses": [{"name": "magnitude_prune", "sparsity": 80.0}]})
    assert run(raw, tmp_path, capsys)[0] == 0
    (path,) = tmp_path.glob("out/claims/runs/*/model.safetensors")
    weights = load_file(path)
    weights["1.weight"] = weights["1.weight"] + 1.0
    save_file(weights, path)
    code, printed = run(raw, tmp_path, capsys)
    assert code == 2
    assert printed.err.strip().splitlines() == [
        f"error: {path}: changed since it was trained; delete the folder to train again"
    ]


def test_an_epoch_before_the_last_pruning_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late: dict[str, Any] = {
        "defenses": [{"name": "magnitude_prune", "sparsity": 99.9, "rounds": 2, "every": 2}],
        "train": {"selection": "best"},
    }
    held = copy.deepcopy(late)
    held["train"]["select_after"] = 2
    code, _ = run(benchmark(late=late, held=held), tmp_path, capsys)
    assert code == 1
    table = rows(tmp_path)
    status = table["late"]["status"]
    assert status.startswith("refused: magnitude_prune was asked for 99.9")
    assert "select_after" in status
    assert all(pd.isna(table["late"][c]) for c in (*RATES, *COUNTED))
    assert table["held"]["status"] == "ok"
    assert table["held"]["weight_sparsity"] == pytest.approx(99.9, abs=0.1)


# Mistakes ----------------------------------------------------------------------------------------------------

PLAIN = {"name": "mlp", "hidden": [16]}


def defense(**entry: Any) -> dict[str, Any]:
    return {"defenses": [entry]}


def optimizer(**entry: Any) -> dict[str, Any]:
    return {"train": {"optimizer": {"name": "linbreg", "lam": 0.1, **entry}}}


ROUNDS = {"name": "magnitude_prune", "sparsity": 50.0, "rounds": 4}
AT, OPTIMIZER = "runs.r.defenses.0", "runs.r.train.optimizer"
# A run, changes at the top of the file -> parts that the line must hold.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "unknown regulariser of an optimizer": (
        optimizer(conv="l3"),
        {},
        [f"{OPTIMIZER}.conv:", "nuclear", "'l3'"],
    ),
    "unknown regulariser of a defense": (
        defense(name="rvsm", lam=0.1, beta=1.0, regulariser="lasso"),
        {},
        [f"{AT}.regulariser:", "transformed_l1", "'lasso'"],
    ),
    "unknown setting of a regulariser": (
        optimizer(linear={"name": "group_lasso", "groups": "row"}),
        {},
        [f"{OPTIMIZER}.linear:", "weighted", "'groups'"],
    ),
    "a regulariser's setting of the wrong type": (
        optimizer(linear={"name": "transformed_l1", "a": "one"}),
        {},
        [f"{OPTIMIZER}.linear: a: expected a finite number > 0, got 'one'"],
    ),
    "a regulariser's flag as a text": (
        defense(name="lasso", lam=0.1, conv={"name": "group_lasso", "weighted": "yes"}),
        {},
        [f"{AT}.conv: weighted: expected true or false, got 'yes'"],
    ),
    "a regulariser that is a number": (defense(name="lasso", lam=0.1, conv=3), {}, [f"{AT}.conv:", "got 3"]),
    "a regulariser of groups that linear layers lack": (
        optimizer(linear={"name": "group_l0", "group": "kernel"}),
        {},
        [f"{OPTIMIZER}.linear: group: expected a weight with kernels"],
    ),
    "groups that some layers lack": (
        defense(
            name="rvsm", lam=0.1, beta=1.0, layers="all", regulariser={"name": "group_l0", "group": "kernel"}
        ),
        {},
        ["runs.r: regulariser: group: expected a weight with kernels"],
    ),
    "a target of everything": (
        {**optimizer(), **defense(name="target_sparsity", target=100)},
        {},
        [f"{AT}.target:", "(0, 100)", "100"],
    ),
    "a target of nothing": (
        defense(name="rvsm", lam=0.1, beta=1.0, target_sparsity=0.0),
        {},
        [f"{AT}.target_sparsity:", "(0, 100)", "0.0"],
    ),
    "a target as a text": (defense(name="target_sparsity", target="90%"), {}, [f"{AT}.target:", "'90%'"]),
    "a target for a dense optimizer": (
        defense(name="target_sparsity", target=90.0),
        {},
        [f"{AT}: target_sparsity:", "regulariser", "SGD"],
    ),
    "a target without a lambda": (
        {**optimizer(lam=0.0), **defense(name="target_sparsity", target=90.0)},
        {},
        [f"{AT}: target_sparsity: expected lam > 0"],
    ),
    "a target of channels that there are none of": (
        {**optimizer(), **defense(name="target_sparsity", target=90.0, kind="channel"), "model": PLAIN},
        {},
        ["runs.r: target_sparsity:", "channels"],
    ),
    "a negative lambda": (optimizer(lam=-1.0), {}, [f"{OPTIMIZER}.lam:", "-1.0"]),
    "an optimizer's setting of another one": (optimizer(beta1=0.9), {}, [f"{OPTIMIZER}.beta1:", "delta"]),
    "l0 in a loss": (
        defense(name="lasso", lam=0.1, linear="l0"),
        {},
        [f"{AT}.linear: expected a regulariser with a gradient, got 'l0'"],
    ),
    "slimming without batch-norm": (
        {**defense(name="network_slimming", lam=0.1), "model": PLAIN},
        {},
        ["runs.r: network_slimming:", "batch-norm"],
    ),
    "slimming without batch-norm to prune": (
        {**defense(name="network_slimming", sparsity=50.0), "model": PLAIN},
        {},
        ["runs.r: network_slimming:", "batch-norm"],
    ),
    "filters where there are none": (
        {**defense(name="l1_filter_prune", sparsity=50.0), "model": PLAIN},
        {},
        ["runs.r: l1_filter_prune:", "filters"],
    ),
    "a schedule by an accuracy that there is none of": (
        {"train": {"schedule": {"name": "plateau", "signal": "val_accuracy"}, "selection": "last"}},
        {"validation": 0},
        ["runs.r.train.schedule.signal:", "validation > 0"],
    ),
    "a controller by an accuracy that there is none of": (
        {**defense(name="clip", source="train", target_accuracy=0.5), "train": {"selection": "last"}},
        {"validation": 0},
        [f"{AT}: signal:", "'validation'"],
    ),
    "pairs from images that there are none of": (
        {**defense(name="clip", lam=0.1), "train": {"selection": "last"}},
        {"validation": 0},
        [f"{AT}: source:", "'val'"],
    ),
    "all weights pruned": (
        defense(name="magnitude_prune", sparsity=100),
        {},
        [f"{AT}.sparsity:", "[0, 100)"],
    ),
    "all weights projected": (defense(name="admm", sparsity=100.0), {}, [f"{AT}.sparsity:", "[0, 100)"]),
    "more rounds than the stage has epochs": (
        defense(**ROUNDS),
        {},
        [f"{AT}: rounds:", "a stage of 2 epochs"],
    ),
    "more rounds than the second stage has epochs": (
        {**defense(**ROUNDS, stages=[1]), "train": {"stages": [{"epochs": 9}, {"epochs": 3}]}},
        {},
        [f"{AT}: rounds:", "a stage of 3 epochs"],
    ),
}
GOOD: dict[str, dict[str, Any]] = {
    "rounds": {**defense(**ROUNDS), "train": {"epochs": 4}},
    "rounds in the long stage": {
        "defenses": [{**ROUNDS, "stages": [0]}, {"name": "hold_zeros", "stages": [1]}],
        "train": {"stages": [{"epochs": 4}, {}]},
    },
    "target": {**optimizer(), **defense(name="target_sparsity", target=90.0)},
}


def with_run(entry: dict[str, Any], **top: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SMALL), "train_limit": 120, "attacks": {}, "runs": {"r": entry}, **top}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_found_before_anything_trains(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry, top, parts = CASES[case]
    raw = with_run(entry, **top)
    raw["train"]["epochs"] = 2
    code, printed = run(raw, tmp_path, capsys)
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert code == 2
    assert lines[0].startswith("error: ")
    assert printed.out == ""
    for part in parts:
        assert part in lines[0], lines[0]
    assert not (tmp_path / "out").exists(), "nothing may be written"


@pytest.mark.parametrize("case", GOOD)
def test_what_is_no_mistake_trains(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = with_run({"model": PLAIN, **GOOD[case]})
    raw["train"] |= {"epochs": 2, "schedule": "constant", "selection": "last"}
    code, printed = run(raw, tmp_path, capsys)
    assert code == 0, printed.err

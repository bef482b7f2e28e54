"""Histories of runs, gathered over seeds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.history import collect, over_seeds, plot, text_of
from tests.helpers.sealing import sealed


def benchmark(folder: Path) -> Path:
    """Run a with seeds 0 and 1, run b with seed 0 and two stages, run c not trained."""
    runs = [("a", 0), ("a", 1), ("b", 0), ("c", 0)]
    entries = [{"run_id": f"{r}-{s}", "run": r, "seed": s} for r, s in runs]
    manifest = {"name": "t", "dataset": "d", "attacks": [], "runs": entries, "published": {}}
    manifest |= {"threat": {"norm": "linf", "eps": 0.1}}
    folder.mkdir(exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(manifest))
    for run, seed in runs[:3]:
        home = folder / "runs" / f"{run}-{seed}"
        home.mkdir(parents=True)
        stages = [0, 0, 1] if run == "b" else [0, 0, 0]
        epochs = [0, 1, 0] if run == "b" else [0, 1, 2]
        rows = {"stage": stages, "epoch": epochs, "train_accuracy": [10.0 + seed, 20.0, 30.0]}
        rows |= {"val_accuracy": [9.0, 8.0, 7.0 + 2 * seed], "l1_norm": [1.0, 2.0, 3.0]}
        rows |= {"weight_sparsity": [99.0, 95.0, 90.0 + seed]}
        pd.DataFrame(rows).to_csv(home / "history.csv", index=False)
        layers = [
            {"stage": s, "epoch": e, "name": n, "weights": 10, "zero_weights": e, "l1_norm": 1.0}
            for s, e in zip(stages, epochs, strict=True)
            for n in ("0", "2")
        ]
        pd.DataFrame(layers).to_csv(home / "layers.csv", index=False)
    return sealed(folder)


def test_means_and_deviations_over_seeds(tmp_path: Path) -> None:
    table = over_seeds(collect(benchmark(tmp_path)))
    assert [*table["run"]] == ["a"] * 3 + ["b"] * 3
    assert [*table["passed"]] == [1, 2, 3, 1, 2, 3]  # the second stage goes on counting
    assert [*table["seeds"]] == [2, 2, 2, 1, 1, 1]
    first, third = table.iloc[0], table.iloc[2]
    assert (first["train_accuracy_mean"], first["train_accuracy_std"]) == pytest.approx(
        (10.5, math.sqrt(0.5))
    )
    assert (third["nonzero_mean"], third["val_accuracy_mean"]) == (9.5, 8.0)
    assert math.isnan(table.iloc[3]["l1_norm_std"])


def test_layers_by_themselves(tmp_path: Path) -> None:
    table = over_seeds(collect(benchmark(tmp_path), only=["a"], layers=True))
    assert [*zip(table["passed"], table["layer"].astype(str), table["nonzero_mean"], strict=True)] == [
        (1, "0", 100.0), (1, "2", 100.0), (2, "0", 90.0), (2, "2", 90.0), (3, "0", 80.0), (3, "2", 80.0),
    ]  # fmt: skip


def test_some_epochs_for_people(tmp_path: Path) -> None:
    lines = text_of(over_seeds(collect(benchmark(tmp_path), only=["a"]))).splitlines()
    assert [line.split()[:2] for line in lines] == [["run", "epoch"], ["a", "1"], ["a", "2"], ["a", "3"]]
    assert lines[1].split()[2:5] == ["10.50", "+-", "0.71"]


def test_a_plot_is_written_whole(tmp_path: Path) -> None:
    table = over_seeds(collect(benchmark(tmp_path)))
    plot(table, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="expected a file ending in"):
        plot(table, tmp_path / "curves.txt")


def test_what_is_not_there(tmp_path: Path) -> None:
    folder = benchmark(tmp_path)
    with pytest.raises(UserError, match=r"--only aa: no such run \(did you mean 'a'\?\)"):
        collect(folder, only=["aa"])
    with pytest.raises(UserError, match="no run has been trained"):
        collect(folder, only=["c"])
    (folder / "runs" / "a-0" / "history.csv").write_text("stage\n1\n")
    with pytest.raises(UserError, match=r"history.csv: changed since it was stored"):
        collect(folder)
    sealed(folder)
    with pytest.raises(UserError, match=r"history.csv: damaged"):
        collect(folder)

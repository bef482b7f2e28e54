"""Numbers pinned to what the project gave before: a change that should not alter them shows it here.

``small.csv`` was written by one short epoch, at a small learning rate, of the benchmark of
``tests/helpers/small.py``: machines differ in the last digits, and in a longer training that difference grows
until other channels die. Rates are compared as ``robustbench-sparse check`` does, the loss to four digits. To pin
new numbers on purpose, run this file with RBS_PIN=1.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from robustbench_sparse import run_benchmark
from robustbench_sparse.reporting.reference import check, text_of
from robustbench_sparse.reporting.tables import to_csv
from tests.helpers.small import small

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("golden")
    raw = small()
    raw["train"] |= {"epochs": 1, "schedule": "constant", "optimizer": {"name": "sgd", "lr": 0.02}}
    table = run_benchmark(raw, out=out)
    if os.environ.get("RBS_PIN"):
        (HERE / "small.csv").write_text(
            to_csv(table.drop(columns=["commit", "train_seconds", "eval_seconds"]))
        )
        losses(out / "small").to_csv(HERE / "first_losses.csv", index=False)
    return out / "small"


def losses(folder: Path) -> pd.DataFrame:
    """Training loss of every run's first epoch."""
    rows = [
        {"run": path.parent.name.split("-")[0], "loss": pd.read_csv(path)["train_loss"][0]}
        for path in sorted(folder.rglob("history.csv"))
    ]
    return pd.DataFrame(rows)


def test_rates_and_sparsities_are_as_pinned(results: Path) -> None:
    problems = check(results, HERE / "small.csv")
    assert problems == [], text_of(problems)


def test_first_losses_are_as_pinned(results: Path) -> None:
    pinned, found = pd.read_csv(HERE / "first_losses.csv"), losses(results)
    assert found["run"].tolist() == pinned["run"].tolist() == ["all", "natural"]
    assert found["loss"].tolist() == pytest.approx(pinned["loss"].tolist(), rel=1e-4)


def test_run_ids_are_as_pinned(results: Path) -> None:
    """A run's id says what determines its numbers; when it moves, every stored result is trained anew."""
    pinned = pd.read_csv(HERE / "small.csv")["run_id"].tolist()
    assert pd.read_csv(results / "leaderboard.csv")["run_id"].tolist() == pinned

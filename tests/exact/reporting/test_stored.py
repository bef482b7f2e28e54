"""Leaderboards read back from the CSV that they were written to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustbench_sparse import run_benchmark
from robustbench_sparse.config.columns import SECONDS
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.leaderboard import tabulate, tabulate_all
from robustbench_sparse.reporting.stored import is_stored, read_leaderboard

CONFIG: dict[str, Any] = {
    "name": "stored",
    "data": "digits",
    "threat": {"norm": "linf", "eps": 0.1},
    "attacks": {"fgsm": "fgsm"},
    "evaluation": {"limit": 40},
    "model": {"name": "mlp", "hidden": [8]},
    "train": {"epochs": 1, "selection": "last", "optimizer": {"name": "sgd", "lr": 0.5}},
    "runs": {
        "plain": {},
        "slow": {"train": {"optimizer": {"lr": 0.1}}},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stored")
    run_benchmark(CONFIG, out=out, jobs=1)
    return out / "stored"


def test_a_written_table_is_read_as_it_was_counted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "leaderboard.csv").write_bytes((folder / "leaderboard.csv").read_bytes())
    assert is_stored(tmp_path)
    assert not is_stored(folder)
    counted, (read,) = tabulate(folder), tabulate_all(tmp_path)
    assert read["run"].tolist() == ["plain", "slow"]
    assert list(read.columns) == list(counted.columns)
    for column in [c for c in counted.columns if c not in SECONDS]:  # written with one digit
        left, right = counted[column], read[column]
        if pd.api.types.is_numeric_dtype(left):
            pd.testing.assert_series_equal(left, right, check_dtype=False, atol=1e-4)
        else:
            assert left.fillna("").astype(str).tolist() == right.fillna("").astype(str).tolist(), column


def test_some_rows_have_no_ranks(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "leaderboard.csv").write_bytes((folder / "leaderboard.csv").read_bytes())
    (read,) = tabulate_all(tmp_path, ["plain"])
    assert read["run"].tolist() == ["plain"]
    assert "rank" not in read.columns
    with pytest.raises(UserError, match="plian"):
        tabulate_all(tmp_path, ["plian"])


def test_folders_with_and_without_runs_stand_beside_each_other(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "leaderboard.csv").write_bytes((folder / "leaderboard.csv").read_bytes())
    (tmp_path / "new").symlink_to(folder)
    assert [len(table) for table in tabulate_all(tmp_path)] == [2, 2]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,b\n1,2\n", "no leaderboard: expected a column 'benchmark'"),
        ("benchmark,run,dataset,n,status\nb,r,d,1,ok\n", "no leaderboard: expected a column 'seed'"),
        ("benchmark,run,seed,dataset,n,status\nb,r,0.5,d,1,ok\n", "column 'seed': expected whole numbers"),
        (
            "benchmark,run,seed,dataset,n,status,clean\nb,r,0,d,1,ok,x\n",
            "column 'clean': expected numbers, got 'x'",
        ),
        ("run\n1,2,3\n", "rows have more cells than the heading"),
    ],
)
def test_another_csv_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "leaderboard.csv").write_text(text)
    with pytest.raises(UserError, match=problem):
        read_leaderboard(tmp_path)

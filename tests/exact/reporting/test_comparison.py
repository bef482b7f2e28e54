"""Two runs' folders paired from anywhere, and damaged ones named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.comparison import compare_runs
from tests.helpers.sealing import sealed


def benchmark(folder: Path, verdicts: dict[str, Sequence[float]]) -> Path:
    """Runs that were judged on their clean images alone."""
    threat = {"norm": "linf", "eps": 0.1}
    runs = [{"run_id": run, "run": run, "seed": 0} for run in verdicts]
    manifest = {"name": "t", "dataset": "d", "attacks": [], "runs": runs, "published": {}, "threat": threat}
    folder.mkdir(exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(manifest))
    for run, correct in verdicts.items():
        outcomes = folder / "runs" / run / "outcomes"
        outcomes.mkdir(parents=True)
        facts = {"run_id": run, "model": "m", "defenses": "", "threat": threat}
        (outcomes.parent / "run.json").write_text(json.dumps(facts))
        about = {"status": "ok", "reason": "", "n": len(correct), "seconds": 1.0, "key": {}}
        (outcomes / "clean.json").write_text(json.dumps(about))
        table = pd.DataFrame({"index": range(len(correct)), "label": 0, "correct": correct})
        table.to_csv(outcomes / "clean.csv", index=False)
    return sealed(folder)


def test_folders_may_be_named_from_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark(tmp_path / "t", {"a": [1.0, 1.0, 0.0], "b": [1.0, 0.0, 0.0]})
    monkeypatch.chdir(tmp_path / "t" / "runs")
    (row,) = compare_runs(Path("a"), Path("b")).to_dict("records")
    assert (row["attack"], row["n"], row["lost"], row["won"], row["flips"]) == ("clean", 3, 1, 0, "-1")


@pytest.mark.parametrize("content", [b"", b"\xff\x00\xfe", b"a,b\n1,2\n", b"index,label,correct\n0,0,x\n"])
def test_damaged_verdicts_are_named_in_one_short_line(tmp_path: Path, content: bytes) -> None:
    folder = benchmark(tmp_path / "t", {"a": [1.0], "b": [1.0]})
    path = folder / "runs" / "b" / "outcomes" / "clean.csv"
    path.write_bytes(content)
    sealed(folder)
    with pytest.raises(UserError) as caught:
        compare_runs(folder / "runs" / "a", folder / "runs" / "b")
    line = str(caught.value)
    assert line.startswith(f"{path}: damaged: ")
    assert len(line.splitlines()) == 1
    assert len(line) <= 500


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    folder = benchmark(tmp_path / "t", {"a": [1.0], "b": [1.0, 0.0]})
    for path in (tmp_path, tmp_path / "none", folder / "benchmark.json"):
        with pytest.raises(UserError, match="not a run's folder") as caught:
            compare_runs(folder / "runs" / "a", path)
        assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(UserError, match="a and b: judged on different images"):
        compare_runs(folder / "runs" / "a", folder / "runs" / "b")

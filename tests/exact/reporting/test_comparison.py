"""Two runs' folders paired from anywhere, and damaged ones named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.paired import compare
from robustbench_sparse.reporting.comparison import compare_runs, text_of
from robustbench_sparse.runs.certificate_record import chosen_places
from tests.helpers.commands import call, one_line
from tests.helpers.sealing import sealed
from tests.helpers.written_rows import SETTINGS, Written, number, written


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


def test_worst_cases_of_different_protocols_are_not_compared(tmp_path: Path) -> None:
    rows = {"a": Written(stands=[1.0, 1.0, 0.0])}
    one = written(tmp_path / "one", rows, certificate="off") / "runs" / "a-s0"
    longer = {"pgd": {**SETTINGS["pgd"], "steps": 50}}
    two = written(tmp_path / "two", rows, certificate="off", settings=longer) / "runs" / "a-s0"
    table = compare_runs(one, two)
    assert table["attack"].tolist() == ["clean", "pgd"]
    text = text_of(table, "first", "second").splitlines()
    assert text[2].startswith("Judged by different protocols (custom-")
    assert text[2].endswith("): their worst cases are not compared.")
    with pytest.raises(
        UserError, match=r"a-s0 and a-s0: judged by different protocols \(custom-.*\+off and custom-"
    ):
        compare_runs(one, two, "worst")
    same = compare_runs(one, one)
    assert same["attack"].tolist() == ["clean", "pgd", "worst"]
    assert "protocol" not in text_of(same, "first", "second")


def test_a_corrected_number_is_compared_on_the_examined_images(tmp_path: Path) -> None:
    places = chosen_places(60, 20)
    found = dict.fromkeys(places[5:], 0.0)
    corrected = Written(stands=[1.0] * 60, checks=[number(1.0, 0.25, True)], found=found, n=20, images=places)
    honest = Written(stands=[float(i % 2) for i in range(60)], checks=[number(0.5, 0.5, False)], n=20)
    runs = written(tmp_path, {"a": corrected, "b": honest}) / "runs"
    table = compare_runs(runs / "a-s0", runs / "b-s0").set_index("attack")
    assert table["n"].to_dict() == {"clean": 60, "pgd": 60, "worst": 20}
    one, other = [float(k < 5) for k in range(20)], [float(i % 2) for i in places]
    expected = compare(one, other)
    worst = table.loc["worst"]
    assert (worst["first"], worst["second"]) == (25.0, 100 * sum(other) / 20)
    assert (worst["low"], worst["high"]) == pytest.approx((100 * expected.low, 100 * expected.high))
    lost = [f"-{places[i]}" for i in expected.lost]
    assert worst["flips"].split() == lost + [f"+{places[i]}" for i in expected.won]


def test_columns_are_shown_as_they_are_asked_for(tmp_path: Path) -> None:
    folder = benchmark(tmp_path, {"a": (1, 0, 0, 0), "b": (0, 1, 1, 0)})
    runs = [folder / "runs" / name for name in ("a", "b")]
    shown = call("compare", *runs, "--columns", "difference,lost,won,flips").stdout.splitlines()
    assert shown[-2].split() == ["difference", "lost", "won", "flips"]
    assert shown[-1].split() == ["clean", "-25.0", "1", "2", "-0", "+1", "+2"]
    written = call("compare", *runs, "--columns", "p,n", "--format", "csv").stdout.splitlines()
    assert (written[0], len(written)) == ("attack,p,n", 2)
    assert "did you mean 'difference'" in one_line(call("compare", *runs, "--columns", "diference"))

"""``shifts:`` from a config to the table: columns of their own, which touch nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustbench_sparse import evaluate, run_benchmark
from robustbench_sparse.config.load import resolve
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.reporting.comparison import compare_runs
from robustbench_sparse.reporting.leaderboard import tabulate
from tests.helpers.small import small

SHIFTS: dict[str, Any] = {
    "noise": {"name": "gaussian_noise", "severity": 5},
    "own": {"name": "resolution", "size": 8},
    "large": {"name": "resolution", "size": 16, "interpolation": "trigonometric"},
}
TIMING = ["train_seconds", "eval_seconds"]


def config(**changes: Any) -> dict[str, Any]:
    """Three networks of which one takes no other size."""
    raw = small(attacks={"fgsm": "fgsm"}, shifts=copy.deepcopy(SHIFTS))
    raw["train"]["epochs"] = 1
    raw["runs"] = {
        "cnn": {"model": {"name": "cnn", "widths": [8], "kernel_size": 3}},
        "fno": {"model": {"name": "fno", "widths": [8], "kernel_size": 3}},
        "mlp": {"model": {"name": "mlp", "hidden": [16]}},
    }
    return {**raw, **changes}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shifts")
    run_benchmark(config(), out=out)
    return out / "small"


def test_their_columns_stand_behind_the_worst_case(results: Path) -> None:
    table = tabulate(results)
    columns = table.columns.tolist()
    at = columns.index("worst_hi") + 1
    expected = [c for s in SHIFTS for c in (s, f"{s}_lo", f"{s}_hi")]
    assert columns[at : at + 10] == [*expected, "worst_n"]
    written = pd.read_csv(results / "leaderboard.csv")
    assert written.columns.tolist() == columns
    for label in SHIFTS:
        outcome = pd.read_csv(results / "runs" / table["run_id"][0] / "outcomes" / f"{label}.csv")
        assert table[label][0] == pytest.approx(100 * outcome["correct"].mean())
        assert table[f"{label}_lo"][0] <= table[label][0] <= table[f"{label}_hi"][0]
    assert table["own"].tolist() == table["clean"].tolist(), "the images as they are"
    seeds = pd.read_csv(results / "leaderboard_seeds.csv")
    assert seeds["noise_mean"].tolist() == pytest.approx(written["noise"].tolist())
    assert "noise" in (results / "leaderboard.md").read_text()


def test_a_network_that_cannot_take_them_has_an_empty_cell_with_its_reason(results: Path) -> None:
    row = tabulate(results).set_index("run").loc["mlp"]
    assert pd.isna(row["large"])
    assert row["status"].startswith("large: crashed: RuntimeError: ")
    assert row[["worst", "noise", "own", "rank"]].notna().all(), "the rest stands"


def test_nothing_else_changes(results: Path, tmp_path: Path) -> None:
    without = config()
    del without["shifts"]
    plain = run_benchmark(without, out=tmp_path)
    table = tabulate(results)
    shared = [c for c in plain.columns if c not in (*TIMING, "status")]
    pd.testing.assert_frame_equal(table[shared], plain[shared])
    for run_id in plain["run_id"]:
        homes = [folder / "runs" / run_id for folder in (results, tmp_path / "small")]
        for name in ("model.safetensors", "run.json", "outcomes/clean.csv", "outcomes/fgsm.csv"):
            one, other = ((home / name).read_bytes() for home in homes)
            assert one == other
    manifest = json.loads((tmp_path / "small" / "benchmark.json").read_text())
    assert "shifts" not in manifest
    assert "shifts" not in manifest["table"]
    manifest = json.loads((results / "benchmark.json").read_text())
    assert manifest["shifts"] == manifest["table"]["shifts"]
    assert list(manifest["shifts"]) == list(SHIFTS)
    assert manifest["attacks"] == ["fgsm"]


def test_a_table_grows_by_a_shift_and_is_not_judged_again(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.stat().st_mtime_ns for p in results.glob("runs/[cf]*/outcomes/*.csv")}
    assert len(before) == 2 * 5
    more = config()
    more["shifts"]["dark"] = {"name": "contrast", "severity": 5}
    table = run_benchmark(more, out=results.parent)
    assert table["dark"].notna().all()
    assert {p: p.stat().st_mtime_ns for p in before} == before
    changed = config()
    changed["shifts"]["noise"]["severity"] = 1
    with pytest.raises(UserError, match=r"shifts.noise.severity: 5 there, 1 here.*--replace"):
        run_benchmark(changed, out=results.parent)
    run_benchmark(config(), out=results.parent, replace=True)


def test_an_outcome_of_other_settings_or_with_another_hash_does_not_count(tmp_path: Path) -> None:
    raw = config(runs={"cnn": config()["runs"]["cnn"]})
    run_id = run_benchmark(raw, out=tmp_path)["run_id"][0]
    folder = tmp_path / "small"
    manifest = json.loads((folder / "benchmark.json").read_text())
    manifest["shifts"]["noise"]["severity"] = 2
    (folder / "benchmark.json").write_text(json.dumps(manifest))
    row = tabulate(folder).iloc[0]
    assert pd.isna(row["noise"])
    assert row["status"] == "incomplete: noise (its settings have changed)"
    path = folder / "runs" / run_id / "outcomes" / "large.csv"
    path.write_text(path.read_text().replace("0.0,1.0,ok", "1.0,1.0,ok"))
    with pytest.raises(UserError, match=r"large.csv: changed since it was stored"):
        tabulate(folder)


def test_two_runs_are_compared_on_shifted_images(results: Path) -> None:
    ids = tabulate(results).set_index("run")["run_id"]
    first, second = (results / "runs" / ids[run] for run in ("cnn", "fno"))
    table = compare_runs(first, second, "large")
    row = tabulate(results).set_index("run")["large"]
    assert table["first"][0] == pytest.approx(row["cnn"])
    assert table["second"][0] == pytest.approx(row["fno"])


def test_a_given_network_is_judged_on_them_too(results: Path, tmp_path: Path) -> None:
    table = tabulate(results).set_index("run")
    changes = ["shifts.dim={name: contrast, severity: 5}", "shifts.big={name: resolution, size: 16}"]
    found = evaluate(
        results / "runs" / table["run_id"]["fno"],
        attacks=["fgsm"],
        limit=96,
        changes=changes,
        out=tmp_path,
        expect_clean=0,  # one epoch is not much
    )
    assert found[["dim", "big"]].notna().all(axis=None)
    assert found["worst"].notna().all()


@pytest.mark.parametrize("folder", ["published", "labels"])
def test_a_shifts_label_is_a_column(folder: str) -> None:
    if folder == "published":
        plan = resolve(config(published={"values": {"cnn": {"noise": 50.0}}}))
        assert plan.published == {"cnn": {"noise": 50.0}}
    else:
        plan = resolve(config())
        assert [s.label for s in plan.shifts] == list(SHIFTS)
        assert [s.record() for s in plan.shifts][1] == {
            "name": "resolution",
            "size": 8,
            "interpolation": "bilinear",
        }

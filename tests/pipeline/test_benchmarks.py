"""The benchmark script runs to its end on a tiny network; what it says about speed there means nothing."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_every_default_row_is_measured_printed_and_written(tmp_path: Path) -> None:
    done = bench("--out", str(tmp_path / "result.md"))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = rows(tmp_path / "result.csv")
    assert [line["failed"] for line in lines] == [""] * len(lines)
    by_row: dict[str, list[dict[str, str]]] = {}
    for line in lines:
        by_row.setdefault(line["row"], []).append(line)
    assert list(by_row) == [
        "pgd-full",
        "pgd-verdict-natural",
        "pgd-verdict-robust",
        "cw",
        "agreement",
        "at-epoch",
        "single-step",
        "ensemble",
        "rgsm-step",
        "rgsm-update",
        "sparse-optimizers",
        "rvsm-step",
        "shrunk",
        "zeros",
        "mlp-epoch",
        "cli",
        "reading",
        "compiling",
        "jobs",
    ]
    assert [line["peer"] for line in by_row["pgd-full"]] == ["torchattacks", "foolbox", "plain loop"]
    for line in by_row["pgd-full"][2:] + by_row["at-epoch"] + by_row["rgsm-update"]:
        assert float(line["ours"]) > 0
        assert float(line["theirs"]) > 0
        assert float(line["ours_low"]) <= float(line["ours"]) <= float(line["ours_high"])
    # This one is no matter of speed: fp32 confirms every success that was counted.
    denied = [line for line in by_row["agreement"] if line["target"] == "<= 0 images"]
    assert [(line["got"], line["met"]) for line in denied] == [("0", "True")] * 2

    text = (tmp_path / "result.md").read_text()
    assert "| what | ours | peer | ratio | target | verdict agreement |" in text
    for head in ("commit", "date", "processor", "threads", "packages", "seeds", "images"):
        assert f"* {head}: " in text
    assert "not a measurement" in text
    for line in lines:
        assert f"| {line['what']} |" in text
        assert line["what"].split(",")[0] in done.stdout


def test_a_row_that_raises_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "cifar10-jpeg.zip").write_bytes(b"no zip")
    out = tmp_path / "result"
    done = bench("--only", "reading,cli", "--data-root", str(tmp_path), "--out", str(out))
    assert done.returncode == 1
    reading, cli = rows(out.with_suffix(".csv"))
    assert reading["row"] == "reading"
    assert "cifar10-jpeg.zip" in reading["failed"]
    assert cli["failed"] == ""
    assert float(cli["ours"]) > 0
    assert "| reading | failed |" in out.with_suffix(".md").read_text()


@pytest.mark.long
def test_accuracies_after_equal_epochs(tmp_path: Path) -> None:
    done = bench("--only", "at-accuracy", "--out", str(tmp_path / "result"))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = rows(tmp_path / "result.csv")
    assert [line["what"].split()[0] for line in lines] == ["clean", "PGD-3"]
    assert all(0 <= float(line[side]) <= 100 for line in lines for side in ("ours", "theirs"))


@pytest.mark.long
def test_autoattack_beside_the_librarys(tmp_path: Path) -> None:
    done = bench("--only", "autoattack", "--out", str(tmp_path / "result"))
    assert done.returncode == 0, done.stdout + done.stderr
    speed, *stages, share, papers, equal, full = rows(tmp_path / "result.csv")
    assert float(speed["ours"]) > 0
    assert float(speed["theirs"]) > 0
    assert [line["what"].split(": ")[1] for line in stages] == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    assert all(float(line[side]) > 0 for line in stages for side in ("ours", "theirs"))
    assert 0 < float(share["ours"]) < float(share["theirs"])
    assert papers["peer"] == "autoattack"
    for line in (equal, full):
        assert float(line["got"]) <= 0.2  # points of robust accuracy above the library's
    assert (tmp_path / "result.md").read_text().count("only theirs broke") == 2


def test_an_unknown_row_is_refused() -> None:
    done = bench("--only", "pgd-ful")
    assert done.returncode == 2
    assert "no row 'pgd-ful'" in done.stderr


def test_sides_take_turns_and_time_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    import torch

    from benchmarks import timing

    now, order = [0.0], []

    def work(name: str, seconds: float, number: int) -> str:
        now[0] += seconds
        order.append(f"{name}{number}")
        return name

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    sides = [
        timing.Side("a", lambda k: work("a", 1.0, k), lambda: work("a", 5.0, -1)),
        timing.Side("b", lambda k: work("b", 2.0, k), lambda: work("b", 5.0, -1)),
    ]
    # 10 s of warm-up, rounds of 3 s: two fit into 17 s.
    measured = timing.interleave(sides, repeats=9, budget=17, device=torch.device("cpu"))
    assert order == ["a-1", "b-1", "a0", "b0", "a1", "b1"]
    assert measured["a"].seconds == [1.0, 1.0]
    assert measured["b"].results == ["b", "b"]
    assert measured["b"].rate(100).median == 50


@pytest.mark.long
def test_scaling_replaces_the_tables_of_a_page_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Before\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nafter\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.scaling", "--quick", "--out", str(page)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("<!-- measured: end -->\nafter\n")
    assert "old" not in text
    for row in ("| MLP 784-200-80-10 | 0.17 |", "| LeNet |", "| steps |", "| members, noise 0.1 |"):
        assert row in text
    page.write_text("no place for tables")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "measured: begin" in done.stderr
    assert page.read_text() == "no place for tables"


def test_the_folder_made_for_folding_is_a_whole_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustbench_sparse.reporting.leaderboard import tabulate

    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.folding import main, make

    table = tabulate(make(tmp_path / "made", 3, 20, 2))
    assert list(table["status"]) == ["ok"] * 3
    assert list(table["n"]) == [20] * 3
    assert table[["attack0", "attack1", "worst", "rank"]].notna().all(axis=None)
    assert main(["--rows", "2", "--images", "10"]) == 0

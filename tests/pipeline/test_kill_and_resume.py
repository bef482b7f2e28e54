"""Same seed, same leaderboard: twice, after kill -9 at several moments, and with two processes at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.helpers.small import small
from tests.pipeline import killed

pytestmark = pytest.mark.slow
TIMING = ["train_seconds", "eval_seconds"]


def command(config: Path, out: Path) -> list[str]:
    program = [sys.executable, "-m", "robustbench_sparse", "run", str(config), "--out", str(out)]
    return [*program, "--device", "cpu", "--jobs", "1"]  # a kill is meant for the process that does the work


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(small(), sort_keys=False))
    return path


@pytest.fixture(scope="module")
def unbroken(config: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("unbroken")
    subprocess.run(command(config, out), check=True, capture_output=True, env=environment())
    return numbers(out)


def numbers(out: Path) -> bytes:
    """The leaderboard's bytes without the two columns of seconds."""
    table = pd.read_csv(out / "small" / "leaderboard.csv", dtype=str)
    assert len(table) == 2
    assert (table["status"] == "ok").all(), table["status"].tolist()
    return table.drop(columns=TIMING).to_csv(index=False).encode()


def run_until(config: Path, out: Path, written: str) -> None:
    """Run, and be killed with -9 right after the first file was written whose path matches."""
    words = [sys.executable, killed.__file__, "after", written, "1", *command(config, out)[3:]]
    done = subprocess.run(words, capture_output=True, env=environment())
    assert done.returncode == -signal.SIGKILL, done.stderr


MOMENTS = {
    "after the first epoch": "*/natural-*/checkpoint.pt",
    "in the second run's training": "*/all-*/checkpoint.pt",
    "between two batches of an attack": "*/outcomes/.pgd.parts/000000.csv",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_with_the_same_numbers(
    moment: str, config: Path, unbroken: bytes, tmp_path: Path
) -> None:
    run_until(config, tmp_path, MOMENTS[moment])
    done = subprocess.run(command(config, tmp_path), capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path) == unbroken
    assert not list(tmp_path.rglob("*.tmp")), "half-written files must not stay"
    assert not list(tmp_path.rglob("*.parts"))


def test_the_same_seed_gives_the_same_leaderboard_and_what_is_finished_is_not_trained_again(
    config: Path, unbroken: bytes, tmp_path: Path
) -> None:
    subprocess.run(command(config, tmp_path), check=True, capture_output=True, env=environment())
    assert numbers(tmp_path) == unbroken
    weights = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.safetensors")}
    outcomes = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("outcomes/*.csv")}
    assert len(weights) == 2
    assert len(outcomes) == 6
    subprocess.run(command(config, tmp_path), check=True, capture_output=True, env=environment())
    assert {p: p.stat().st_mtime_ns for p in weights} == weights
    assert {p: p.stat().st_mtime_ns for p in outcomes} == outcomes


def test_a_table_that_is_worked_on_is_not_replaced(config: Path, unbroken: bytes, tmp_path: Path) -> None:
    raw = small()
    raw["train"]["epochs"] = 2000
    long = tmp_path / "long.yaml"
    long.write_text(yaml.safe_dump(raw, sort_keys=False))
    first = subprocess.Popen(
        command(long, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    replacing = [*command(config, tmp_path), "--replace"]
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "small").glob("runs/*/checkpoint.pt")):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        second = subprocess.run(replacing, capture_output=True, text=True, env=environment())
        assert first.poll() is None, "the first process must still be at work"
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 2
    assert "another process is working on " in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    # The system frees the rows of a process that was killed.
    subprocess.run(replacing, check=True, capture_output=True, env=environment())
    assert numbers(tmp_path) == unbroken

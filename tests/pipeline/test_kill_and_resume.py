"""Same seed, same leaderboard: twice, after kill -9 at several moments, and with two processes at once."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.helpers import forks
from tests.helpers.small import small
from tests.pipeline import killed

pytestmark = pytest.mark.slow
TIMING = ["train_seconds", "eval_seconds"]


def command(config: Path, out: Path) -> list[str]:
    where = ["run", str(config), "--out", str(out)]
    return [*where, "--device", "cpu", "--jobs", "1"]  # a kill is meant for the process that does the work


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(small(train_limit=192), sort_keys=False))
    return path


@pytest.fixture(scope="module")
def unbroken(config: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("unbroken")
    forks.run(command(config, out), check=True)
    return numbers(out)


def numbers(out: Path) -> bytes:
    """The leaderboard's bytes without the two columns of seconds."""
    table = pd.read_csv(out / "small" / "leaderboard.csv", dtype=str)
    assert len(table) == 2
    assert (table["status"] == "ok").all(), table["status"].tolist()
    return table.drop(columns=TIMING).to_csv(index=False).encode()


def run_until(config: Path, out: Path, written: str) -> None:
    """Run, and be killed with -9 right after the first file was written whose path matches."""
    done = forks.run(["after", written, 1, *command(config, out)], script=killed.__file__)
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
    done = forks.run(command(config, tmp_path))
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path) == unbroken
    assert not list(tmp_path.rglob("*.tmp")), "half-written files must not stay"
    assert not list(tmp_path.rglob("*.parts"))


def test_the_same_seed_gives_the_same_leaderboard_and_what_is_finished_is_not_trained_again(
    config: Path, unbroken: bytes, tmp_path: Path
) -> None:
    forks.run(command(config, tmp_path), check=True)
    assert numbers(tmp_path) == unbroken
    weights = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.safetensors")}
    outcomes = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("outcomes/*.csv")}
    assert len(weights) == 2
    assert len(outcomes) == 6
    forks.run(command(config, tmp_path), check=True)
    assert {p: p.stat().st_mtime_ns for p in weights} == weights
    assert {p: p.stat().st_mtime_ns for p in outcomes} == outcomes


def test_a_table_that_is_worked_on_is_not_replaced(config: Path, unbroken: bytes, tmp_path: Path) -> None:
    raw = small(train_limit=192)
    raw["train"]["epochs"] = 2000
    long = tmp_path / "long.yaml"
    long.write_text(yaml.safe_dump(raw, sort_keys=False))
    first = forks.start(command(long, tmp_path))
    replacing = [*command(config, tmp_path), "--replace"]
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "small").glob("runs/*/checkpoint.pt")):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        second = forks.run(replacing)
        assert first.poll() is None, "the first process must still be at work"
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert second.returncode == 2
    assert "another process is working on " in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    # The system frees the rows of a process that was killed.
    forks.run(replacing, check=True)
    assert numbers(tmp_path) == unbroken

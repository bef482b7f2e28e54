"""Rows side by side: the numbers of one process, errors as lines, and nothing that outlives the command."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from robustbench_sparse import run_benchmark
from robustbench_sparse.config.columns import SECONDS
from robustbench_sparse.config.load import resolve
from robustbench_sparse.data.loading import load_dataset
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.pool import PROCESS_BYTES, jobs_for
from robustbench_sparse.workers import Request
from robustbench_sparse.workspace import Workspace
from tests.helpers import forks
from tests.helpers.small import small

pytestmark = pytest.mark.slow
TIMES = list(SECONDS)


def tiny(**changes: Any) -> dict[str, Any]:
    raw = small(
        threads=1,
        model={"name": "mlp", "hidden": [8]},
        runs={
            "natural": {},
            "robust": {"defenses": [{"name": "pgd_at", "steps": 2}]},
            "lasso": {"defenses": ["lasso"]},
        },
        seeds=[0, 1],
        attacks={"fgsm": "fgsm", "borrowed": {"name": "transfer", "source": "natural", "steps": 2}},
    )  # fmt: skip
    raw["evaluation"] = {"limit": 20, "certificate": "quick"}
    raw["train"]["epochs"] = 2
    del raw["train"]["schedule"]
    return {**raw, **changes}


class Heard(Silent):
    """Remembers the titles of the bars."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def start(self, title: str, total: int, unit: str, done: int = 0) -> Any:
        self.titles.append(title)
        return super().start(title, total, unit, done)


def test_the_numbers_are_those_of_one_process(tmp_path: Path) -> None:
    # Two are enough: each is certified twice.
    raw = tiny(runs={"natural": {}, "lasso": {"defenses": ["lasso"]}}, seeds=[1])
    alone = run_benchmark(raw, out=tmp_path / "one", jobs=1)
    heard = Heard()
    together = run_benchmark(raw, out=tmp_path / "two", jobs=2, show=heard)
    assert together["status"].tolist() == ["ok"] * 2
    pd.testing.assert_frame_equal(alone.drop(columns=TIMES), together.drop(columns=TIMES))
    assert {"natural train", "lasso fgsm", "lasso certificate"} <= set(heard.titles)
    for path in sorted((tmp_path / "one").rglob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
    # A row that another one needed was trained by one of them alone.
    assert heard.titles.count("natural train") == 1


CORES = 8


def workspace(monkeypatch: pytest.MonkeyPatch, raw: dict[str, Any]) -> Workspace:
    """A benchmark on a machine of eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: CORES)
    monkeypatch.setattr("robustbench_sparse.pool.FEW", 1)
    plan = resolve(raw)
    dataset = load_dataset(plan.dataset, None)
    data = plan.prepare(dataset, torch.device("cpu"))
    return Workspace(Path("none"), plan, plan.runs, dataset, data, Silent())


@pytest.mark.parametrize(
    ("threads", "hidden", "seeds", "each", "jobs"),
    [
        (1, 8, 2, 1, 6),
        (3, 8, 2, 3, 2),
        (16, 8, 2, 16, 1),
        (None, 8, 1, 2, 3),  # eight cores divided among three rows
        (None, 8, 10, 1, 8),
        (None, 9000, 1, 8, 1),  # 80 million multiplications a pass
    ],
)
def test_how_many_go_side_by_side(
    monkeypatch: pytest.MonkeyPatch, threads: int | None, hidden: int, seeds: int, each: int, jobs: int
) -> None:
    monkeypatch.setattr("robustbench_sparse.workspace.LARGE", 50e6)
    monkeypatch.setattr("robustbench_sparse.pool.available_memory", lambda: 10**12)
    model = {"name": "mlp", "hidden": [hidden] * 2}
    work = workspace(monkeypatch, tiny(threads=threads, model=model, seeds=list(range(seeds))))
    assert (work.threads, jobs_for(work)) == (each, jobs)
    assert jobs_for(work, 2) == 2
    assert jobs_for(work, 500) == 3 * seeds
    # Whichever rows are asked for, a row takes as many threads: they are part of how its sums are rounded.
    assert replace(work, chosen=work.chosen[:1]).threads == each


def test_no_more_go_side_by_side_than_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    work = workspace(monkeypatch, tiny())
    monkeypatch.setattr(
        "robustbench_sparse.pool.available_memory", lambda: 2.5 * (PROCESS_BYTES + work.memory)
    )
    assert jobs_for(work) == 2
    monkeypatch.setattr("robustbench_sparse.pool.available_memory", lambda: 1)
    assert jobs_for(work) == 1
    assert work.memory >= 2 * work.data.bytes > 1e4
    wide = workspace(monkeypatch, tiny(model={"name": "mlp", "hidden": [2000] * 2}))
    monkeypatch.setattr("robustbench_sparse.pool.available_memory", lambda: 10**12)
    assert jobs_for(wide) == 6
    monkeypatch.setattr("robustbench_sparse.pool.FEW", 10 * wide.multiplications)
    assert jobs_for(wide) == 1, "too little work to start a process for"
    assert wide.multiplications > 6 * 1000 * 4e6 > 100 * work.multiplications
    assert wide.memory - work.memory > 3 * 4 * 2000**2  # weights, gradients, the chosen weights


def test_what_another_process_cannot_have_is_worked_on_here() -> None:
    work: Any = SimpleNamespace(
        folder=Path("f"),
        chosen=[],
        plan=resolve(tiny()),
        data=SimpleNamespace(device=torch.device("cpu")),
        log=(),
    )
    assert Request.of(tiny(), work, [], None) is not None
    assert Request.of(tiny(runs={"a": {"defenses": ["__main__:Mine"]}}), work, [], None) is None
    assert Request.of({**tiny(), "name": object()}, work, [], None) is None


def test_threads_are_divided_among_the_rows_and_the_numbers_stay(tmp_path: Path) -> None:
    raw = tiny(threads=None, evaluation={"limit": 20}, seeds=[0])
    alone = run_benchmark(raw, out=tmp_path / "one", jobs=1)
    together = run_benchmark(raw, out=tmp_path / "two", jobs=2)
    pd.testing.assert_frame_equal(alone.drop(columns=TIMES), together.drop(columns=TIMES))


def refused(raw: dict[str, Any], folder: Path) -> tuple[str, str]:
    """A benchmark that two processes work on in a folder, and that ends with an error: its line, and all of stderr."""
    config = folder / "b.yaml"
    config.write_text(yaml.safe_dump(raw))
    done = forks.run(["run", config, "--out", folder, "--jobs", 2], cwd=folder)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return line, done.stderr


def test_an_error_in_a_row_is_a_line_and_ends_the_others(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom defenses.base import Defense\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Fails(Defense):\n"
        "    def perturb(self, s):\n        print('not a report')\n        raise RuntimeError('as it\\nwas meant')\n"
    )
    raw = tiny(runs={"a": {"defenses": ["mine:Fails"]}, "b": {}}, attacks={"f": "fgsm"})
    line, _ = refused(raw, tmp_path)
    assert line == "error: RuntimeError: as it was meant"


def _workers() -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"robustbench_sparse.workers" in path.read_bytes():
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_kill_9_takes_the_workers_along_and_costs_no_number(tmp_path: Path) -> None:
    config = tmp_path / "b.yaml"
    raw = tiny(evaluation={"limit": 40}, seeds=[0])
    raw["train"]["epochs"] = 30
    config.write_text(yaml.safe_dump(raw))
    before = _workers()
    words = ["run", config, "-q", "--jobs"]
    process = forks.start([*words, 2, "--out", tmp_path / "cut"])
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut").glob("small/runs/*/checkpoint.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    mine = _workers() - before
    process.send_signal(signal.SIGKILL)
    process.wait()
    while _workers() & mine:
        assert time.monotonic() < deadline, "a worker outlives the command"
        time.sleep(0.05)
    forks.run([*words, 2, "--out", tmp_path / "cut"], check=True)
    forks.run([*words, 1, "--out", tmp_path / "whole"], check=True)
    cut, whole = (
        pd.read_csv(tmp_path / out / "small" / "leaderboard.csv", dtype=str) for out in ("cut", "whole")
    )
    pd.testing.assert_frame_equal(cut.drop(columns=TIMES), whole.drop(columns=TIMES))


def test_two_commands_share_the_rows_of_one_table(tmp_path: Path) -> None:
    raw = tiny(evaluation={"limit": 20})
    raw["train"]["epochs"] = 10
    alone = run_benchmark(raw, out=tmp_path / "one", jobs=1)
    config = tmp_path / "b.yaml"
    config.write_text(yaml.safe_dump(raw, sort_keys=False))
    words = ["run", config, "--jobs", 1, "--out", tmp_path / "two"]
    both = [forks.start(words) for _ in "ab"]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    trained = [[line for line in text.splitlines() if " train: " in line] for text in said]
    assert all(trained), "one of them had nothing to do"
    assert len(trained[0] + trained[1]) == 6, "a row was trained twice"
    table = pd.read_csv(tmp_path / "two" / "small" / "leaderboard.csv", dtype=str)
    expected = pd.read_csv(tmp_path / "one" / "small" / "leaderboard.csv", dtype=str)
    pd.testing.assert_frame_equal(table.drop(columns=TIMES), expected.drop(columns=TIMES))
    assert len(alone) == 6


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


class Kills(Heard):
    """Kills a process that works on a row, once, as soon as a second one trains."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.killed = False

    def start(self, title: str, total: int, unit: str, done: int = 0) -> Any:
        task = super().start(title, total, unit, done)
        if not self.killed and len([t for t in self.titles if t.endswith("train")]) == 2:
            self.killed = True
            os.kill(max(w for w in _workers() if _parent(w) == os.getpid()), signal.SIGKILL)
        return task

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_the_row_of_a_process_that_dies_is_taken_up_again(tmp_path: Path) -> None:
    raw = tiny(evaluation={"limit": 20}, seeds=[0], attacks={"fgsm": "fgsm"})
    raw["train"]["epochs"] = 10
    alone = run_benchmark(raw, out=tmp_path / "one", jobs=1)
    shown = Kills()
    together = run_benchmark(raw, out=tmp_path / "two", jobs=2, show=shown)
    assert shown.killed
    assert [n for n in shown.notes if "another one goes on with it" in n]
    pd.testing.assert_frame_equal(alone.drop(columns=TIMES), together.drop(columns=TIMES))


def test_a_row_that_every_process_dies_of_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os\nfrom dataclasses import dataclass\nfrom defenses.base import Defense\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Dies(Defense):\n"
        "    def perturb(self, s):\n        os._exit(9)\n"
    )
    runs = {"a": {"defenses": ["mine:Dies"]}, "b": {}}
    line, said = refused(tiny(runs=runs, attacks={"f": "fgsm"}, seeds=[0]), tmp_path)
    assert line.startswith("error: runs.a, seed 0: 3 processes that worked on it ended, the last: ")
    assert "Traceback" not in said


def test_best_and_last_epoch_come_from_one_training(tmp_path: Path) -> None:
    at = {"defenses": [{"name": "pgd_at", "steps": 2}]}
    heard = Heard()
    raw = tiny(
        runs={"chosen": at, "last": {**at, "train": {"selection": "last"}}},
        attacks={"fgsm": "fgsm"}, seeds=[2], evaluation={"limit": 40},
    )  # fmt: skip
    raw["train"]["epochs"], raw["train"]["optimizer"]["lr"] = 5, 0.5  # so that the last epoch is not the best
    table = run_benchmark(raw, out=tmp_path, show=heard, jobs=1).set_index("run")
    assert table["status"].tolist() == ["ok", "ok"]
    assert [t for t in heard.titles if t.endswith("train")] == ["chosen train"]
    alone = run_benchmark({**raw, "runs": {"last": raw["runs"]["last"]}}, out=tmp_path / "alone", jobs=1)
    for column in ("clean", "fgsm", "worst", "train_accuracy"):
        assert alone[column].iloc[0] == table.loc["last", column]
    history = pd.read_csv(next(tmp_path.glob("small/runs/chosen-*/history.csv")))
    best = history["val_adversarial_accuracy"].idxmax()
    assert best != len(history) - 1, "or the test shows nothing"
    assert table.loc["chosen", "train_accuracy"] == pytest.approx(history["train_accuracy"][best])
    assert table.loc["last", "train_accuracy"] == pytest.approx(history["train_accuracy"].iloc[-1])

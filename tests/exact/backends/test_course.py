"""Which units begin when, and what becomes of those that end otherwise than done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from robustbench_sparse.backends import backend_of, course
from robustbench_sparse.backends.base import Report, Unit
from robustbench_sparse.backends.board import Board, FolderProgress
from robustbench_sparse.backends.course import Course, work_off
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.progress import Silent


def unit(name: str, *needs: str) -> Unit:
    return Unit(run_id=name, label=name, seed=0, needs=needs)


class Scripted:
    """An engine in which units end in the order in which they came, each as it is told."""

    def __init__(self, most: int, reports: dict[str, list[Report]] | None = None) -> None:
        self.most, self.reports = most, reports or {}
        self.given: list[tuple[str, bool]] = []
        self.running: list[Unit] = []
        self.peak = 0

    def submit(self, units: Sequence[Unit], *, wait: bool) -> None:
        self.given += [(u.run_id, wait) for u in units]
        self.running += units
        self.peak = max(self.peak, len(self.running))

    def hear(self, seconds: float) -> list[tuple[Unit, Report]]:
        first = self.running.pop(0)
        told = self.reports.get(first.run_id, [])
        return [(first, told.pop(0) if told else Report("done"))]

    def close(self) -> None:
        self.running.clear()


def worked(units: Sequence[Unit], engine: Scripted, folder: Path, trained: Sequence[str] = ()) -> int:
    board = Board(folder, Silent())
    return sum(1 for _ in work_off(units, engine, Silent(), board, lambda name: name in trained))


def test_as_many_at_once_as_the_engine_takes(tmp_path: Path) -> None:
    engine = Scripted(3)
    assert worked([unit(str(i)) for i in range(10)], engine, tmp_path) == 10
    assert engine.peak == 3
    assert engine.given == [(str(i), False) for i in range(10)]


def test_what_is_needed_comes_first_and_only_its_training_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = [unit("sparse", "dense"), unit("borrows", "dense", "sparse"), unit("dense"), unit("other")]
    engine = Scripted(2)
    assert worked(units, engine, tmp_path) == 4
    assert [name for name, _ in engine.given] == ["dense", "other", "sparse", "borrows"]
    # With dense trained already nothing waits for the end of its judging.
    engine = Scripted(4)
    assert worked(units, engine, tmp_path, trained=["dense"]) == 4
    assert [name for name, _ in engine.given[:3]] == ["dense", "other", "sparse"]
    # Trained meanwhile, while it is still judged.
    trained: list[str] = []
    plan = Course(units, lambda name: name in trained)
    assert [u.run_id for u in plan.take(9)] == ["dense", "other"]
    monkeypatch.setattr(course, "LOOK_S", 0)
    plan.look(["dense"])
    assert plan.take(9) == []
    trained.append("dense")
    plan.look(["other"])
    assert plan.take(9) == [], "only those that run are looked at"
    plan.look(["dense"])
    assert [u.run_id for u in plan.take(9)] == ["sparse"]


def test_free_places_help_with_the_shards_of_what_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "LOOK_S", 0)
    sharded = Unit(run_id="a", label="a", seed=0, shards=3)
    engine = Scripted(4)
    assert worked([sharded], engine, tmp_path) == 1
    assert engine.given == [("a", False)], "it was never seen trained"
    engine = Scripted(4, {"a": [Report("held")]})
    assert worked([sharded, unit("b")], engine, tmp_path, trained=["a", "b"]) == 2
    assert engine.given[:4] == [("a", False), ("b", False), ("a", True), ("a", True)]
    assert engine.peak <= 4


def test_a_unit_that_another_process_holds_comes_last_and_waits(tmp_path: Path) -> None:
    engine = Scripted(1, {"a": [Report("held")]})
    assert worked([unit("a"), unit("b"), unit("c")], engine, tmp_path) == 3
    assert engine.given == [("a", False), ("b", False), ("c", False), ("a", True)]


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (Report("error", "runs.a: bad"), "runs.a: bad"),
        (Report("died", "killed"), "runs.a, seed 0: process after process that worked on it ended, the last: killed"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_ends_the_command(tmp_path: Path, report: Report, said: str) -> None:
    with pytest.raises(UserError) as e:
        worked([unit("a"), unit("b")], Scripted(1, {"a": [report]}), tmp_path)
    assert str(e.value) == said


def test_a_hundred_thousand_units_take_no_more_for_each_than_a_thousand(tmp_path: Path) -> None:
    looked: list[str] = []

    def is_trained(name: str) -> bool:
        looked.append(name)
        return False

    units = [unit(str(i), *([str(i - 1)] if i % 2 else [])) for i in range(20_000)]
    plan = Course(units, is_trained)
    assert len(looked) == 10_000, "each that is needed is looked at once"
    taken = 0
    while some := plan.take(100):
        taken += len(some)
        for one in some:
            plan.trained(one.run_id)
    assert taken == 20_000


class Heard(Silent):
    """Remembers bars and notes."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def start(self, title: str, total: int, unit: str, done: int = 0) -> Heard:  # type: ignore[override]
        self.said.append(f"{title} {done}/{total} {unit}")
        return self

    def advance(self, amount: int, info: str = "") -> None:
        self.said.append(f"+{amount} {info}")

    def close(self) -> None:
        self.said.append("closed")

    def note(self, text: str) -> None:
        self.said.append(text)


def test_progress_goes_by_way_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_sparse.backends.board.EVERY_S", -1)
    there, heard = FolderProgress(), Heard()
    board = Board(tmp_path, heard)
    there.begin(tmp_path / "a-s0.json")
    bar = there.start("a train", 10, "steps", 2)
    bar.advance(3, "loss 1")
    there.note("as it\nwas")
    board.look(["a-s0", "none"])
    bar.advance(1)
    board.look(["a-s0"])
    bar.close()
    board.look(["a-s0"])
    there.note("again")
    board.last_look("a-s0")
    assert heard.said == ["a train 5/10 steps", "+0 loss 1", "+1 loss 1", "closed", "again"] or heard.said == [
        "as it\nwas", "a train 5/10 steps", "+0 loss 1", "+1 loss 1", "closed", "again",
    ]  # fmt: skip
    (tmp_path / "a-s0.json").write_text("{")
    board.look(["a-s0"])  # torn, as it may be seen while it is written: nothing is shown


def test_short_units_write_no_progress(tmp_path: Path) -> None:
    there = FolderProgress()
    there.begin(tmp_path / "a.json")
    there.start("a", 1, "steps").advance(1)
    assert list(tmp_path.iterdir()) == []


def test_names_of_back_ends() -> None:
    with pytest.raises(
        UserError, match=r"--backend: expected one of local, ray, slurm, got 'rai' \(did you mean 'ray'"
    ):
        backend_of("rai")
    with pytest.raises(UserError, match="--ray-address: expected with --backend ray"):
        backend_of("local", ray_address="auto")
    assert not backend_of("local", jobs=2).remote

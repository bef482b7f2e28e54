"""Leases: one holder, taken over when it gives no sign, and a former holder changes nothing any more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from robustbench_sparse.foundation import fences, leases
from robustbench_sparse.foundation.errors import Busy, UserError
from robustbench_sparse.foundation.files import write_json, write_text
from robustbench_sparse.foundation.leases import FREE, Lease, LeaseLost, held
from robustbench_sparse.foundation.locks import begin_leases, check_idle, row_locked, table_locked
from robustbench_sparse.foundation.processes import has_ended, this_machine

EXPIRY = 0.4
ROOT = Path(__file__).parents[3]


def nothing() -> None:
    """Nobody is told that somebody waits."""


def taken(folder: Path, name: str = "row", expiry: float = EXPIRY) -> Lease:
    lease = Lease(folder, name, expiry)
    assert lease.take()
    return lease


def test_one_holds_it_and_gives_it_back(tmp_path: Path) -> None:
    first, second = taken(tmp_path), Lease(tmp_path, "row", EXPIRY)
    assert not second.take()
    assert first.holder() == first.mine.name
    assert first.mine.name.startswith(f"{this_machine()}.{os.getpid()}.")
    (first.place / "left.tmp").write_text("half")
    first.release()
    assert first.holder() == FREE
    assert second.take()
    assert list(second.place.iterdir()) == []
    with pytest.raises(LeaseLost):
        first.release()
    assert not second.is_lost()


class Clock:
    """Time that passes only where somebody sleeps; meanwhile something happens."""

    def __init__(self, happens: Callable[[float], object]) -> None:
        self.now, self._happens = 0.0, happens

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._happens(self.now)


def test_an_expired_lease_is_taken_over_and_one_that_beats_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = taken(tmp_path, expiry=60), Lease(tmp_path, "row", 60)
    clock = Clock(lambda now: first.beat() if now < 300 else None)
    monkeypatch.setattr(leases, "time", clock)
    assert not second.gives_no_sign()
    second.wait()
    assert 355 < clock.now < 365, "sixty seconds after the last beat"
    assert first.is_lost()
    first.beat()  # does nothing any more
    assert second.holder() == second.mine.name
    assert not second.is_lost()
    monkeypatch.setattr(leases, "time", Clock(lambda now: None))
    assert second.gives_no_sign()


def test_whoever_waits_takes_what_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = taken(tmp_path, expiry=60), Lease(tmp_path, "row", 60)
    clock = Clock(lambda now: first.release() if now == 6 else None)
    monkeypatch.setattr(leases, "time", clock)
    second.wait()
    assert clock.now == 6


def test_a_former_holder_changes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    (run / "parts").mkdir(parents=True)
    (run / "kept.json").write_text("1")
    first = taken(tmp_path)
    with fences.fenced(run, first.place):
        write_text(run / "before.json", "mine")

        # A file that is half written when the lease is taken over.
        def write(file: object) -> None:
            Lease(tmp_path, "row", 0.05).wait()

        with pytest.raises(LeaseLost, match="taken over by another process"):
            fences_write(run / "half.json", write)
        for change in (
            lambda: write_json(run / "after.json", 1),
            lambda: fences.remove(run / "kept.json"),
            lambda: fences.remove_tree(run / "parts"),
        ):
            with pytest.raises(LeaseLost):
                change()
    assert sorted(p.name for p in run.iterdir()) == ["before.json", "kept.json", "parts"]


def fences_write(path: Path, write: Callable[[object], None]) -> None:
    from robustbench_sparse.foundation.files import write_atomically

    write_atomically(path, write)


def test_a_fence_stands_around_one_folder(tmp_path: Path) -> None:
    place, run = tmp_path / "place", tmp_path / "runs" / "a"
    place.mkdir()
    with fences.fenced(run, place):
        assert fences.place_of(run / "x" / "y") == place
        assert fences.place_of(tmp_path / "runs" / "ab") is None
        assert json.loads(fences.exported()[fences.VARIABLE]) == {str(run): str(place)}
        inner = tmp_path / "inner"
        with fences.fenced(run, inner):
            assert fences.place_of(run) == inner
        write_text(run / "deep" / "a.txt", "1")
        fences.remove(run / "none")
        fences.remove_tree(run / "none")
        fences.remove(run / "deep" / "a.txt")
        fences.remove_tree(run / "deep")
    assert list(run.iterdir()) == []
    assert fences.place_of(run) is None
    assert fences.exported() == {}


def test_what_is_raised_by_a_former_holder_is_one_line(tmp_path: Path) -> None:
    def work() -> None:
        with held(tmp_path, "row", changes=tmp_path / "a", wait=False, waits=nothing, expiry=EXPIRY) as mine:
            assert mine
            Lease(tmp_path, "row", 0.01).wait()  # no beat in so short a time
            raise KeyError("something that another process has removed")

    with pytest.raises(LeaseLost) as e:
        work()
    assert isinstance(e.value, UserError)
    assert e.value.__suppress_context__
    with (
        pytest.raises(LeaseLost),
        held(tmp_path, "other", changes=tmp_path / "a", wait=False, waits=nothing, expiry=EXPIRY),
    ):
        Lease(tmp_path, "other", 0.01).wait()


def test_an_error_of_a_holder_is_its_own_and_frees_the_lease(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyError, match="mine"),
        held(tmp_path, "row", changes=tmp_path, wait=False, waits=nothing, expiry=EXPIRY),
    ):
        raise KeyError("mine")
    assert Lease(tmp_path, "row", EXPIRY).take()


def test_who_has_ended(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert has_ended(f"{this_machine()}.{done.pid}.0")
    assert not has_ended(f"{this_machine()}.{os.getpid()}.0")
    assert not has_ended(f"elsewhere.{done.pid}.0")
    assert not has_ended(FREE)
    dead = Lease(tmp_path, "row", 60)
    assert dead.take()
    dead.mine.rename(dead.mine.with_name(f"{this_machine()}.{done.pid}.0"))
    assert Lease(tmp_path, "row", 60).take(), "at once, without waiting until it expires"
    zombie = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert zombie.stdout is not None
    zombie.stdout.read()
    time.sleep(0.2)
    assert has_ended(f"{this_machine()}.{zombie.pid}.0")
    zombie.wait()


def test_whoever_was_stopped_while_it_took_a_lease_gets_none(tmp_path: Path) -> None:
    taken(tmp_path).release()
    slow, quick = Lease(tmp_path, "row", 0.05), Lease(tmp_path, "row", 0.05)
    assert slow._claimed(FREE)
    quick.wait()
    assert not slow._begun()
    assert slow.is_lost()
    assert not quick.is_lost()
    assert quick.place.is_dir()


# Processes ----------------------------------------------------------------------------------------------

RACER = """
import sys
from pathlib import Path
from robustbench_sparse.foundation.leases import held
folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
for _ in range(rounds):
    with held(folder, "row", changes=folder, wait=True, waits=lambda: None, expiry=30) as mine:
        # Reading and writing in two steps: what two holders at a time would tear.
        count = folder / "count"
        value = int(count.read_text()) if count.exists() else 0
        count.write_text(str(value + 1))
"""


def test_no_two_processes_hold_it_at_once(tmp_path: Path) -> None:
    racers = [subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path), "5"], cwd=ROOT) for _ in range(4)]
    assert [racer.wait() for racer in racers] == [0] * 4
    assert (tmp_path / "count").read_text() == "20"


PUBLISHER = """
import sys, time
from pathlib import Path
from robustbench_sparse.foundation import fences
from robustbench_sparse.foundation.leases import held
folder, name, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
with held(folder, "row", changes=folder / "run", wait=True, waits=lambda: None, expiry=0.5):
    (folder / f"{name}.began").write_text("")
    for step in range(400):
        place = fences.place_of(folder / "run")
        aside = place / "x.tmp"
        aside.write_text(name * 1000)
        fences.move(aside, folder / "run" / "result", place)
        time.sleep(pause)
"""


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Ends, stopped or not, whatever a test starts."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_a_process_that_was_stopped_publishes_nothing_after_the_takeover(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    (tmp_path / "run").mkdir()

    def begin(name: str, pause: float) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", PUBLISHER, str(tmp_path), name, str(pause)]
        processes.append(subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True))
        until = time.monotonic() + 20
        while not (tmp_path / f"{name}.began").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        return processes[-1]

    stopped = []
    for name in "abc":  # each is stopped somewhere in its writing, and the next one takes over
        stopped.append(begin(name, 0.001))
        time.sleep(0.05)
        stopped[-1].send_signal(signal.SIGSTOP)
    last = begin("d", 0.003)
    for process in stopped:
        process.send_signal(signal.SIGCONT)
    seen = set()
    while last.poll() is None:
        seen.add((tmp_path / "run" / "result").read_text())
        time.sleep(0.002)
    assert last.returncode == 0
    assert seen == {"d" * 1000} or seen == {"c" * 1000, "d" * 1000}
    for process in stopped:
        said = process.communicate()[1]
        assert process.returncode == 1
        assert said.splitlines()[-1].startswith("robustbench_sparse.foundation.fences.LeaseLost: ")
    assert (tmp_path / "run" / "result").read_text() == "d" * 1000


# Locks and leases ---------------------------------------------------------------------------------------


def test_leases_take_the_place_of_locks_in_a_folder(tmp_path: Path) -> None:
    with row_locked(tmp_path, "row", wait=False, waits=nothing) as mine:
        assert mine
        assert not (tmp_path / leases.LEASES).exists()
        with pytest.raises(Busy, match="working on row"):
            begin_leases(tmp_path, EXPIRY)
    begin_leases(tmp_path)
    assert leases.expiry_of(tmp_path) == EXPIRY, "whoever was first says how long"
    with row_locked(tmp_path, "row", wait=False, waits=nothing) as mine:
        assert mine
        with row_locked(tmp_path, "row", wait=False, waits=nothing) as other:
            assert not other
        with pytest.raises(Busy, match="working on row"):
            check_idle(tmp_path)
    check_idle(tmp_path)
    with table_locked(tmp_path):
        write_text(tmp_path / "table.csv", "1")
        check_idle(tmp_path)
    assert (tmp_path / "table.csv").read_text() == "1"


def test_a_lock_taken_while_leases_begin_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[float | None] = []

    def expiry_of(folder: Path) -> float | None:
        if len(looked) == 1:  # another host begins between the first look and the lock
            leases.start(folder, EXPIRY)
        looked.append(real(folder))
        return looked[-1]

    real = leases.expiry_of
    monkeypatch.setattr(leases, "expiry_of", expiry_of)
    with row_locked(tmp_path, "row", wait=False, waits=nothing) as mine:
        assert mine
        assert Lease(tmp_path, "row", EXPIRY).holder() not in (None, FREE)


def test_a_damaged_note_on_leases_is_one_line(tmp_path: Path) -> None:
    leases.start(tmp_path, EXPIRY)
    (tmp_path / leases.LEASES / leases.ABOUT).write_text("{")
    with pytest.raises(UserError, match=r"about\.json: cannot be read"):
        leases.expiry_of(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    leases.start(tmp_path, EXPIRY)
    (tmp_path / leases.LEASES).chmod(0o500)
    with (
        pytest.raises(UserError, match="cannot be written"),
        held(tmp_path, "row", changes=tmp_path, wait=False, waits=nothing, expiry=EXPIRY),
    ):
        pass

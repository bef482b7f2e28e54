"""Shards of an outcome: whoever makes them, and whatever ends him, its bytes are those of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.foundation.files import read_json
from robustbench_sparse.foundation.processes import environment
from robustbench_sparse.foundation.progress import Silent
from robustbench_sparse.runs import names
from robustbench_sparse.runs.outcome_store import Batch, OutcomeStore, Wanted
from robustbench_sparse.runs.shards import Shards

N, SIZE, SHARDS = 22, 4, 3  # six batches, two a shard
WANTED = Wanted(label="pgd", key={"of": 1}, facts={"bounded": True})
Made = Callable[[Tensor, Tensor, Tensor], pd.DataFrame]


def batches() -> Iterator[Batch]:
    for at in torch.arange(N).split(SIZE):
        yield torch.zeros(len(at), 1, 1, 1), at % 2, at


def rows(index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
    return pd.DataFrame({"index": index.tolist(), "value": (index / 3).tolist(), "status": "ok"})


def store(folder: Path, shards: int = SHARDS) -> OutcomeStore:
    return OutcomeStore(folder / names.RUNS / "r-s0-12345678", SIZE, Silent(), shards=shards)


def collected(folder: Path, made: Made = rows, shards: int = SHARDS) -> bytes:
    mine = store(folder, shards)
    mine.collect(WANTED, batches, N, made)
    return (mine.run / names.verdicts("pgd")).read_bytes()


def helped(folder: Path, made: Made = rows) -> bool:
    return store(folder).help(WANTED, batches, N, made)


class Calls:
    """Makes rows, and remembers of which batches; calls something before the first."""

    def __init__(self, first: Callable[[], object] = lambda: None) -> None:
        self.of: list[int] = []
        self._first = first

    def __call__(self, index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
        if not self.of:
            self._first()
        self.of.append(int(index[0]))
        return rows(index, x, y)


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The outcome as one process makes it."""
    return collected(tmp_path / "whole", shards=1)


def test_batches_are_divided_in_order() -> None:
    paths = [Path(str(n)) for n in range(7)]
    shards = Shards(run=Path("runs/r"), count=3).of_batches(paths)
    assert [len(s) for s in shards] == [3, 2, 2]
    assert [path for shard in shards for path in shard] == paths
    assert Shards(run=Path("runs/r"), count=9).of_batches(paths[:2]) == [paths[:1], paths[1:2]]
    assert Shards(run=Path("runs/r"), count=9).of_batches([]) == []


def test_one_shard_and_a_folder_of_its_own_are_not_divided(tmp_path: Path) -> None:
    assert Shards.of(tmp_path / names.RUNS / "r", 1) is None
    assert Shards.of(tmp_path / "r", 4) is None


def test_shards_of_another_process_are_joined(tmp_path: Path, whole: bytes) -> None:
    second = Calls()
    first = Calls(lambda: helped(tmp_path, second))
    assert collected(tmp_path, first) == whole
    assert first.of == [0, 4]  # the shard that it held, and no other
    assert second.of == [8, 12, 16, 20]
    assert not list((tmp_path / names.RUNS).rglob("*.parts"))


def test_an_interrupted_helper_leaves_the_rest(tmp_path: Path, whole: bytes) -> None:
    class Ends(Calls):
        def __call__(self, index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
            if len(self.of) == 1:
                raise KeyboardInterrupt
            return super().__call__(index, x, y)

    second = Ends()

    def help_and_end() -> None:
        with pytest.raises(KeyboardInterrupt):
            helped(tmp_path, second)

    first = Calls(help_and_end)
    assert collected(tmp_path, first) == whole
    assert second.of == [8]
    assert first.of == [0, 4, 12, 16, 20]


def test_nobody_helps_without_an_outcome_at_work(tmp_path: Path, whole: bytes) -> None:
    assert not helped(tmp_path)
    assert not (tmp_path / names.RUNS).exists()
    collected(tmp_path)
    assert not helped(tmp_path)
    other = Wanted(label="pgd", key={"of": 2}, facts={})
    first = Calls(lambda: found.append(store(tmp_path).help(WANTED, batches, N, rows)))
    found: list[bool] = []
    store(tmp_path).collect(other, batches, N, first)
    assert found == [False]  # of another key


def test_what_crashes_is_said_as_by_one_process(tmp_path: Path) -> None:
    def crashes(index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
        if int(index[0]) == 12:
            raise ZeroDivisionError("twelve")
        return rows(index, x, y)

    alone = collected(tmp_path / "alone", crashes, shards=1)

    class First(Calls):
        def __call__(self, index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
            super().__call__(index, x, y)
            return crashes(index, x, y)

    first = First(lambda: helped(tmp_path, crashes))
    assert collected(tmp_path, first) == alone
    accounts = [read_json(store(f).run / names.account("pgd")) for f in (tmp_path, tmp_path / "alone")]
    assert accounts[0]["status"] == "crashed"
    assert [a["reason"] for a in accounts] == ["ZeroDivisionError: twelve"] * 2


def test_a_user_s_error_ends_both(tmp_path: Path) -> None:
    def refuses(index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        collected(tmp_path, refuses)


def stuck(folder: Path) -> None:
    """Help, and hang in the second batch; what the test below starts, and kills."""

    def made(index: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
        if int(index[0]) % (2 * SIZE):
            time.sleep(600)
        return rows(index, x, y)

    helped(folder, made)


def test_a_killed_helper_s_shard_is_taken_up(tmp_path: Path, whole: bytes) -> None:
    code = f"from pathlib import Path; from {__name__} import stuck; stuck(Path({str(tmp_path)!r}))"

    def help_and_die() -> None:
        child = subprocess.Popen([sys.executable, "-c", code], env=environment())
        made, until = store(tmp_path).run / names.parts("pgd") / "000008.csv", time.monotonic() + 60
        while not made.exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert made.exists()
        os.kill(child.pid, signal.SIGKILL)
        child.wait()

    first = Calls(help_and_die)
    assert collected(tmp_path, first) == whole
    assert first.of == [0, 4, 12, 16, 20]

"""A long attack made by several processes: the row's files are those of one, byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_sparse.config.load import resolve
from robustbench_sparse.data.digits import Digits
from robustbench_sparse.foundation.locks import row_locked
from robustbench_sparse.foundation.progress import Silent, Task
from robustbench_sparse.pool import _Pool
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.targets import images_of
from robustbench_sparse.verdict import help_judging
from robustbench_sparse.workspace import JUDGING, Workspace
from tests.helpers.small import small

RANDOM = [{"name": "pgd_at", "steps": 1}, {"name": "enresnet", "members": 1}]


def workspace(out: Path, shards: int, show: Silent | None = None) -> Workspace:
    raw: dict[str, Any] = small(
        runs={"random": {"defenses": RANDOM}, "plain": {}},
        attacks={"pgd": {"name": "pgd", "steps": 3}, "square": {"name": "square", "queries": 20}},
        evaluation={"limit": 70, "batch_size": 8, "draws": 2, "shards": shards},
        train_limit=64,
        threads=1,
    )
    raw["train"] = {"epochs": 1, "batch_size": 32}
    plan = resolve(raw)
    dataset = Digits().load()
    data = plan.prepare(dataset, torch.device("cpu"))
    return Workspace(out / "small", plan, plan.runs, dataset, data, show or Silent())


class Helps(Silent):
    """Once one batch of an attack is made, another process makes what shards there are."""

    def __init__(self) -> None:
        self.helped: list[str] = []
        self.helper: Workspace

    def start(self, title: str, total: int, unit: str, done: int = 0) -> Task:
        return _Bar(self, title)

    def help(self, title: str) -> None:
        label, _, attack = title.rpartition(" ")
        if title in self.helped or attack not in ("pgd", "square"):
            return
        self.helped.append(title)
        work, (run,) = self.helper, [r for r in self.helper.chosen if r.label == label]
        place = work.place(run, 0)
        training = place.complete()
        assert training is not None
        model = place.network(**images_of(work.dataset))
        identity = work._identity(place, training)
        what = model, place, work.plan, work.data, work.show
        assert help_judging(*what, identity=identity, title="")
        assert not help_judging(*what, identity=identity, title="")  # none is left
        parts = place.path / names.parts(attack)
        assert (
            len(list(parts.glob("*.csv"))) == 7
        )  # of nine batches: the first is made, two more are that shard's


class _Bar:
    def __init__(self, show: Helps, title: str) -> None:
        self._show, self._title = show, title

    def advance(self, amount: int, info: str = "") -> None:
        self._show.help(self._title)

    def close(self) -> None:
        """Nothing."""


def outcomes(work: Workspace) -> dict[str, bytes]:
    found = sorted((work.folder / names.RUNS).glob(f"*/{names.OUTCOMES}/*.csv"))
    return {f"{path.parts[-3]}/{path.name}": path.read_bytes() for path in found}


def test_shards_are_joined_to_the_same_bytes(tmp_path: Path) -> None:
    alone = workspace(tmp_path / "alone", shards=1)
    show = Helps()
    shared = workspace(tmp_path / "shared", shards=3, show=show)
    show.helper = workspace(tmp_path / "shared", shards=3)
    for work in (alone, shared):
        for run, seed in work.rows():
            assert work.run(run, seed)
    assert show.helped == [f"{run} {attack}" for run in ("random", "plain") for attack in ("pgd", "square")]
    assert len(outcomes(alone)) == 6
    assert outcomes(shared) == outcomes(alone)
    places = [w.place(w.chosen[0], 0).run_id for w in (alone, shared)]
    assert places[0] == places[1]
    assert not list(shared.folder.rglob("*.parts"))


def test_who_has_no_row_helps_until_it_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = workspace(tmp_path, shards=2)
    run = work.chosen[1]
    assert work.run(run, 0)
    place, looks = work.place(run, 0), list[RunFolder]()
    held = row_locked(work.folder, f"{place.run_id}.{JUDGING}", wait=False, waits=lambda: None)

    def helps(model: object, place: RunFolder, *_: object, **__: object) -> bool:
        looks.append(place)
        if len(looks) == 3:
            held.__exit__(None, None, None)
        return True

    monkeypatch.setattr("robustbench_sparse.workspace.help_judging", helps)
    assert held.__enter__()
    assert not work.run(run, 0, wait=False)  # first come rows that nobody is at
    assert looks == []
    assert work.run(run, 0)
    assert [p.run_id for p in looks] == [place.run_id] * 3


def test_processes_without_a_row_are_given_one_to_help_with(tmp_path: Path) -> None:
    rows = workspace(tmp_path, shards=2).rows()
    pool = _Pool({}, [], Silent(), shards=2)
    assert pool._to_help() is None
    pool.busy = {0: rows[0], 1: rows[1], 2: rows[0]}
    assert pool._to_help() == rows[1]
    pool.busy[3] = rows[1]
    assert pool._to_help() is None
    pool.busy.pop(3)
    pool._done.add((rows[1][0].label, rows[1][1]))  # who was at it is about to say so
    assert pool._to_help() is None

"""Networks kept on the way, in a run's folder: sealed, read back, taken over, and missed where they are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_sparse.config.plan import Plan
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.runs import names
from robustbench_sparse.runs.folder import RunFolder
from robustbench_sparse.runs.record import locate
from tests.helpers.fabricated_runs import fabricated, images, plan_of

CPU = torch.device("cpu")
STATE = {"fc.weight": torch.ones(2, 2)}
EARLIER = {"fc.weight": torch.zeros(2, 2)}


def asking(*snapshots: int, **train: Any) -> Plan:
    return plan_of(runs={"r": {"train": {"snapshots": list(snapshots), **train}}})


def place(folder: Path, plan: Plan) -> RunFolder:
    return locate(folder, plan, plan.runs[0], 0, images())


def test_they_are_sealed_and_read_back(tmp_path: Path) -> None:
    run = fabricated(tmp_path, STATE, plan=asking(0, 3), snapshots={(0, 3): STATE, (0, 0): EARLIER})
    assert run.snapshots() == [(0, 0), (0, 3)]
    assert torch.equal(run.snapshot(0, 0)["fc.weight"], EARLIER["fc.weight"])
    assert run.seals.has(names.snapshot(0, 0), names.snapshot(0, 3))
    run.seals.check()
    assert not place(tmp_path, asking(0, 3)).lacks_snapshots()
    (run.path / names.snapshot(0, 0)).unlink()
    with pytest.raises(UserError, match=r"0-0\.safetensors: missing, though files\.json names it"):
        run.snapshot(0, 0)
    with pytest.raises(UserError, match=r"0-1\.safetensors: not in files\.json"):
        run.snapshot(0, 1)


def test_a_file_that_training_did_not_name_is_none(tmp_path: Path) -> None:
    run = fabricated(tmp_path, STATE, snapshots={(0, 0): STATE})
    (run.path / names.snapshot(0, 1)).write_bytes((run.path / names.snapshot(0, 0)).read_bytes())
    assert run.snapshots() == [(0, 0)]


def test_a_run_trained_without_them_lacks_them(tmp_path: Path) -> None:
    run = fabricated(tmp_path, STATE, plan=asking())
    later = place(tmp_path, asking(0))
    assert later.path == run.path
    assert later.lacks_snapshots()
    assert not place(tmp_path, asking()).lacks_snapshots()


def test_only_a_training_that_kept_them_is_taken_over(tmp_path: Path) -> None:
    fabricated(tmp_path / "without", STATE, plan=asking())
    home = place(tmp_path / "mine", asking(2))
    assert not home.adopt([tmp_path / "without"], CPU)
    kept = fabricated(tmp_path / "with", STATE, plan=asking(2), snapshots={(0, 2): EARLIER})
    assert home.adopt([tmp_path / "without", tmp_path / "with"], CPU)
    assert home.snapshots() == [(0, 2)]
    assert home.snapshot(0, 2).keys() == kept.snapshot(0, 2).keys()
    home.seals.check()


def test_a_row_that_keeps_the_last_epoch_takes_them_over(tmp_path: Path) -> None:
    fabricated(tmp_path, STATE, plan=asking(1, selection="best"), snapshots={(0, 1): EARLIER})
    last = place(tmp_path, asking(1, selection="last"))
    assert last.adopt_last(CPU)
    assert last.snapshots() == [(0, 1)]
    assert not place(tmp_path, asking(1, 2, selection="last")).adopt_last(CPU)


def test_names_say_stage_and_epochs() -> None:
    assert names.snapshot_of(names.snapshot(1, 20)) == (1, 20)
    assert names.snapshot_of("snapshots/x-1.safetensors") is None
    assert names.snapshot_of(names.WEIGHTS) is None

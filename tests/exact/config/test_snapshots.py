"""The setting ``snapshots``: checked with its key path, and no part of what names a run."""

from __future__ import annotations

from typing import Any

import pytest

from robustbench_sparse.config.load import resolve
from robustbench_sparse.foundation.errors import UserError
from robustbench_sparse.runs.manifest import table_of
from robustbench_sparse.runs.record import locate
from tests.helpers.fabricated_runs import images
from tests.helpers.small import small


def with_snapshots(value: Any, **stage: Any) -> dict[str, Any]:
    return small(runs={"r": {"train": {"epochs": 4, "snapshots": value, **stage}}})


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([0, -1], r"snapshots: expected different whole numbers >= 0, got \[0, -1\]"),
        ([2, 2], r"snapshots: expected different whole numbers >= 0, got \[2, 2\]"),
        ([0, 5], r"snapshots: expected at most epochs = 4, got 5"),
        ([0, 1.5], r"snapshots\.1: expected a whole number, got 1\.5"),
        (3, r"snapshots: expected a list, got 3"),
    ],
)
def test_bad_values_are_said_with_their_key_path(value: Any, problem: str) -> None:
    with pytest.raises(UserError, match=rf"^config: runs\.r\.train\.{problem}$"):
        resolve(with_snapshots(value))


def test_stages_have_their_own() -> None:
    stages = [{"snapshots": [0, 1]}, {"epochs": 9, "snapshots": [9]}]
    plan = resolve(small(runs={"r": {"train": {"stages": stages}}}))
    assert plan.runs[0].snapshots() == [(0, 0), (0, 1), (1, 9)]
    with pytest.raises(UserError, match=r"train\.stages\.1\.snapshots: expected at most epochs = 4, got 9"):
        resolve(small(runs={"r": {"train": {"snapshots": [9], "stages": [*stages[1:], {}]}}}))


def test_they_change_neither_the_record_nor_the_table_nor_the_id(tmp_path: Any) -> None:
    plain, kept = resolve(with_snapshots([])), resolve(with_snapshots([0, 4]))
    assert plain.runs[0].record() == kept.runs[0].record()
    assert "snapshots" not in plain.runs[0].stages[0].record()
    assert table_of(plain) == table_of(kept)
    places = [locate(tmp_path, plan, plan.runs[0], 0, images()) for plan in (plain, kept)]
    assert places[0].run_id == places[1].run_id
    assert "snapshots" not in places[0].facts
    assert places[1].facts["snapshots"] == ["snapshots/0-0.safetensors", "snapshots/0-4.safetensors"]

"""Short runs of the fuzzers; ``make fuzz`` has the long ones."""

from __future__ import annotations

import pytest

from tests.fuzz import config_mutants, data_paths, result_mutants, weights_mutants

pytestmark = pytest.mark.slow


def test_damaged_result_folders_are_answers_or_lines() -> None:
    assert result_mutants.main(count=30, seed=2) == []


def test_changed_configs_make_a_plan_or_are_refused() -> None:
    assert config_mutants.main(count=200, seed=1)[0] == []


def test_damaged_weights_are_taken_or_refused() -> None:
    assert weights_mutants.main(count=300, seed=1) == []


def test_odd_places_of_data_are_read_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBS_CACHE", "")  # set by the fuzzer, and put back
    assert data_paths.main(without=["bomb.zip", "many"]) == []

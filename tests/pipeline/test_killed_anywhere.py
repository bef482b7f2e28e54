"""Kills of the real command at points chosen by what it was writing; ``killed.py`` has the whole matrix."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline import killed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("unbroken")
    assert killed.run(folder) == 0
    return killed.state(folder)


@pytest.mark.parametrize(
    "kill",
    [
        ("before", "*/checkpoint.pt", 2),
        # And before the checkpoint that knows of it.
        pytest.param(("after", "*/snapshots/0-2.safetensors", 1), marks=pytest.mark.long),
        ("after", "*/outcomes/pgd.csv", 1),  # and before its .json
        pytest.param(("before", "*/outcomes/pgd.json", 2), marks=pytest.mark.long),
        # Training is stored, and its checkpoint is still there.
        pytest.param(("after", "*/files.json", 3), marks=pytest.mark.long),
        pytest.param(("after", "*/files.json", 5), marks=pytest.mark.long),  # an outcome, and its parts
    ],
    ids=lambda kill: " ".join(map(str, kill)),
)
def test_the_same_command_ends_with_the_same_files(
    kill: tuple[str, str, int], unbroken: dict[str, Any], tmp_path: Path
) -> None:
    assert killed.run(tmp_path, kill) == -signal.SIGKILL
    assert killed.differences(unbroken, tmp_path), "or nothing was interrupted"
    assert killed.run(tmp_path) == 0
    assert killed.differences(unbroken, tmp_path) == []

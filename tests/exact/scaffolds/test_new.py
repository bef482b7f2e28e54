"""``new`` writes files that work: their own tests pass, and a second writing needs to be asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from robustbench_sparse.scaffolds import SKELETONS
from tests.helpers.commands import call, one_line


def test_the_skeletons_pass_their_own_tests(tmp_path: Path) -> None:
    """In a process of its own, as a user would: one for all three, as starting takes the longest."""
    for kind in SKELETONS:
        result = call("new", kind, f"my_{kind}", "--into", tmp_path)
        assert result.exit_code == 0, result.output
        assert yaml.safe_load(result.stdout.split("\n\n")[2])
    tests = sorted(tmp_path.glob("test_my_*.py"))
    assert [p.name for p in tests] == [f"test_my_{kind}.py" for kind in sorted(SKELETONS)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *map(str, tests)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("atack", "x"),
            "KIND: expected one of attack, defense, check, got 'atack' (did you mean 'attack'?)",
        ),
        (("attack", "My-attack"), "NAME: expected small letters, digits and _"),
        (("attack", "class"), "a module class is there already"),
        (("attack", "random"), "a module random is there already"),
        (("attack", "attacks"), "a module attacks is there already"),
    ],
)
def test_what_no_plugin_can_be_called(tmp_path: Path, arguments: tuple[str, str], expected: str) -> None:
    assert expected in one_line(call("new", *arguments, "--into", tmp_path))
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("mine")
    assert "is there already" in one_line(call("new", "attack", "mine", "--into", tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["test_mine.py"]
    assert call("new", "attack", "mine", "--into", tmp_path, "--force").exit_code == 0

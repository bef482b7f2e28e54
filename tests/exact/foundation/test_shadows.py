"""A user's own attacks.py beside him is named in one line; the packages under this package's name are the same."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import attacks
import defenses
from robustbench_sparse.foundation import shadows

ROOT = Path(__file__).parents[3]
SCRIPT = """import sys
sys.argv[0] = sys.argv[0].removesuffix(".py")
from robustbench_sparse.cli.main import main
sys.exit(main())
"""


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a folder, whose files come before those of the project."""
    paths = os.pathsep.join(["", str(ROOT)])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "COVERAGE_PROCESS_START": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )


def shadow(folder: Path, name: str) -> Path:
    """A user's own file or folder."""
    path = folder / name
    if name.endswith("/"):
        path.mkdir()
        (path / "__init__.py").touch()
        (path / "base.py").touch()
        return path / "__init__.py"
    path.write_text("MINE = 1\n")
    return path


def test_the_commands_name_the_file_in_one_line(tmp_path: Path) -> None:
    path = shadow(tmp_path, "attacks.py")
    command = tmp_path / "robustbench-sparse"
    command.write_text(SCRIPT)
    for arguments in (["-m", "robustbench_sparse", "--help"], [str(command), "list", "attacks"]):
        done = start(tmp_path, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {path}: in the way of the package 'attacks'")
        assert "rename it, start from another folder or use the installed command" in line


def test_an_import_says_the_same(tmp_path: Path) -> None:
    path = shadow(tmp_path, "defenses/")
    program = "try:\n import robustbench_sparse\nexcept ImportError as e:\n print(e.name, e.path, e, sep='|')"
    done = start(tmp_path, "-c", program)
    name, where, line = done.stdout.strip().split("|")
    assert (name, where) == ("defenses", str(path))
    assert line.startswith(f"{path}: in the way of the package 'defenses'")
    # Another program that takes this package is not ended by it.
    (tmp_path / "package").mkdir()
    for file in ("program.py", "package/__init__.py"):
        (tmp_path / file).write_text(program)
    (tmp_path / "package" / "__main__.py").touch()
    for arguments in (["-m", "package", "-m", "robustbench_sparse"], ["program.py"]):
        assert start(tmp_path, *arguments).stdout == done.stdout


def test_files_of_other_names_are_in_nobodys_way(tmp_path: Path) -> None:
    shadow(tmp_path, "my_attacks.py")
    done = start(tmp_path, "-m", "robustbench_sparse", "--version")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["attacks.py", "attacks/"])
def test_what_is_ours_lies_beside_this_package(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = importlib.util.find_spec("attacks")
    assert ours is not None
    assert shadows._is_ours(ours)
    path = shadow(tmp_path, name)
    folders = [str(path.parent)] if name.endswith("/") else None
    spec = importlib.util.spec_from_file_location("attacks", path, submodule_search_locations=folders)
    assert spec is not None
    assert not shadows._is_ours(spec)
    bare = importlib.machinery.ModuleSpec("attacks", None, is_package=True)  # a folder without __init__.py
    bare.submodule_search_locations = [str(tmp_path)]
    assert not shadows._is_ours(bare)
    assert shadows._place(bare) == str(tmp_path)
    # An installation that keeps its packages apart: there the content decides.
    monkeypatch.setattr(
        shadows, "__file__", str(tmp_path / "elsewhere" / "robustbench_sparse" / "foundation" / "shadows.py")
    )
    assert shadows._is_ours(ours)
    assert shadows._is_ours(spec) == name.endswith("/")


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadows, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="its package 'attacks' is not there"):
        shadows.refuse_shadows()


@pytest.mark.parametrize("package", [attacks, defenses], ids=lambda p: p.__name__)
def test_the_aliases_are_the_same_objects(package: object) -> None:
    name = package.__name__  # type: ignore[attr-defined]
    alias = importlib.import_module(f"robustbench_sparse.{name}")
    assert alias.__all__ == package.__all__  # type: ignore[attr-defined]
    for each in alias.__all__:
        assert getattr(alias, each) is getattr(package, each)
    for found in pkgutil.walk_packages(package.__path__):  # type: ignore[attr-defined]
        module = importlib.import_module(f"robustbench_sparse.{name}.{found.name}")
        assert module is sys.modules[f"{name}.{found.name}"]
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = alias.nothing_of_the_kind


def test_a_module_can_be_the_first_thing_that_is_imported() -> None:
    program = (
        "import robustbench_sparse.attacks.base as b\nfrom robustbench_sparse.defenses.robust.clip import CLIP\n"
        "import attacks.base, defenses\nprint(b is attacks.base, CLIP is defenses.CLIP)"
    )
    assert start(ROOT, "-c", program).stdout.split() == ["True", "True"]

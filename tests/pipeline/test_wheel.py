"""The wheel, installed by itself: benchmarks and measured tables come along, wherever it is used."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from robustbench_sparse import __version__

ROOT = Path(__file__).parents[2]
SOURCES = ("attacks", "defenses", "robustbench_sparse", "configs", "results/reference")
FILES = ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md",
         "pytest_robustbench_sparse.py")  # fmt: skip
ASIDE = {"torchattacks", "bench", "test", "docs", "dev", "studies"}  # studies: what two others have already


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the sources as they are, built away from the checkout."""
    home = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copyfile(ROOT / name, home / name)
    words = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(home / "dist"), str(home)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = (home / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, as an installation has it: a pure one is its files."""
    home = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home)
    return home


def elsewhere(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python with the installed wheel before all else, far from the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


def test_it_carries_what_a_checkout_has(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {info.filename: info.file_size for info in archive.infolist()}
        points = configparser.ConfigParser(delimiters=("=",))
        (name,) = (n for n in found if n.endswith("/entry_points.txt"))
        points.read_string(archive.read(name).decode())
    for source, target in (("configs", "configs"), ("results/reference", "reference")):
        kept = [p for p in (ROOT / source).rglob("*") if p.suffix in (".yaml", ".csv", ".md")]
        assert kept
        for path in kept:
            inside = f"robustbench_sparse/shipped/{target}/{path.relative_to(ROOT / source).as_posix()}"
            assert found.get(inside) == path.stat().st_size, inside
    assert "pytest_robustbench_sparse.py" in found
    assert not [n for n in found if n.startswith(("tests", "benchmarks", "results", "configs"))]
    assert dict(points["console_scripts"]) == {"robustbench-sparse": "robustbench_sparse.cli.main:main"}
    assert dict(points["pytest11"]) == {"pytest_robustbench_sparse": "pytest_robustbench_sparse"}
    assert dict(points["pipx.run"]) == {"robustbench_sparse": "robustbench_sparse.cli.main:main"}
    assert wheel.stat().st_size < 25e6


def test_benchmarks_and_references_are_found_by_name_elsewhere(installed: Path, tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
import robustbench_sparse
from robustbench_sparse.cli.main import app
from robustbench_sparse.config.load import load
from robustbench_sparse.foundation import shipped

assert Path(robustbench_sparse.__file__).is_relative_to(sys.argv[1]), robustbench_sparse.__file__
for name in ("quickstart", "quickstart.yaml", "configs/quickstart.yaml"):
    path = shipped.config(Path(name))
    assert path.is_relative_to(sys.argv[1]), path
assert load(shipped.config(Path("cifar10_dinh_4_5"))).published, "published tables are read beside it"
assert shipped.config(Path("nothing")) == Path("nothing")
app(["list", "configs"], standalone_mode=False)
app(["check", str(shipped.reference(Path("quickstart"), "leaderboard.csv")), "--against", "quickstart"])
"""
    done = elsewhere(installed, tmp_path, "-c", program, str(installed))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("everything that quickstart states still holds")
    for name in ("quickstart", "mnist_clip", "cifar10_dinh_4_5"):
        assert f"{name}: {name}" in done.stdout.splitlines()


def test_a_file_of_ones_own_goes_before_what_comes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustbench_sparse.foundation import shipped

    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text("name: mine\n")
    assert shipped.config(Path("quickstart.yaml")) == Path("quickstart.yaml")
    assert shipped.config(Path("quickstart")) == ROOT / "configs/quickstart.yaml"
    assert shipped.config(Path("elsewhere/quickstart.yaml")) == Path("elsewhere/quickstart.yaml")


def extras() -> dict[str, set[str]]:
    """Extra -> the packages that it names."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return {name: set(text.split("\n")) - {""} for name, text in config["options.extras_require"].items()}


def test_the_extra_all_has_every_extra_that_goes_with_the_others() -> None:
    found = extras()
    for name, packages in found.items():
        if name not in ASIDE:
            assert packages <= found["all"], f"{name} is not in the extra all"
    assert not any(p.startswith(("pytest", "mypy", "mkdocs")) for p in found["all"])
    for name in ("all", "test", "dev"):  # its pin of requests would leave pip without a solution
        assert not any(p.startswith("torchattacks") for p in found[name])


def test_the_version_stands_in_one_place() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    version = config["metadata"]["version"]
    assert version == __version__
    for folder in ("attacks", "defenses", "robustbench_sparse", "docs"):
        for path in (p for kind in ("*.py", "*.md") for p in (ROOT / folder).rglob(kind)):
            assert f'"{version}"' not in path.read_text(encoding="utf-8"), path

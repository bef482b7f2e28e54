"""Benchmarks and measured tables that come with the package, wherever it is installed.

In a checkout they are the folders ``configs`` and ``results/reference``; ``setup.py`` copies these into a wheel, into
``robustbench_sparse/shipped``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Kind = Literal["configs", "reference"]
_IN_CHECKOUT: dict[Kind, str] = {"configs": "configs", "reference": "results/reference"}
_MARK = "pyproject.toml"  # what tells a checkout from a folder that packages are installed in


def folder(kind: Kind) -> Path | None:
    """The folder of what comes along; None where the package was installed without."""
    package = Path(__file__).parents[1]
    inside, root = package / "shipped" / kind, package.parent
    if inside.is_dir():
        return inside
    beside = root / _IN_CHECKOUT[kind]
    return beside if (root / _MARK).is_file() and beside.is_dir() else None


def config(path: Path) -> Path:
    """A benchmark's file: the path itself, or where nothing is there, the one that comes along under this name.

    ``quickstart``, ``quickstart.yaml`` and ``configs/quickstart.yaml`` name the same one.
    """
    home = folder("configs")
    named = len(path.parts) == 1 or path.parent == Path("configs")
    if path.exists() or home is None or not named or path.suffix not in ("", ".yaml"):
        return path
    found = home / f"{path.name.removesuffix('.yaml')}.yaml"
    return found if found.is_file() else path


def reference(path: Path, file: str) -> Path:
    """A reference: the path itself, or where nothing is there, the file of the table of this name that comes along."""
    home = folder("reference")
    if path.exists() or home is None or len(path.parts) != 1 or path.suffix:
        return path
    found = home / path.name / file
    return found if found.is_file() else path

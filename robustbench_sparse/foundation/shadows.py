"""A user's own ``attacks.py`` or ``defenses.py`` in the way of the packages of these names, found in time."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

FLOORS = ("attacks", "defenses")
COMMAND = "robustbench-sparse"


def refuse_shadows() -> None:
    """Look where Python would take ``attacks`` and ``defenses`` from, without importing them.

    Raises:
        ImportError: another file or folder of the name comes first, or there is none; one line.
        SystemExit: the same within this package's own command, which prints that line and ends with code 2. Python
            imports the package before any line of the command runs, so nobody else could keep a traceback away.
    """
    for name in FLOORS:
        try:
            spec = find_spec(name)
        except ValueError:  # a module of the name is loaded and says nothing of where it comes from
            spec = None
        if spec is None or not _is_ours(spec):
            place = _place(spec) if spec else ""
            problem = _line(name, place)
            if _is_command():
                sys.stderr.write(f"error: {problem}\n")
                raise SystemExit(2)
            raise ImportError(problem, name=name, path=place or None)


def _is_ours(spec: ModuleSpec) -> bool:
    """Whether it is the package that lies beside this one, however both are installed.

    Where none lies beside it, any package with a ``base.py`` will do.
    """
    if spec.origin is None or spec.submodule_search_locations is None:
        return False
    found, beside = Path(spec.origin).parent, Path(__file__).parents[2] / spec.name
    if found == beside or found.resolve() == beside.resolve():
        return True
    return not beside.is_dir() and (found / "base.py").is_file()


def _place(spec: ModuleSpec) -> str:
    folders = spec.submodule_search_locations
    return spec.origin or (str(next(iter(folders), "")) if folders else "")


def _line(name: str, place: str) -> str:
    if not place:
        return f"robustbench_sparse: its package {name!r} is not there; install robustbench_sparse again"
    what = " ".join(place.split())
    return (
        f"{what}: in the way of the package {name!r} of robustbench_sparse; rename it, start from another folder or "
        f"use the installed command {COMMAND}"
    )


def _is_command() -> bool:
    """Whether this process is the installed command or ``python -m robustbench_sparse``."""
    if not getattr(sys, "argv", None):
        return False
    if sys.argv[0] == "-m":  # what it is called while Python looks for the module
        asked = sys.orig_argv[-len(sys.argv)] if len(sys.argv) <= len(sys.orig_argv) else ""
        return asked.removeprefix("-m") == "robustbench_sparse"
    return Path(sys.argv[0]).stem.removesuffix("-script") == COMMAND

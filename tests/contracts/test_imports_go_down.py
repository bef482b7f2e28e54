"""Who may import whom: three packages on top of each other, and the rooms of each, from the ground up.

``docs/architecture.md`` draws the same house. What a room may not import is found here, wherever in a file it stands.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("attacks", "defenses", "robustbench_sparse")
BELOW = {"attacks": {"attacks", "torch"}, "defenses": {"defenses", "attacks", "torch"}}

# A room imports from itself and from those that stand before it.
ROOMS = {
    "attacks": (),
    "defenses": ("base", "tracing", "regularisers", "robust", "sparse"),
    "robustbench_sparse": (
        "foundation", "engine", "data", "shifts", "models", "tasks", "sparsity", "config", "sources", "gate",
        "runs", "shrinking", "reporting", "remote", "zoo", "training", "judging", "certificate", "verdict",
        "workspace", "workers", "pool", "backends", "benchmark", "given", "evaluation", "exchange", "eval",
        "quantising", "studies", "testing", "scaffolds", "pages", "cli",
    ),
}  # fmt: skip
# At the head of a package: what stands before every room, or speaks for all of them.
HEADS = {"__init__", "__main__", "attacks", "defenses", "_version"}
# In order by the floors, and still not allowed.
NEVER = {
    "reporting": {"attacks", "shrinking"},
    "training": {"reporting", "shrinking"},
    "judging": {"training", "reporting", "shrinking"},
    "certificate": {"training", "reporting", "shrinking"},
    "verdict": {"training", "reporting", "shrinking"},
    "evaluation": {"training", "benchmark", "shrinking"},
    "pages": {"attacks", "training", "judging", "certificate", "benchmark", "evaluation", "shrinking"},
    "models": {"data", "engine", "shifts"},
    "shifts": {"data", "engine"},
    "data": {"engine"},
}


def module_of(path: Path, root: Path = ROOT) -> str:
    """Dotted name of a source file."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str) -> Iterator[str]:
    """Dotted names that a source imports anywhere in it, as far as modules may be meant; "" for a relative one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield ""
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(root: Path = ROOT) -> dict[str, set[str]]:
    """Module -> modules of these packages that it imports."""
    files = {module_of(p, root): p for name in PACKAGES for p in sorted((root / name).rglob("*.py"))}
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        names = set(imported(path.read_text(encoding="utf-8")))
        # `from a.b import c` means the module a.b.c where there is one, else a.b.
        targets = {
            n if n in files else n.rpartition(".")[0] for n in names if n.partition(".")[0] in PACKAGES
        }
        found[module] = {t if t in files else t.rpartition(".")[0] for t in targets} - {module}
    return found


def room_of(module: str) -> tuple[str, str]:
    """Package and room; the package's own name for its head."""
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    return package, room if room and room not in HEADS else package


def forbidden(imports: Mapping[str, set[str]]) -> list[str]:
    """Imports that climb, or that ``NEVER`` names."""
    wrong = []
    for module, targets in imports.items():
        package, room = room_of(module)
        rooms: Sequence[str] = ROOMS[package]
        for target in sorted(targets):
            there, other = room_of(target)
            never = {other, there} & NEVER.get(room, set())
            climbs = (
                there == package
                and room in rooms
                and other in rooms
                and rooms.index(other) > rooms.index(room)
            )
            if never or climbs:
                wrong.append(f"{module} imports {target}")
    return wrong


IMPORTS = imports_of()


@pytest.mark.parametrize("module", sorted(m for m in IMPORTS if m.partition(".")[0] in BELOW))
def test_the_lower_packages_import_nothing_from_above(module: str) -> None:
    path = ROOT / (module.replace(".", "/") + ".py")
    path = path if path.is_file() else ROOT / module.replace(".", "/") / "__init__.py"
    tops = {name.partition(".")[0] for name in imported(path.read_text(encoding="utf-8"))}
    assert tops - BELOW[module.partition(".")[0]] <= sys.stdlib_module_names


def test_rooms_import_only_from_rooms_below_them() -> None:
    assert forbidden(IMPORTS) == []


def test_every_module_stands_in_a_room() -> None:
    for package, rooms in ROOMS.items():
        if rooms:
            there = {room_of(m)[1] for m in IMPORTS if m.partition(".")[0] == package}
            assert there - {package} == set(rooms)


def test_no_circle_among_the_modules() -> None:
    """Whole circles of modules, imports within functions and for types included."""
    inner = {m: {t for t in targets if t not in PACKAGES} for m, targets in IMPORTS.items()}
    try:
        order = list(TopologicalSorter(inner).static_order())
    except CycleError as e:
        pytest.fail(f"a circle: {' -> '.join(e.args[1])}")
    assert len(order) == len(inner)


def test_the_reader_finds_what_climbs(tmp_path: Path) -> None:
    for name, text in {
        "robustbench_sparse/__init__.py": "",
        "robustbench_sparse/config/__init__.py": "",
        "robustbench_sparse/config/load.py": "def f():\n    from robustbench_sparse.runs import folder\n",
        "robustbench_sparse/runs/__init__.py": "",
        "robustbench_sparse/runs/folder.py": "from robustbench_sparse.config.load import f\nimport attacks.base\n",
        "robustbench_sparse/reporting/__init__.py": "",
        "robustbench_sparse/reporting/tables.py": "from attacks.base import Threat\n",
        "attacks/__init__.py": "",
        "attacks/base.py": "from . import x\n",
        "defenses/__init__.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = imports_of(tmp_path)
    assert found["robustbench_sparse.runs.folder"] == {"robustbench_sparse.config.load", "attacks.base"}
    assert forbidden(found) == [
        "robustbench_sparse.config.load imports robustbench_sparse.runs.folder",
        "robustbench_sparse.reporting.tables imports attacks.base",
    ]
    assert list(imported("from . import x")) == [""]

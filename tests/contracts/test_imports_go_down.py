"""Three floors: robustbench_sparse imports defenses and attacks, defenses imports attacks, never upwards."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BELOW = {"attacks": {"attacks", "torch"}, "defenses": {"defenses", "attacks", "torch"}}
FILES = [path for floor in BELOW for path in sorted((ROOT / floor).rglob("*.py"))]


def imported(source: str) -> set[str]:
    """Top-level packages that a source imports anywhere in it; "" for a relative import."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {(node.module or "") * (not node.level) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    above = imported(path.read_text(encoding="utf-8")) - BELOW[path.relative_to(ROOT).parts[0]]
    assert above <= sys.stdlib_module_names


def test_the_reader_finds_imports_wherever_they_are() -> None:
    source = (
        "import a.b\nfrom c.d import e\ndef f():\n    from g import h\n    import i as j\nfrom . import k\n"
    )
    assert imported(source) == {"a", "c", "g", "i", ""}
    assert {path.parent.name for path in FILES} >= set(BELOW)

"""File names are spelled in one place."""

from __future__ import annotations

import ast
from pathlib import Path

from robustbench_sparse.runs import names

ROOT = Path(__file__).parents[3] / "robustbench_sparse"
# Words of their own, too, which mean other things elsewhere.
WORDS = {names.RUNS, names.OUTCOMES, names.CLEAN}
SPELLED = {v for k, v in vars(names).items() if k.isupper() and isinstance(v, str)} - WORDS


def spelled_in(source: str) -> set[str]:
    """Constants of a source, docstrings aside, that are a name of a file or end in one."""
    tree = ast.parse(source)
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return {
        t for t in texts if "\n" not in t and t.rpartition("/")[2] in {s.rpartition("/")[2] for s in SPELLED}
    }


def test_no_other_module_spells_them() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in ROOT.rglob("*.py")
        if path != ROOT / "runs" / "names.py"
        for name in spelled_in(path.read_text(encoding="utf-8"))
    }
    # The measured speeds of this machine lie in its cache, not in a run; the weights are those of timm's own folders.
    assert found == {"engine/autotune.py: speed.json", "sources/from_timm.py: model.safetensors"}


def test_the_reader_sees_them() -> None:
    assert spelled_in('x = folder / "run.json"\ny = "certificate/found.csv"\nz = "other.json"') == {
        "run.json",
        "certificate/found.csv",
    }
